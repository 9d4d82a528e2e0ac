"""What strangers can take of a server's process: little memory, and few files."""

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from bhfl.remote import bounded
from bhfl.remote.front import MOST_HEAD, Front
from bhfl.remote.keys import ServerKeys, make_keys, server_keys
from bhfl.remote.registry import Registry

SECONDS = 0.3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServerKeys, Registry]:
    keys = server_keys(make_keys(tmp_path_factory.mktemp("bounded") / "keys", ["int8"], []))
    return keys, Registry.read(keys.registry)


@pytest.fixture(scope="module")
def front(made: tuple[ServerKeys, Registry]) -> Iterator[Front]:
    with Front(*made, "127.0.0.1:9", "127.0.0.1", 0, head_seconds=SECONDS) as front:
        yield front


def connected(front: Front) -> socket.socket:
    return socket.create_connection(("127.0.0.1", front.port), 5)


def over_tls(front: Front) -> socket.socket:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connected(front))


def is_cut(one: socket.socket) -> bool:
    """Whether the other side ends a connection within some seconds."""
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_head_without_an_end_is_refused(made: tuple[ServerKeys, Registry]) -> None:
    # with its 15 seconds: it is not time that ends this
    with Front(*made, "127.0.0.1:9", "127.0.0.1", 0) as front, over_tls(front) as one:
        one.sendall(b"POST /v1/fleet/x HTTP/1.1\r\nhost: x\r\n")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            for _ in range(16):
                one.sendall(b"a: " + b"b" * MOST_HEAD + b"\r\n")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert one.recv(4096)[:12] in (b"HTTP/1.1 400", b"")


def test_connections_that_ask_for_nothing_are_cut(front: Front) -> None:
    start = time.monotonic()
    with connected(front) as plain, over_tls(front) as secret:
        secret.sendall(b"POST /v1/fleet/x HTTP/1.1\r\n")
        assert is_cut(plain)
        assert is_cut(secret)
    assert time.monotonic() - start >= SECONDS


def test_strangers_are_answered_once(front: Front) -> None:
    with over_tls(front) as one:
        one.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        answer = b""
        while part := one.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"connection: close" in answer


def test_connections_are_bounded_and_room_comes_back(front: Front) -> None:
    files = Path("/proc/self/fd")
    most = front._socket.most
    assert most == 64 + 8
    before = len(os.listdir(files))
    ones = [connected(front) for _ in range(most + 30)]
    time.sleep(0.1)
    # one end of each is this test's
    assert len(os.listdir(files)) - before <= len(ones) + most + 2
    assert is_cut(ones[-1])
    for one in ones:
        one.close()
    time.sleep(SECONDS + 0.1)
    with over_tls(front) as late:
        late.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        assert late.recv(8) == b"HTTP/1.1"


def test_the_process_keeps_files_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(100, 400)]
    monkeypatch.setattr(bounded.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(bounded.resource, "setrlimit", lambda _, new: limits.append(new))
    assert bounded._most_connections(1) == 72
    assert limits[-1] == (288, 400)
    # no more than it may have
    assert bounded._most_connections(100) == 100
    assert limits[-1] == (400, 400)
