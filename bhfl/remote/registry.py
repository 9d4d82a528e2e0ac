"""Which client each public key is: a table that the server alone reads.

A client says nothing of this itself, so that none can choose its number or its group.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bhfl.files import write_rows

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_COLUMNS = ["client", "group", "public_key"]


@dataclass(frozen=True)
class Enrolled:
    """A client that has a key."""

    client: int
    """Its position in the fleet, from 0."""
    group: str
    """The name of its group."""
    public_key: str
    """Its public key as a line of OpenSSH, without a comment."""

    @cached_property
    def pem(self) -> bytes:
        """The public key as Flower sends and keeps it.

        Raises:
            ValueError: It is no key of an elliptic curve.
        """
        from cryptography.hazmat.primitives import serialization as form

        pem, spki = form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
        return self._key.public_bytes(pem, spki)

    def has_signed(self, said: bytes, signature: bytes) -> bool:
        """Whether a signature of what was said is by this client's key, as Flower signs."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            self._key.verify(signature, said, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    @cached_property
    def _key(self) -> "EllipticCurvePublicKey":
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            key = form.load_ssh_public_key(self.public_key.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"the key of client {self.client} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError(f"the key of client {self.client} must be of an elliptic curve")
        return key


class Registry:
    """All clients that have a key.

    Args:
        clients: The clients, in their order.

    Raises:
        ValueError: They are not numbered from 0 on, or two have one key.
    """

    def __init__(self, clients: Sequence[Enrolled]) -> None:
        self.clients = list(clients)
        for place, one in enumerate(self.clients):
            if one.client != place:
                raise ValueError(f"client {place} must stand in its place, got client {one.client}")
        self.of_key: dict[bytes, Enrolled] = {}
        """The client of each public key, see `Enrolled.pem`."""
        for one in self.clients:
            other = self.of_key.setdefault(one.pem, one)
            if other is not one:
                raise ValueError(
                    f"clients {other.client} and {one.client} have one and the same key"
                )

    @classmethod
    def read(cls, path: Path) -> "Registry":
        """The clients of a file that `write` wrote.

        Raises:
            ValueError: It is no such table, naming it.
            OSError: It cannot be read.
        """
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        try:
            if not rows or rows[0] != _COLUMNS:
                raise ValueError(f"the first line must be {','.join(_COLUMNS)}")
            return cls([Enrolled(int(client), group, key) for client, group, key in rows[1:]])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write the table, one client a line.

        Raises:
            OSError: It cannot be written.
        """
        rows = [(one.client, one.group, one.public_key) for one in self.clients]
        write_rows(path, [_COLUMNS, *rows])

    def fits(self, groups: Sequence[str]) -> None:
        """Make sure that the keys are those of a fleet.

        Args:
            groups: The name of each client's group in the configuration, that of client 0 first.

        Raises:
            ValueError: They are not, naming the first difference.
        """
        if len(groups) != len(self.clients):
            raise ValueError(
                f"the keys are those of {len(self.clients)} clients, and the fleet has "
                f"{len(groups)}: make new ones by `bhfl serve --make_keys`"
            )
        for one, group in zip(self.clients, groups, strict=True):
            if one.group != group:
                raise ValueError(
                    f"client {one.client} has a key of the group {one.group}, and the fleet has "
                    f"it in {group}: make new keys by `bhfl serve --make_keys`"
                )
