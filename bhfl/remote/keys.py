"""The keys of a federation: who the server is, and which client each key is.

``make_keys`` writes them once, before the first run. The server keeps ``server/``, each client is
given its own folder of ``clients/`` and nothing else, and ``ca.key`` is put away: no run reads it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from bhfl.checks import refuse
from bhfl.files import temporary_beside, user_path
from bhfl.remote.flower import needs_flower
from bhfl.remote.registry import Enrolled, Registry

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import PrivateFormat

DAYS = 3650
"""Days for which the certificates are good, from the day before they are made."""
LOCAL = ("127.0.0.1", "localhost")
"""Names that every server has: the SuperLink behind it listens there."""
_PRIVATE = 0o600
_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


class ServerKeys:
    """The files that a server needs, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        """The certificate of the authority that signed the server's."""
        self.certificate = folder / "server.pem"
        """The server's certificate."""
        self.private = folder / "server.key"
        """The private key of the certificate."""
        self.registry = folder / "registry.csv"
        """The table of the clients and their public keys."""


class ClientKeys:
    """The files that a client needs, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        """The certificate by which the client knows its server."""
        self.private = folder / "client.key"
        """The client's private key."""
        self.public = folder / "client.pub"
        """Its public key, which says in words which client it is."""


def make_keys(folder: str | os.PathLike[str], groups: Sequence[str], hosts: Sequence[str]) -> Path:
    """Make all keys of a federation: the server's certificate, and one key a client.

    Args:
        folder: Where to put them: a folder that is still to be made, or an empty one.
        groups: The name of each client's group, the first one that of client 0.
        hosts: The names and addresses by which clients reach the server, besides `LOCAL`.

    Returns:
        The folder: ``ca.key``, ``server/`` and ``clients/client-ID/``. Private files are for their
        owner alone (mode 0600).

    Raises:
        ValueError: There are no clients, or a host is no name or address.
        FileExistsError: There is something in the folder; no key is ever written over.
        ImportError: Flower is not installed, which brings what makes keys.
        OSError: The folder cannot be written.
    """
    needs_flower()
    place = user_path(folder)
    refuse([*map(_no_host, hosts), "" if groups else "keys: there must be clients, got none"])
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(
            f"{place} must be a new or an empty folder: keys are never written over"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    # all of them or none
    making = temporary_beside(place)
    try:
        making.mkdir(mode=0o700)
        _write(making, groups, list(dict.fromkeys([*LOCAL, *hosts])))
        making.replace(place)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return place


def server_keys(folder: str | os.PathLike[str]) -> ServerKeys:
    """The server's files of a folder that `make_keys` made, or of its folder ``server``.

    Raises:
        ValueError: One is missing, or a private one is readable by others.
    """
    place = user_path(folder)
    within = place / "server"
    keys = ServerKeys(within if within.is_dir() else place)
    _check([keys.ca, keys.certificate, keys.registry], keys.private)
    return keys


def client_keys(folder: str | os.PathLike[str]) -> ClientKeys:
    """The files of a client, in the folder that it was given.

    Raises:
        ValueError: One is missing, or the private one is readable by others.
    """
    keys = ClientKeys(user_path(folder))
    _check([keys.ca, keys.public], keys.private)
    return keys


def _check(public: Sequence[Path], private: Path) -> None:
    """ValueError where a file of a folder of keys is missing, or its private one is open."""
    for path in [*public, private]:
        if not path.is_file():
            raise ValueError(f"keys: there is no file {path}: `bhfl serve --make_keys` makes it")
    mode = stat.S_IMODE(private.stat().st_mode)
    if mode & 0o077:
        raise ValueError(
            f"keys: {private} must be for its owner alone, and has mode {mode:03o}: chmod 600 it"
        )


def _no_host(host: str) -> str:
    """What is wrong with a public name or address of the server; empty if nothing is."""
    if _address(host) is not None or _NAME.fullmatch(host):
        return ""
    return f"host must be a name or an address without a port, got {host!r}"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _write(folder: Path, groups: Sequence[str], hosts: Sequence[str]) -> None:
    """Write all keys into an empty folder."""
    from cryptography.hazmat.primitives import serialization

    authority = _new_key()
    root = _authority(authority)
    server = _new_key()
    pem = serialization.Encoding.PEM
    shown = root.public_bytes(pem)
    private = serialization.PrivateFormat
    _write_private(folder / "ca.key", authority, private.PKCS8)
    keys = ServerKeys(folder / "server")
    keys.folder.mkdir(mode=0o700)
    keys.ca.write_bytes(shown)
    keys.certificate.write_bytes(_server(server, authority, root, hosts).public_bytes(pem))
    _write_private(keys.private, server, private.PKCS8)
    (folder / "clients").mkdir(mode=0o700)
    enrolled = []
    for client, group in enumerate(groups):
        own = ClientKeys(folder / "clients" / f"client-{client}")
        own.folder.mkdir(mode=0o700)
        key = _new_key()
        line = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        public = line.decode()
        own.ca.write_bytes(shown)
        # as SuperNodes read it
        _write_private(own.private, key, private.OpenSSH)
        own.public.write_text(f"{public} client {client} ({group})\n")
        enrolled.append(Enrolled(client, group, public))
    Registry(enrolled).write(keys.registry)


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _write_private(path: Path, key: EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption

    # made with its mode: at no time can others read it
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, form, NoEncryption()))


def _named(name: str, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """The beginning of a certificate: whose it is, for which key, and for how long."""
    from cryptography import x509

    begins = datetime.now(UTC) - timedelta(days=1)  # clocks of clients may be behind
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(key: EllipticCurvePrivateKey) -> x509.Certificate:
    """The certificate of the authority, which signs itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bhfl authority")])
    return (
        _named("bhfl authority", key)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _server(
    key: EllipticCurvePrivateKey,
    authority: EllipticCurvePrivateKey,
    root: x509.Certificate,
    hosts: Sequence[str],
) -> x509.Certificate:
    """The certificate of a server that is reached at some names and addresses."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    names: list[x509.GeneralName] = []
    for host in hosts:
        address = _address(host)
        names.append(x509.IPAddress(address) if address else x509.DNSName(host))
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    return (
        _named("bhfl server", key)
        .issuer_name(root.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issued_by, critical=False)
        .sign(authority, hashes.SHA384())
    )
