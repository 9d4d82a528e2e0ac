"""What the door of a server lets through: requests of registered clients to the Fleet API, as they
came, and nothing else.

Behind it is a server of the test's own, which says what it was asked.
"""

import base64
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

import httpx
import uvicorn
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from bhfl.remote.flower import listening
from bhfl.remote.front import Front
from bhfl.remote.keys import ServerKeys, client_keys, make_keys, server_keys
from bhfl.remote.registry import Registry


@dataclass
class Asked:
    """What came to the server behind the front."""

    path: str
    headers: dict[bytes, bytes]
    length: int


class Behind:
    """An HTTPS server that answers by as many bytes as the header ``wanted`` says."""

    def __init__(self, keys: ServerKeys) -> None:
        self.asked: list[Asked] = []
        self.socket = listening("127.0.0.1", 0, "port")
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(
            self.answer,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="critical",
            ssl_certfile=keys.certificate,
            ssl_keyfile=keys.private,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=[[self.socket]], daemon=True)
        self.socket.listen()
        self.thread.start()

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        asked = Asked(scope["path"], headers, 0)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            asked.length += len(message.get("body", b""))
            more = message.get("more_body", False)
        self.asked.append(asked)
        start = {"type": "http.response.start", "status": 201, "headers": [(b"x-said", b"yes")]}
        await send(start)
        part = bytes(2**16)
        for _ in range(int(headers.get(b"wanted", b"0")) // len(part)):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if b"broken" in headers:
            raise RuntimeError("it ends here")
        await send({"type": "http.response.body", "body": b"end"})

    def stop(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(10)
        self.socket.close()


@dataclass
class Door:
    keys: ServerKeys
    registry: Registry
    behind: Behind
    front: Front
    client: httpx.Client

    def ask(self, path: str, method: str = "POST", client: int = 0, **more: Any) -> httpx.Response:
        headers = {**self.signed(client), **more.pop("headers", {})}
        url = f"https://127.0.0.1:{self.front.port}{path}"
        return self.client.request(method, url, headers=headers, **more)

    def signed(self, client: int, said: str | None = None, by: int | None = None) -> dict[str, str]:
        """The headers of a client that says a time, signed by the key of that client or another."""
        said = datetime.now(UTC).isoformat() if said is None else said
        folder = self.keys.folder.parent / "clients" / f"client-{client if by is None else by}"
        private = load_ssh_private_key(client_keys(folder).private.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        signature = private.sign(said.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": base64.b64encode(self.registry.clients[client].pem).decode(),
            "flwr-timestamp": said,
            "flwr-signature": base64.b64encode(signature).decode(),
        }


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    keys = server_keys(make_keys(tmp_path_factory.mktemp("door") / "keys", ["int8", "int4"], []))
    registry = Registry.read(keys.registry)
    behind = Behind(keys)
    context = ssl.create_default_context(cafile=keys.ca)
    front = Front(keys, registry, behind.address, "127.0.0.1", 0, most_bytes=200 * 2**20)
    with front, httpx.Client(verify=context, timeout=30, trust_env=False) as client:
        yield Door(keys, registry, behind, front, client)
    behind.stop()


def test_a_request_of_a_client_is_forwarded_as_it_came(door: Door) -> None:
    before = door.front.bytes_up.get(1, 0), door.front.bytes_down.get(1, 0)
    answer = door.ask(
        "/v1/fleet/push-object",
        client=1,
        content=b"x" * 1000,
        headers={"content-type": "application/protobuf", "te": "trailers"},
    )
    assert (answer.status_code, answer.headers["x-said"], answer.content) == (201, "yes", b"end")
    asked = door.behind.asked[-1]
    assert (asked.path, asked.length) == ("/v1/fleet/push-object", 1000)
    assert asked.headers[b"content-type"] == b"application/protobuf"
    assert asked.headers[b"content-length"] == b"1000"
    assert asked.headers[b"host"] == door.behind.address.encode()
    assert b"te" not in asked.headers
    wait_for(lambda: door.front.bytes_up.get(1, 0) - before[0] == 1000)
    assert door.front.bytes_down[1] - before[1] == 3


def wait_for(true: Any) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


OTHERS = [
    "/",
    "/health",
    "/docs",
    "/openapi.json",
    "/v1/control/register-node",
    "/v1/control/start-run",
    "/v1/runtime/pull-task",
    "/v1/responses",
    "/v1/fleet",
    "/v1/fleet/",
    "//v1/fleet/pull-messages",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages?x=1",
    "/V1/FLEET/PULL-MESSAGES",
]
RAW = [
    "/v1/fleet/../control/register-node",
    "/v1/fleet/%2e%2e/control/register-node",
    "/v1/fleet/..%2fcontrol%2fregister-node",
    "/v1/fleet/pull-messages;/../../control/start-run",
    "/v1/control/../fleet/pull-messages",
    "https://127.0.0.1/v1/control/register-node",
]
"""Paths that a client library would put right before it sends them."""


@pytest.mark.parametrize("path", OTHERS)
def test_other_paths_are_not_found(door: Door, path: str) -> None:
    before = len(door.behind.asked)
    assert door.ask(path, content=b"x").status_code == 404
    assert door.ask("/v1/fleet/pull-messages", "GET").status_code == 404
    assert len(door.behind.asked) == before


@pytest.mark.parametrize("path", RAW)
def test_no_spelling_of_a_path_leads_out(door: Door, path: str) -> None:
    before = len(door.behind.asked)
    assert raw(door, path).startswith(b"HTTP/1.1 4")
    assert len(door.behind.asked) == before


def raw(door: Door, path: str) -> bytes:
    """The first line of what the front answers to a path that is sent as it is."""
    key = base64.b64encode(door.registry.clients[0].pem).decode()
    text = f"POST {path} HTTP/1.1\r\nhost: x\r\nflwr-public-key: {key}\r\ncontent-length: 0\r\n\r\n"
    context = ssl.create_default_context(cafile=door.keys.ca)
    plain = socket.create_connection(("127.0.0.1", door.front.port), 10)
    with context.wrap_socket(plain, server_hostname="localhost") as stream:
        stream.sendall(text.encode())
        return stream.recv(4096).partition(b"\r\n")[0]


def test_no_key_and_keys_of_others_are_refused(door: Door, tmp_path: Path) -> None:
    other = server_keys(make_keys(tmp_path / "keys", ["int8"], []))
    (stranger,) = Registry.read(other.registry).clients
    before = len(door.behind.asked)
    for value in ["", "!", base64.b64encode(stranger.pem).decode()]:
        answer = door.ask("/v1/fleet/activate-node", headers={"flwr-public-key": value})
        assert answer.status_code == 412
        told = "the key of this client is not in the registry"
        assert json.loads(answer.content) == {"code": 2004, "detail": told}
    assert len(door.behind.asked) == before


def test_who_has_not_the_private_key_of_a_client_uses_up_nothing_of_its_bytes(door: Door) -> None:
    """A public key is no secret: whoever knows it could have the client refused otherwise."""
    now = datetime.now(UTC)
    earlier = door.signed(1, (now - timedelta(seconds=9)).isoformat())
    good = door.signed(1, now.isoformat())
    wrong = [
        door.signed(1, by=0),
        {**good, "flwr-signature": earlier["flwr-signature"]},
        {**good, "flwr-signature": "!"},
        {name: value for name, value in good.items() if name != "flwr-signature"},
        {name: value for name, value in good.items() if name != "flwr-timestamp"},
    ]
    door.front.allowance.grant(1, 1000)
    url = f"https://127.0.0.1:{door.front.port}/v1/fleet/push-object"
    before = len(door.behind.asked)
    for headers in wrong:
        answer = door.client.post(url, headers=headers, content=bytes(1001))
        assert answer.status_code == 401
        assert answer.json()["detail"] == "this client has not signed its time by its key"
    assert len(door.behind.asked) == before
    assert door.ask("/v1/fleet/push-object", client=1, content=bytes(1000)).status_code == 201


@pytest.mark.parametrize(
    ("seconds", "status"), [(0, 201), (290, 201), (-290, 201), (400, 412), (-4000, 412)]
)
def test_a_clock_that_is_wrong_is_told_as_such(door: Door, seconds: int, status: int) -> None:
    said = datetime.now(UTC) + timedelta(seconds=seconds)
    answer = door.ask("/v1/fleet/activate-node", headers=door.signed(0, said.isoformat()))
    assert answer.status_code == status
    if status == 412:
        told = rf"the clock of this client differs from the server's by \{seconds:+d} s"
        assert re.search(told, answer.json()["detail"])


@pytest.mark.parametrize("said", ["", "yesterday", "2026-01-01T00:00:00", "9" * 5000])
def test_what_is_no_time_is_left_to_the_superlink(door: Door, said: str) -> None:
    answer = door.ask("/v1/fleet/activate-node", headers=door.signed(0, said))
    assert answer.status_code == 201


def test_clear_text_is_not_answered(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.front.port), 10) as plain:
        plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not plain.recv(4096).startswith(b"HTTP")


def test_a_body_that_is_too_long_is_refused_before_and_while_it_comes(door: Door) -> None:
    front = Front(door.keys, door.registry, door.behind.address, "127.0.0.1", 0, most_bytes=1000)
    short = Door(door.keys, door.registry, door.behind, front, door.client)

    def parts() -> Iterator[bytes]:
        yield from [bytes(600)] * 2

    with front:
        before = len(door.behind.asked)
        for content in [bytes(1001), parts()]:
            answer = short.ask("/v1/fleet/push-object", content=content)
            assert answer.status_code == 413
            assert "at most 1,000 bytes" in answer.text
        assert short.ask("/v1/fleet/push-object", content=bytes(1000)).status_code == 201
        wait_for(lambda: len(door.behind.asked) == before + 1)


def test_a_client_brings_no_more_than_an_answer_however_it_is_cut(door: Door) -> None:
    def parts() -> Iterator[bytes]:
        yield from [bytes(600)] * 2

    door.front.allowance.grant(1, 1000)
    assert door.ask("/v1/fleet/push-object", client=1, content=bytes(600)).status_code == 201
    for content in [bytes(401), parts()]:
        answer = door.ask("/v1/fleet/push-object", client=1, content=content)
        assert answer.status_code == 413
        assert "client 1 has sent more bytes than an answer may have" in answer.text
    # it may still ask, and others are left alone
    assert door.ask("/v1/fleet/pull-messages", client=1).status_code == 201
    assert door.ask("/v1/fleet/push-object", content=bytes(600)).status_code == 201
    assert door.front.allowance.overdrawn == {1}


def test_a_client_that_goes_away_in_the_middle_is_nothing_to_speak_of(
    door: Door, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def parts() -> Iterator[bytes]:
        yield bytes(1000)
        raise KeyError("the client's own trouble")

    with pytest.raises(KeyError):
        door.ask("/v1/fleet/push-object", content=parts())
    time.sleep(0.3)
    assert door.ask("/v1/fleet/push-object").status_code == 201
    assert caplog.text == ""
    assert capfd.readouterr().err == ""


def test_a_superlink_that_breaks_off_is_not_taken_for_one_that_ended(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        door.ask("/v1/fleet/pull-object", headers={"wanted": str(2**17), "broken": "yes"})
    assert "an answer of /v1/fleet/pull-object broke off" in caplog.text


def test_a_superlink_that_is_away_or_another_is_told_as_such(door: Door, tmp_path: Path) -> None:
    with listening("127.0.0.1", 0, "port") as nobody:
        away = f"127.0.0.1:{nobody.getsockname()[1]}"
        with Front(door.keys, door.registry, away, "127.0.0.1", 0) as front:
            alone = Door(door.keys, door.registry, door.behind, front, door.client)
            answer = alone.ask("/v1/fleet/pull-messages")
    assert answer.status_code == 502
    other = Behind(server_keys(make_keys(tmp_path / "keys", ["int8"], [])))
    with Front(door.keys, door.registry, other.address, "127.0.0.1", 0) as front:
        alone = Door(door.keys, door.registry, door.behind, front, door.client)
        answer = alone.ask("/v1/fleet/pull-messages")
    assert answer.status_code == 502
    assert other.asked == []
    other.stop()


def test_a_port_in_use_is_named(door: Door) -> None:
    with pytest.raises(OSError, match=f"port {door.front.port} of 127.0.0.1 cannot be taken"):
        Front(door.keys, door.registry, door.behind.address, "127.0.0.1", door.front.port)


@pytest.mark.network
def test_a_hundred_megabytes_pass_both_ways_without_being_held(door: Door) -> None:
    length = 100 * 2**20
    part = bytes(2**16)

    def parts() -> Iterator[bytes]:
        yield from [part] * (length // len(part))

    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before = memory("VmRSS")
    door.front.allowance.grant(0, length)
    headers = {**door.signed(0), "wanted": str(length)}
    url = f"https://127.0.0.1:{door.front.port}/v1/fleet/push-object"
    got = 0
    with door.client.stream("POST", url, content=parts(), headers=headers) as answer:
        for piece in answer.iter_raw():
            got += len(piece)
    assert door.behind.asked[-1].length == length
    assert got == length + 3
    assert memory("VmHWM") - before < 30 * 2**20


def memory(name: str) -> int:
    """Bytes of this process's memory, now or at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
