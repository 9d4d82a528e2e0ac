"""Why a client does not join, in words, and when it is of no use to go on trying."""

import ssl
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from bhfl.remote import keys as keys_module
from bhfl.remote import supernode
from bhfl.remote.flower import listening
from bhfl.remote.keys import client_keys, make_keys, server_keys
from bhfl.remote.supernode import _Reasons, start_supernode
from tests.remote.test_keys import handshake


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys") / "keys", ["int8"], ["fed.example.org"])


@pytest.fixture
def reasons(made: Path) -> _Reasons:
    return _Reasons(client_keys(made / "clients" / "client-0"), "fed.example.org:8443", 50.0)


def fails(ca: Path, server: Path, name: str) -> str:
    """What a handshake says that comes to nothing."""
    asks = ssl.create_default_context(cafile=ca)
    answers = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    answers.load_cert_chain(server / "server.pem", server / "server.key")
    with pytest.raises(ssl.SSLError) as raised:
        handshake(asks, answers, name)
    return str(raised.value)


def test_what_tls_says_becomes_a_sentence(made: Path, reasons: _Reasons, tmp_path: Path) -> None:
    keys = server_keys(made)
    begun = "the server at fed.example.org:8443 is not joined: its certificate is not"
    wrong_name = reasons(fails(keys.ca, keys.folder, "other.example.org"))
    assert wrong_name == f"{begun} for that name: its keys were made without it"
    wrong_address = reasons(fails(keys.ca, keys.folder, "127.0.0.2"))
    assert wrong_address == f"{begun} for that address: its keys were made without it"
    other = server_keys(make_keys(tmp_path / "keys", ["int8"], []))
    wrong_ca = reasons(fails(other.ca, keys.folder, "fed.example.org"))
    assert wrong_ca == f"{begun} of the authority of {made}/clients/client-0/ca.pem"


def test_a_certificate_out_of_its_time_is_told_and_waited_for(
    reasons: _Reasons,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Earlier(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(days=4000)

    monkeypatch.setattr(keys_module, "datetime", Earlier)
    keys = server_keys(make_keys(tmp_path / "keys", ["int8"], []))
    assert reasons(fails(keys.ca, keys.folder, "localhost")) == ""
    assert "certificate has expired; the clock of this machine may be wrong" in caplog.text


def test_a_key_in_use_is_tried_again_for_as_long_as_it_may_be_its_own_last_life(
    reasons: _Reasons, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(supernode.time, "monotonic", lambda: now[0])
    said = "[code: 2004] Failed to activate SuperNode."
    assert reasons(said) == ""
    now[0] = 149.0
    assert reasons(said) == ""
    assert reasons("killed") == ""  # it was let in meanwhile, and killed
    now[0] = 160.0
    assert reasons(said) == ""
    now[0] = 210.0
    assert "another client has been there with the key" in reasons(said)


def test_a_wrong_clock_is_told_and_waited_for(
    reasons: _Reasons, caplog: pytest.LogCaptureFixture
) -> None:
    said = "[code: 2004] the clock of this client differs from the server's by -3600 s"
    assert reasons(said) == ""
    told = "the clock of this client differs from the server's by -3600 s"
    assert [record.getMessage() for record in caplog.records] == [
        f"fed.example.org:8443 is not joined yet: {told}; the clock of this machine may be wrong"
    ]


def test_the_node_configuration_is_written_as_toml(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernode.Supervised, "start", lambda process, seconds: None)
    keys = client_keys(made / "clients" / "client-0")
    config = {"socket": "/tmp/ö \"b\" 'c' \\", "number": 3, "share": 0.5, "own": True}
    start_supernode(tmp_path, keys, "127.0.0.1:1", node_config=config)
    assert tomllib.loads((tmp_path / "node.toml").read_text("utf-8")) == config
    with pytest.raises(ValueError, match="node_config: 'a=b' is no name"):
        start_supernode(tmp_path, keys, "127.0.0.1:1", node_config={"a=b": 1})


def test_a_port_in_use_is_named(made: Path, tmp_path: Path) -> None:
    with listening("127.0.0.1", 0, "port") as taken:
        taken.listen()
        port = taken.getsockname()[1]
        keys = client_keys(made / "clients" / "client-0")
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be taken"):
            start_supernode(tmp_path, keys, "127.0.0.1:1", port=port)
