"""What a client came to in a round, until the verdict; and what it had loaded before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Pending:
    """What a client came to in a round that has no verdict yet."""

    round: int
    sha256: str
    """The digest of its file; empty where the verdict is to change it."""
    files: Mapping[Path, Path]
    """What each file that was written for it is to be called."""
    names: Mapping[str, Sequence[str]]
    """All that it holds, in order."""
    before: Path | None
    """The file of what it does not hold anew."""

    @property
    def path(self) -> Path:
        """The file of what is its own."""
        return list(self.files)[-1]


@dataclass
class Loaded:
    """What was loaded last: as long as nobody changes it, its file holds it."""

    client: int
    path: Path
    tensors: dict[tuple[str, str], tuple[Tensor, int]]
    """Each by its part and name, with how often it had been changed in place."""

    @classmethod
    def of(cls, client: int, path: Path, state: Mapping[str, Any]) -> "Loaded":
        """A state as it was just loaded from a file."""
        tensors = {}
        for part, values in state.items():
            for name, value in values.items() if isinstance(values, Mapping) else ():
                if isinstance(value, Tensor):
                    tensors[part, name] = value, value._version
        return cls(client, path, tensors)

    def without(self, part: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values that the file does not hold in the same place."""
        return {name: one for name, one in values.items() if not self._holds((part, name), one)}

    def _holds(self, place: tuple[str, str], value: Any) -> bool:
        tensor, count = self.tensors.get(place, (None, 0))
        return tensor is not None and tensor is value and tensor._version == count
