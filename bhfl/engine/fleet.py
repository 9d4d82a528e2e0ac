"""Who takes part: groups of clients, and what each group says of its devices."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from bhfl.checks import (
    checked,
    choice,
    count,
    is_integer,
    or_none,
    refuse,
    suggestion,
    text,
    within,
)
from bhfl.engine.devices import Group
from bhfl.engine.optimizers import parse_optimizer
from bhfl.quant import BitSpec
from bhfl.quant.backends import BACKENDS, take_offered
from bhfl.quant.spec import LONGEST_NAME

RESERVED = ("all", "avg", "global", "min")
"""What tags and tables call all clients together, which no group can be called."""


class Fleet:
    """The fleet as a user writes it.

    Three spellings, the same in YAML, on the command line and in Python::

        {8: 5, 32: 5}                                                      # bits: count
        {ternary: 3, 4: 3, float32: 4}                                     # preset: count
        [{bits: 8, fraction: 0.5}, {bits: wage2888, fraction: 0.5}]        # shares of num_clients

    A group of the last spelling may also say what its devices are: ``name``, ``backend``,
    ``layers`` (bits by patterns of layer names), ``frozen`` (``keep`` or ``quantize``),
    ``local_epochs`` or ``local_steps``, ``optimizer`` (``class_path`` and ``init_args``),
    ``profile`` and ``schedule`` (the bits that take the place of ``bits``, by the rounds that are
    done by then), as in
    ``{bits: 8, count: 5, name: phones, backend: auto, profile: phone-4g}``. What a group says goes
    before what the trainer and the model say; see `Group`.

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

    def counts(self, num_clients: int | None = None) -> list[int]:
        """The number of clients of each group.

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
                raise ValueError(
                    f"clients: a fraction of {fractions[counts.index(0)]:g} must be at least one "
                    f"of {num_clients} clients, got 0"
                )
        elif num_clients is not None and num_clients != sum(counts):
            raise ValueError(
                f"num_clients must be {sum(counts)}, the sum of the counts in clients, got "
                f"{num_clients}"
            )
        return counts

    def to_config(self) -> Any:
        """The shortest spelling that parses to this fleet: plain numbers, strings, dicts and
        lists.
        """
        groups = self.to_list()
        plain = all(group.keys() == {"bits", "count"} for group in groups)
        if not plain or not all(isinstance(group["bits"], str) for group in groups):
            return groups
        return {group["bits"]: group["count"] for group in groups}

    def to_list(self) -> list[dict[str, Any]]:
        """The groups in their order, each with its bits, its size and what else it says."""
        return [_written(group) for group in self.groups]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fleet) and other.groups == self.groups

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Fleet({self.to_config()!r})"


def _written(group: Group) -> dict[str, Any]:
    default = Group(bits=group.bits)
    said = {key: value for key, value in vars(group).items() if value != getattr(default, key)}
    if group.layers:
        said["layers"] = {pattern: spec.to_config() for pattern, spec in group.layers.items()}
    if group.schedule:
        said["schedule"] = {round: spec.to_config() for round, spec in group.schedule.items()}
    return {"bits": group.bits.to_config(), **said}


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
    refuse(problems or _across(groups))
    return groups


def _parse_group(entry: Any) -> Group:
    _check_keys(entry)
    said = {key: value for key, value in entry.items() if value is not None}
    said["bits"] = BitSpec.parse(entry["bits"])
    for key, check in _CHECKS.items():
        checked(key, said.get(key), or_none(check))
    if said.get("frozen") == "quantize" and said["bits"].is_float:
        raise ValueError("frozen: quantize needs bits below 32, got bits: 32")
    said["schedule"] = _schedule(said)
    if "layers" in said:
        bits = [said["bits"], *said["schedule"].values()]
        # the most, which may be float32
        said["layers"] = _layers(said["layers"], bits[-1])
    if "optimizer" in said:
        try:
            said["optimizer"] = parse_optimizer(said["optimizer"])
        except ValueError as error:
            raise ValueError(f"optimizer {error}") from error
    group = Group(**said)
    checked("name", group.label, _name)
    for stage in group.stages().values():
        specs = [stage.bits, *group.layers.values()]
        unfit = [BACKENDS[stage.backend].unfit(spec) for spec in specs]
        if all(unfit):
            raise ValueError(f"backend {group.backend!r} cannot serve these bits: {unfit[0]}")
    return group


def _check_keys(entry: Any) -> None:
    """Refuse a group with keys that it does not have, or that exclude each other."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"must be a mapping with bits and count or fraction, got {entry!r}")
    known = [f.name for f in fields(Group)]
    for key in entry:
        if key not in known:
            raise ValueError(f"unknown key {key!r}{suggestion(str(key), known)}")
    if "bits" not in entry:
        raise ValueError(f"bits is missing in {dict(entry)!r}")
    said = {key for key, value in entry.items() if value is not None}
    if len(said & {"count", "fraction"}) != 1:
        raise ValueError(f"needs either count or fraction, got {dict(entry)!r}")
    if {"local_epochs", "local_steps"} <= said:
        raise ValueError(f"takes local_epochs or local_steps, not both, got {dict(entry)!r}")


