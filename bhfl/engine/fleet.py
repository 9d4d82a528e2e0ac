"""Who takes part: groups of clients, each with one bit specification."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bhfl.checks import checked, count, or_none, suggestion, within
from bhfl.quant import BitSpec


@dataclass(frozen=True, kw_only=True)
class Group:
    """Clients of one spec: a `count` of them, or a `fraction` of ``num_clients``."""

    bits: BitSpec
    count: int | None = None
    fraction: float | None = None


class Fleet:
    """The fleet as a user writes it.

    Three spellings, the same in YAML, on the command line and in Python::

        {8: 5, 32: 5}                                                      # bits: count
        {ternary: 3, 4: 3, float32: 4}                                     # preset: count
        [{bits: 8, fraction: 0.5}, {bits: wage2888, fraction: 0.5}]        # shares of num_clients

    Args:
        value: One of them, or a Fleet.

    Raises:
        ValueError: With every problem of the value, one a line.
    """

    def __init__(self, value: Any) -> None:
        self.groups: list[Group] = list(value.groups) if isinstance(value, Fleet) else _parse(value)

    @property
    def by_fraction(self) -> bool:
        """Whether the groups are shares, so that the number of clients is still to be said."""
        return self.groups[0].fraction is not None

    def specs(self, num_clients: int | None = None) -> list[BitSpec]:
        """The spec of each client, groups in their order.

        Args:
            num_clients: Size of a fleet given by fractions; for counts None, or their sum.
        """
        counts = [group.count or 0 for group in self.groups]
        if self.by_fraction:
            if num_clients is None:
                raise ValueError(
                    "clients are given by fraction: num_clients must say how many there are, got "
                    "None"
                )
            fractions = [group.fraction or 0.0 for group in self.groups]
            counts = _largest_remainder(fractions, num_clients)
            if 0 in counts:
                share = f"a fraction of {fractions[counts.index(0)]:g}"
                raise ValueError(
                    f"clients: {share} must be at least one of {num_clients} clients, got 0"
                )
        elif num_clients is not None and num_clients != sum(counts):
            raise ValueError(
                f"num_clients must be {sum(counts)}, the sum of the counts in clients, got "
                f"{num_clients}"
            )
        specs: list[BitSpec] = []
        for group, size in zip(self.groups, counts, strict=True):
            specs += [group.bits] * size
        return specs

    def to_config(self) -> Any:
        """The shortest spelling that parses to this fleet: plain numbers, strings, dicts and
        lists.
        """
        groups = self.to_list()
        if self.by_fraction or not all(isinstance(group["bits"], str) for group in groups):
            return groups
        return {group["bits"]: group["count"] for group in groups}

    def to_list(self) -> list[dict[str, Any]]:
        """The groups in their order, each with its bits and its size."""
        size = "fraction" if self.by_fraction else "count"
        return [{"bits": _spell(group.bits), size: getattr(group, size)} for group in self.groups]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fleet) and other.groups == self.groups

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Fleet({self.to_config()!r})"


def _spell(spec: BitSpec) -> str | dict[str, Any]:
    try:
        # a label is shorter, but not every spec has one that reads back to it
        if BitSpec.parse(spec.label) == spec:
            return spec.label
    except ValueError:
        pass
    default = vars(BitSpec())
    return {name: value for name, value in vars(spec).items() if value != default[name]}


def _parse(value: Any) -> list[Group]:
    if isinstance(value, Mapping):
        entries: list[Any] = [{"bits": bits, "count": count} for bits, count in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        entries = list(value)
    else:
        raise ValueError(
            f"clients must be a mapping such as {{8: 5, 32: 5}} or a list of groups, got {value!r}"
        )
    if not entries:
        raise ValueError(f"clients must hold at least one group, got {value!r}")
    groups: list[Group] = []
    problems: list[str] = []
    for i, entry in enumerate(entries):
        try:
            groups.append(_parse_group(entry))
        except ValueError as error:
            problems.append(f"clients[{i}]: {error}")
    problems = problems or _across(groups)
    if problems:
        raise ValueError("\n".join(problems))
    return groups


def _parse_group(entry: Any) -> Group:
    if not isinstance(entry, Mapping):
        raise ValueError(f"must be a mapping with bits and count or fraction, got {entry!r}")
    known = [f.name for f in fields(Group)]
    for key in entry:
        if key not in known:
            raise ValueError(f"unknown key {key!r}{suggestion(str(key), known)}")
    if "bits" not in entry:
        raise ValueError(f"bits is missing in {dict(entry)!r}")
    number, fraction = entry.get("count"), entry.get("fraction")
    if (number is None) == (fraction is None):
        raise ValueError(f"needs either count or fraction, got {dict(entry)!r}")
    checked("count", number, or_none(count(1, 10**7)))
    checked("fraction", fraction, or_none(within("(0, 1]")))
    return Group(bits=BitSpec.parse(entry["bits"]), count=number, fraction=fraction)


def _across(groups: list[Group]) -> list[str]:
    """What is wrong between groups that are right one by one."""
    problems = []
    if any(g.count is None for g in groups) and any(g.fraction is None for g in groups):
        problems.append("clients must all have a count or all have a fraction, got a mix")
    # 0.1 ten times sums to less than 1 in floating point
    elif groups[0].fraction is not None and not math.isclose(
        total := sum(g.fraction or 0 for g in groups), 1.0
    ):
        problems.append(f"clients: fractions must sum to 1, got {total:g}")
    for label, times in sorted(Counter(group.bits.label for group in groups).items()):
        if times > 1:
            problems.append(f"clients: {label} is given more than once; merge its groups into one")
    return problems


def _largest_remainder(fractions: list[float], total: int) -> list[int]:
    quotas = [fraction * total for fraction in fractions]
    # 0.29 * 100 comes to 28.999...: rounding must not cost a group a client
    counts = [int(quota + 1e-9) for quota in quotas]
    for i in sorted(range(len(counts)), key=lambda i: counts[i] - quotas[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts
