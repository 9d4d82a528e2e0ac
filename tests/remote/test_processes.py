"""A real SuperLink and real SuperNodes: who may join, what is refused and how it is said, and what
happens when one of them is killed.
"""

import base64
import importlib.util
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

pytest.importorskip("flwr")

import httpx
from flwr.app import RecordDict
from flwr.app.message.arraychunk import ArrayChunk

from bhfl.remote.app.frames import SECRET
from bhfl.remote.app.records import KIND, wrapped
from bhfl.remote.front import Front
from bhfl.remote.keys import ClientKeys, client_keys, make_keys, server_keys
from bhfl.remote.relay import Answer, listening_at
from bhfl.remote.sealed import Sealed
from bhfl.remote.superlink import Control, SuperLink
from tests.remote.cluster import SECONDS, Cluster, alive, below, until
from tests.remote.relay import Wire
from tests.remote.speaker import Speaker, speaking

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster.begin(tmp_path_factory.mktemp("cluster"), ["int8", "int8", "float32"])
    yield cluster
    cluster.end()


def online(cluster: Cluster) -> set[int]:
    return {client for client, node in cluster.control.nodes().items() if node.online}


def test_each_client_has_its_id_by_its_key_and_keeps_it(cluster: Cluster) -> None:
    before = cluster.control.nodes()
    assert {client: node.group for client, node in before.items()} == {
        0: "int8",
        1: "int8",
        2: "float32",
    }
    node = cluster.node(1, node_config={"socket": "/tmp/a b", "number": 3})
    assert online(cluster) == {1}
    cluster.control.register()
    ids = {client: one.node for client, one in cluster.control.nodes().items()}
    assert ids == {client: one.node for client, one in before.items()}
    assert cluster.front.bytes_up[1] > 0
    node.stop()
    until(lambda: online(cluster) == set())


def test_of_all_that_a_superlink_has_clients_reach_the_fleet_api(cluster: Cluster) -> None:
    context = ssl.create_default_context(cafile=cluster.keys.ca)
    public = base64.b64encode(cluster.registry.clients[0].pem).decode()
    headers = {"flwr-public-key": public, "content-type": "application/protobuf"}
    with httpx.Client(verify=context, headers=headers) as client:
        inside = f"https://{cluster.superlink.address}"
        outside = f"https://127.0.0.1:{cluster.front.port}"
        paths = client.get(f"{inside}/openapi.json").json()["paths"]
        groups = {"/".join(path.split("/")[:3]) for path in paths}
        assert {"/v1/fleet", "/v1/control", "/v1/runtime"} <= groups
        for path, methods in paths.items():
            for method in methods:
                status = client.request(method, f"{outside}{path}").status_code
                # one without a signature goes no further than the front
                assert status == (401 if path.startswith("/v1/fleet/") else 404), path


def test_a_superlink_that_is_killed_comes_back_and_finds_its_clients(cluster: Cluster) -> None:
    node = cluster.node(0)
    before = cluster.control.nodes()
    pid = cluster.superlink.process.pid
    assert pid is not None
    helpers = below(pid)
    assert helpers
    os.kill(pid, signal.SIGKILL)
    until(lambda: cluster.superlink.process.starts == 2 and cluster.superlink.process.wait(0))
    assert cluster.control.nodes().keys() == before.keys()
    assert cluster.control.nodes()[0].node == before[0].node
    until(lambda: not any(map(alive, helpers)))
    until(lambda: online(cluster) == {0})
    assert node.starts == 1
    node.stop()


def test_a_network_that_is_cut_for_half_a_minute_loses_nobody(cluster: Cluster) -> None:
    wire = Wire(cluster.front.port)
    node = cluster.node(0, f"127.0.0.1:{wire.port}")
    before = cluster.control.nodes()[0].node
    wire.cut()
    time.sleep(30.0)
    said = cluster.front.bytes_up[0]
    wire.mend()
    until(lambda: cluster.front.bytes_up[0] > said)
    until(lambda: node.wait(0) and online(cluster) == {0})
    assert cluster.control.nodes()[0].node == before
    node.stop()
    wire.close()