def _layers(value: Any, bits: BitSpec) -> dict[str, BitSpec]:
    if not isinstance(value, Mapping):
        raise ValueError(f"layers must be a mapping of patterns to bits, got {value!r}")
    if value and bits.is_float:
        raise ValueError(
            "layers needs bits below 32 beside it: give the low bits as bits, and 32 in layers to "
            f"what stays float32, got bits: 32 and layers: {dict(value)!r}"
        )
    found = {}
    for pattern, its in value.items():
        try:
            found[str(pattern)] = BitSpec.parse(its)
        except ValueError as error:
            raise ValueError(f"layers[{pattern}]: {error}") from error
    return found


def _schedule(said: Mapping[str, Any]) -> dict[int, BitSpec]:
    """The bits that a group comes to, by the rounds that are done by then."""
    value = said.get("schedule")
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"schedule must be a mapping of rounds to bits such as {{20: 4, 40: 8}}, got {value!r}"
        )
    if "name" not in said:
        raise ValueError(
            "schedule needs a name beside it, which tags call the group by whatever its bits, got "
            f"bits {said['bits'].label} and a schedule of rounds {', '.join(map(str, value))}"
        )
    found: dict[int, BitSpec] = {}
    last, bits = 0, said["bits"]
    for key, its in value.items():
        # keys of JSON are text
        round = int(key) if isinstance(key, str) and key.isdecimal() else key
        if not is_integer(round) or round <= last:
            rule = f"rise, got {key!r} after {last}" if found else f"be from 1 on, got {key!r}"
            raise ValueError(f"schedule: rounds must {rule}")
        try:
            spec = BitSpec.parse(its)
        except ValueError as error:
            raise ValueError(f"schedule[{key}]: {error}") from error
        if spec == bits or spec.precision < bits.precision:
            raise ValueError(
                f"schedule must not fall back: bits must rise, got {spec.label} after {bits.label}"
            )
        found[round] = spec
        last, bits = round, spec
    return found


def _backend(value: Any) -> str:
    """What is wrong with the name of a backend, those of other packages among them."""
    if str(value) not in BACKENDS:
        take_offered()
    return choice(*BACKENDS)(value)


def _name(value: Any) -> str:
    """What is wrong with the name of a group, of which tags and names of files are made."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]+", value):
        return f"must be letters, digits, '_', '-' or '.', got {value!r}"
    if len(value.encode()) > LONGEST_NAME:
        return f"must have at most {LONGEST_NAME} bytes, got {value[:20]!r} ..."
    if value in RESERVED:
        return f"must be none of {', '.join(RESERVED)}, which mean all clients, got {value!r}"
    return ""


_CHECKS = {
    "count": count(1, 10**7),
    "fraction": within("(0, 1]"),
    "name": _name,
    "frozen": choice("keep", "quantize"),
    "backend": _backend,
    "local_epochs": count(1),
    "local_steps": count(1),
    "profile": text,
}
"""What the options of a group must be that are plain values."""


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
    for label, times in sorted(Counter(group.label for group in groups).items()):
        if times > 1:
            problems.append(
                f"clients: {label} is given more than once; merge its groups into one, or give "
                "each a name"
            )
    return problems


def _largest_remainder(fractions: list[float], total: int) -> list[int]:
    quotas = [fraction * total for fraction in fractions]
    # 0.29 * 100 comes to 28.999...: rounding must not cost a group a client
    counts = [int(quota + 1e-9) for quota in quotas]
    for i in sorted(range(len(counts)), key=lambda i: counts[i] - quotas[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts
