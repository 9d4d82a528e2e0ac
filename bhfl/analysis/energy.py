"""Energy that a machine has used, where its processor counts it (RAPL, by Linux's powercap)."""

import re
from collections.abc import Sequence
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the counters; those of Intel's and AMD's processors, often to root alone."""


class EnergyMeter:
    """The counters of all processor packages. They count what every process of the machine uses.

    Args:
        root: The folder with a folder for each counter.
    """

    def __init__(self, root: Path) -> None:
        self._counters: list[Path] = []
        self._ranges: list[int] = []
        for folder in sorted(root.glob("*:*")) if root.is_dir() else ():
            # a counter of a part, such as a package's cores, has one more number in its name
            if not re.fullmatch(r"[\w-]+:\d+", folder.name):
                continue
            try:
                # another counter, of the platform, would count the packages once more
                if not (folder / "name").read_text().startswith("package"):
                    continue
                _number(folder / "energy_uj")
                self._ranges.append(_number(folder / "max_energy_range_uj"))
            except (OSError, ValueError):
                continue
            self._counters.append(folder / "energy_uj")

    def __bool__(self) -> bool:
        """Whether there is any counter that this process may read."""
        return bool(self._counters)

    def read(self) -> list[int]:
        """What the counters show, in microjoules."""
        return [_number(path) for path in self._counters]

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """The energy used between two readings.

        Args:
            before: The first reading.
            after: The second; a counter that has reached its end since has begun anew, once.
        """
        total = 0
        for start, end, most in zip(before, after, self._ranges, strict=True):
            total += end - start if end >= start else end - start + most
        return total / 1e6


def _number(path: Path) -> int:
    return int(path.read_text())
