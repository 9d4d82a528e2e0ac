"""Keys are made once, for their owners alone, and each says which client it is."""

import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from bhfl.remote.keys import client_keys, make_keys, server_keys
from bhfl.remote.registry import Registry

GROUPS = ["int8", "int8", "float32"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("keys") / "below" / "keys"
    return make_keys(place, GROUPS, ["fed.example.org", "2001:db8::1", "localhost"])


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_only_their_owner_reads_private_keys_and_folders(made: Path) -> None:
    found = modes(made)
    assert {found[name] for name in ("ca.key", "server.key", "client.key")} == {0o600}
    assert {found[name] for name in ("server", "clients", "client-2")} == {0o700}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_client_is_given_what_it_needs_and_no_more(made: Path) -> None:
    own = client_keys(made / "clients" / "client-2")
    assert {path.name for path in own.folder.iterdir()} == {"ca.pem", "client.key", "client.pub"}
    key = load_ssh_private_key(own.private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert own.public.read_text().endswith(" client 2 (float32)\n")


def test_the_key_says_which_client_and_which_group_it_is(made: Path) -> None:
    registry = Registry.read(server_keys(made).registry)
    assert [one.group for one in registry.clients] == GROUPS
    for client in range(3):
        line = client_keys(made / "clients" / f"client-{client}").public.read_text()
        (one,) = [each for each in registry.clients if line.startswith(each.public_key)]
        assert one.client == client
        assert registry.of_key[one.pem] is one
    registry.fits(GROUPS)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (["int8"], "keys are those of 3 clients, and the fleet has 1"),
        (["int8", "float32", "float32"], "client 1 has a key of the group int8, .* in float32"),
    ],
)
def test_keys_of_another_fleet_are_refused(made: Path, groups: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Registry.read(server_keys(made).registry).fits(groups)


def test_the_certificate_is_for_all_names_of_the_server_and_passes_strictly(made: Path) -> None:
    keys = server_keys(made)
    certificate = x509.load_pem_x509_certificate(keys.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "fed.example.org"]
    addresses = [str(one) for one in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "2001:db8::1"]
    # a handshake in memory, as strictly as Python 3.13 checks by default
    asks = ssl.create_default_context(cafile=keys.ca)
    asks.verify_flags |= ssl.VERIFY_X509_STRICT
    answers = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    answers.load_cert_chain(keys.certificate, keys.private)
    handshake(asks, answers, "fed.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(asks, answers, "other.example.org")


def handshake(asks: ssl.SSLContext, answers: ssl.SSLContext, name: str) -> None:
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asks.wrap_bio(here, there, server_hostname=name)
    server = answers.wrap_bio(there, here, server_side=True)
    for side in [client, server, client, server]:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


def test_keys_are_never_written_over(made: Path, tmp_path: Path) -> None:
    before = (made / "ca.key").read_bytes()
    with pytest.raises(FileExistsError, match="must be a new or an empty folder"):
        make_keys(made, GROUPS, [])
    assert (made / "ca.key").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file must be a new or an empty folder"):
        make_keys(tmp_path / "file", GROUPS, [])
    (tmp_path / "empty").mkdir()
    make_keys(tmp_path / "empty", ["int8"], [])
    assert server_keys(tmp_path / "empty").private.is_file()


def test_a_run_that_broke_off_leaves_no_half_of_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Registry, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Registry, "write", full)
    with pytest.raises(OSError, match="No space"):
        make_keys(tmp_path / "keys", GROUPS, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "host", ["example.org:8443", "https://example.org", "", "a b", "-a", "ö.de"]
)
def test_a_host_that_is_no_name_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="host must be a name or an address without a port, got"):
        make_keys(tmp_path / "keys", GROUPS, [host])
    with pytest.raises(ValueError, match="there must be clients, got none"):
        make_keys(tmp_path / "keys", [], [])


def test_keys_that_others_can_read_or_that_are_not_there_are_refused(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "keys", ["int8"], [])
    client = made / "clients" / "client-0"
    (client / "client.key").chmod(0o640)
    with pytest.raises(ValueError, match=r"client\.key must be for its owner alone, .* mode 640"):
        client_keys(client)
    (made / "server" / "server.pem").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*server\.pem"):
        server_keys(made)


def no_header(text: str) -> str:
    return text.partition("\n")[2]


def twice(text: str) -> str:
    first = text.splitlines()[1]
    return f"{text.splitlines()[0]}\n{first}\n1{first[1:]}\n"


def out_of_place(text: str) -> str:
    return text.replace("\n0,", "\n1,")


def no_key(text: str) -> str:
    return text.replace("ecdsa-sha2-nistp384 A", "ecdsa-sha2-nistp384 B")


def short(text: str) -> str:
    return text.replace(",int8", "")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (no_header, "the first line must be client,group,public_key"),
        (twice, "clients 0 and 1 have one and the same key"),
        (out_of_place, "client 0 must stand in its place, got client 1"),
        (no_key, "the key of client 0 cannot be read"),
        (short, "not enough values"),
    ],
)
def test_a_damaged_registry_is_refused(
    made: Path, tmp_path: Path, change: Callable[[str], str], told: str
) -> None:
    path = tmp_path / "registry.csv"
    path.write_text(change(server_keys(made).registry.read_text()))
    with pytest.raises(ValueError, match=rf"registry\.csv: .*{told}"):
        Registry.read(path)