def clocked_by(clock: Path) -> dict[str, str]:
    """Environment variables by which a program's clock goes wrong by what a file says.

    Debian's own library, 0.9.10, breaks `time.sleep` of this Python.
    """
    libraries = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]
    if (found := importlib.util.find_spec("libfaketime")) and found.origin:
        libraries += Path(found.origin).parent.rglob("libfaketime.so.1")
    sleep = "import threading, time; time.sleep(0.1); threading.Event().wait(0.1)"
    for library in libraries:
        faked = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock)}
        faked |= {"FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}
        tried = subprocess.run([sys.executable, "-c", sleep], env=faked, capture_output=True)
        if not tried.returncode:
            return faked
    pytest.skip("needs a libfaketime under which Python can sleep: pip install libfaketime")


def test_a_clock_that_is_set_back_keeps_a_client_away_until_it_is_right(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A library is around the client alone: what it asks the system for is another time."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    node = cluster.node(0, more=clocked_by(clock))
    before = cluster.control.nodes()[0].node
    clock.write_text("-1h")
    told = "the clock of this client differs from the server's by -3"
    until(lambda: told in node.log.read_text() and not node.wait(0))
    clock.write_text("+0")
    until(lambda: node.wait(0) and online(cluster) == {0})
    assert cluster.control.nodes()[0].node == before
    assert not node.failure
    node.stop()


def test_a_supernode_that_has_lost_its_helper_is_started_anew(cluster: Cluster) -> None:
    node = cluster.node(0)
    assert node.pid is not None
    for helper in below(node.pid):
        os.kill(helper, signal.SIGKILL)
    until(lambda: node.starts == 2 and node.wait(0))
    assert below(node.pid)
    node.stop()


def test_two_clients_of_one_key_are_refused(cluster: Cluster) -> None:
    first = cluster.node(2)
    with pytest.raises(RuntimeError, match=r"another client has been there with the key .*-2"):
        cluster.node(2, patience=1.0)
    assert first.wait(0)
    assert first.starts == 1
    first.stop()


def with_ca_of(keys: ClientKeys, ca: Path, place: Path) -> ClientKeys:
    """A client's keys beside another authority's certificate."""
    shutil.copytree(keys.folder, place)
    shutil.copy(ca, place / "ca.pem")
    return client_keys(place)


def test_a_key_that_nobody_registered_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "keys", ["int8"], [])
    strange = client_keys(other / "clients" / "client-0")
    mixed = with_ca_of(strange, cluster.keys.ca, tmp_path / "mixed")
    with pytest.raises(RuntimeError, match=r"client\.key is not in its registry"):
        cluster.node(mixed)


def test_a_server_of_another_authority_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    other = server_keys(make_keys(tmp_path / "keys", ["int8"], []))
    mixed = with_ca_of(cluster.client(0), other.ca, tmp_path / "mixed")
    with pytest.raises(RuntimeError, match=r"is not of the authority of .*mixed/ca\.pem"):
        cluster.node(mixed)


def test_a_server_that_speaks_clear_text_is_refused(cluster: Cluster) -> None:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(RuntimeError, match="it answers in clear text, and clients speak TLS"):
            cluster.node(0, f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_damaged_key_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    mixed = with_ca_of(cluster.client(0), cluster.keys.ca, tmp_path / "mixed")
    mixed.private.write_text("no key")
    with pytest.raises(RuntimeError, match=r"client\.key is no key that"):
        cluster.node(mixed)


def test_ports_in_use_are_named(cluster: Cluster, tmp_path: Path) -> None:
    port = cluster.superlink.port
    with pytest.raises(OSError, match=f"superlink port {port} of 127.0.0.1 cannot be taken"):
        SuperLink(tmp_path / "superlink", cluster.keys, port)
    with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be taken"):
        Front(cluster.keys, cluster.registry, cluster.superlink.address, "127.0.0.1", port)
    with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be taken"):
        cluster.node(0, port=port)


def test_a_superlink_of_others_is_known_by_its_authority(cluster: Cluster, tmp_path: Path) -> None:
    other = server_keys(make_keys(tmp_path / "keys", ["int8"], []))
    control = Control(cluster.superlink.address, other, cluster.registry)
    with pytest.raises(ConnectionError, match=r"the SuperLink at 127\.0\.0\.1:\d+: .*certificate"):
        control.nodes()
    control.close()
    with pytest.raises(ValueError, match=r"superlink must be HOST:PORT, got 'example\.org'"):
        Control("example.org", cluster.keys, cluster.registry)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_supernode_that_is_killed_comes_back_under_its_id(
    cluster: Cluster, ending: signal.Signals
) -> None:
    node = cluster.node(1)
    before = cluster.control.nodes()[1].node
    assert node.pid is not None
    os.kill(node.pid, ending)
    # the key of one that was killed is in use until its last sign of life is a minute old
    until(lambda: node.starts >= 2 and node.wait(0), 150.0)
    assert cluster.control.nodes()[1].node == before
    assert online(cluster) == {1}
    node.stop()


def test_an_app_that_waits_for_an_answer_ends_with_its_supernode(cluster: Cluster) -> None:
    """The device's own process may train for hours: nothing of the dead waits for it."""
    with cluster.grid() as (grid, place):
        door = listening_at(place / "device.sock")
        node = cluster.node(0, node_config={"bhfl-socket": str(place / "device.sock")})
        ids = cluster.control.nodes()
        until(lambda: ids[0].node in grid.nodes())
        assert grid.push([(ids[0].node, b"a task")], 300.0, 0) != [None]
        waits, _ = door.accept()
        assert node.pid is not None
        started = below(node.pid)
        assert len(started) >= 2
        os.kill(node.pid, signal.SIGKILL)
        until(lambda: not any(map(alive, started)), 30.0)
        node.stop()
        waits.close()
        door.close()


class Twice(Speaker):
    """Answers twice."""

    def contents(self, data: bytes) -> list[RecordDict]:
        return [wrapped(data[:SECRET] + word) for word in (b"first", b"second")]


class Forger(Speaker):
    """Answers without the secret of the message."""

    def contents(self, data: bytes) -> list[RecordDict]:
        return [wrapped(bytes(SECRET) + b"forged")]


class Bomb(Speaker):
    """Sends a few bytes that stand for a hundred gigabytes."""

    def contents(self, data: bytes) -> list[RecordDict]:
        chunk = ArrayChunk(memoryview(bytes(5 * 2**20)))
        # more than travels as one object
        content = wrapped(bytes(2 * 2**20))
        # all of its pieces are one and the same
        vars(content["bytes"][KIND])["_chunks"] = [(chunk.object_id, chunk)] * 20_000
        return [content]


def test_what_strangers_to_the_truth_send_is_theirs_alone(cluster: Cluster) -> None:
    """Of two answers to a message one counts, a forged one does not, and one that does not fit into
    memory is told of by name, once Flower's app has come to its end by it and is there again.
    """
    # a client of another test that was killed is there until its last sign of life is a minute old
    until(lambda: online(cluster) == set(), 150.0)
    address = f"127.0.0.1:{cluster.front.port}"
    speakers = [
        kind(address, cluster.client(client), client, "", 0)
        for client, kind in enumerate([Twice, Bomb, Forger])
    ]
    allowance = cluster.front.allowance
    with cluster.grid() as (relay, _), speaking(speakers):
        nodes = {one.node: client for client, one in cluster.control.nodes().items()}
        grid = Sealed(relay, lambda _: nodes, allowance)
        until(lambda: len(grid.nodes()) == 3)
        found: dict[int, Answer] = {}
        lost = 0
        for _ in range(5):
            asked = [node for node, client in nodes.items() if client not in found]
            pushed = grid.push([(node, b"a task") for node in asked], 300.0, 0)
            ids = {str(id): nodes[node] for id, node in zip(pushed, asked, strict=True)}
            try:
                end = time.monotonic() + SECONDS
                while len(found) < 3 and time.monotonic() < end:
                    answers = grid.pull([id for id, client in ids.items() if client not in found])
                    found |= {ids[answer.id]: answer for answer in answers}
                    time.sleep(0.5)
            except ConnectionError:
                lost += 1
                grid.restore()
            if len(found) == 3:
                break
        assert found[0].data == b"first"
        assert found[1].error == "it cannot be read: MemoryError"
        assert found[2].error == "the answer does not hold the secret of its message"
        assert lost == 1


PARENT = """
import sys, time
from pathlib import Path
from bhfl.remote.keys import server_keys
from bhfl.remote.superlink import SuperLink
link = SuperLink(Path(sys.argv[2]), server_keys(sys.argv[1])).start(90)
print(link.process.pid, flush=True)
time.sleep(120)
"""


def test_nothing_is_left_when_the_server_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-B", "-c", PARENT, str(cluster.made), str(tmp_path / "superlink")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        superlink = int(parent.stdout.readline())
        started = below(parent.pid)
        assert superlink in started
        assert len(started) >= 2
        parent.kill()
    until(lambda: not any(map(alive, started)), 30.0)
