"""Methods against figures that were published: Kendall's tau-b between both, for each bit group and
on average.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bhfl.checks import suggestion
from bhfl.files.lines import number_of
from bhfl.report.correct import shares_right
from bhfl.report.metric import AVERAGE
from bhfl.report.reading import read_table
from bhfl.report.rows import Row, Section
from bhfl.report.tables import Cell, Table
from bhfl.settings import Role
from bhfl.told import told_of

if TYPE_CHECKING:
    import numpy as np

COLUMNS = ("method", "fleet", "bits", "value")
MEAN = "average"
"""What stands under ``bits`` for the mean over clients."""
DRAWS = 1000
CLOSE = 0.5
"""Points of accuracy below which two methods are hardly told apart."""
LEAST_SEEDS = 3
"""The seeds from which some are drawn."""

Published = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Fleet, to bits, to method, to value."""


def read_published(path: str | Path) -> Published:
    """The figures of a CSV with the columns ``method``, ``fleet``, ``bits`` and ``value``.

    Args:
        path: ``fleet`` has the shares of the groups in per cent, from the least bits to the most,
            such as ``80/20``; ``bits`` is a number, or ``average`` for the mean over clients.

    Raises:
        ValueError: A column is missing, a figure is none, or one is there twice.
        OSError: It cannot be read.
    """
    rule = "--published must be a CSV with the columns method, fleet, bits and value"
    found: dict[str, dict[str, dict[str, float]]] = {}
    for place, row in enumerate(read_table(path, rule), 1):
        texts = {name: str(row.get(name) or "").strip() for name in COLUMNS}
        method, bits = texts["method"], texts["bits"]
        known = bits.isdecimal() or bits == MEAN
        if not (method and texts["fleet"] and known and math.isfinite(number_of(texts["value"]))):
            raise ValueError(f"{rule}, got {row} in row {place} of {path}")
        column = found.setdefault(texts["fleet"], {}).setdefault(bits, {})
        if method in column:
            raise ValueError(
                f"--published must have one value of each method, fleet and bits, got {method}, "
                f"{texts['fleet']}, {bits} again in row {place} of {path}"
            )
        column[method] = number_of(texts["value"])
    if not found:
        raise ValueError(f"{rule}, got none in {path}")
    return found


def check_fleets(published: Published, sections: Sequence[Section]) -> None:
    """Refuse figures of fleets that no run has.

    Raises:
        ValueError: Naming the fleets that there are.
    """
    there = {_fleet(section) for section in sections}
    if not there & published.keys():
        raise ValueError(
            f"--published must have a fleet of the runs, got {', '.join(published)}"
            f"{suggestion(next(iter(published)), filter(None, there))}"
        )


# ---- the table -----------------------------------------------------------------------------------


def against(section: Section, published: Published) -> Table | None:
    """The table of what a section's order of methods has to do with the published one; None where
    fewer than two methods of its fleet were published, or its groups are others.

    Kendall's tau-b (Kendall 1945, doi:10.2307/2332303) is 1 where all pairs of methods stand in the
    same order. Its interval holds 95 % of what draws with replacement give (Efron 1979): of test
    samples, the same for all methods, and of seeds for methods that have three or more.
    """
    columns = published.get(_fleet(section), {})
    groups = [group for group in section.groups if group != AVERAGE]
    widths = sorted((bits for bits in columns if bits != MEAN), key=int)
    if not section.comparable or len(widths) != len(groups):
        return None
    compared = _Compared(section, groups)
    rows = []
    for bits, group in [*zip(widths, groups, strict=True), (MEAN, AVERAGE)]:
        known = columns.get(bits, {})
        methods = [row for row in section.finished if row.label in known]
        if len(methods) > 1:
            rows.append(compared.row(bits, group, methods, known))
    if not rows:
        return None
    return Table(
        title="Against what was published",
        head=["published", "here", "methods", "tau-b", "95 % of draws", f"closer than {CLOSE}"],
        rows=rows,
        notes=[
            "Kendall's tau-b between the published figures and those here: 1 is the same order, "
            "-1 the opposite",
            f"95 % of {DRAWS:,} draws of test samples, the same for all methods, and of seeds "
            f"where a method has {LEAST_SEEDS} or more; none without correct.json of every run",
            f"closer than {CLOSE}: pairs of methods whose figures here differ by less",
        ],
    )


@dataclass(frozen=True)
class _Compared:
    """The methods of a section.

    Args:
        section: What is compared.
        groups: Its bit groups.
    """

    section: Section
    groups: Sequence[str]

    def row(
        self, bits: str, group: str, methods: Sequence[Row], known: Mapping[str, float]
    ) -> list[Cell]:
        """The cells of a column of published figures.

        Args:
            bits: The name of the published column.
            group: The bit group, or the average.
            methods: The rows that have a figure there.
            known: The published figures by method.
        """
        metric = self.section.metric
        values = [metric.sign * row.value(group).mean for row in methods]
        theirs = [known[row.label] for row in methods]
        close = 0
        for i, value in enumerate(values):
            close += sum(abs(value - other) * metric.scale < CLOSE for other in values[:i])
        low, high = self._interval(group, methods, theirs)
        between = "-" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
        tau = f"{float(tau_b(theirs, values)):.2f}"
        name = MEAN if group == AVERAGE else group
        pairs = math.comb(len(values), 2)
        texts = [bits, name, str(len(methods)), tau, between, f"{close} of {pairs}"]
        return list(map(Cell, texts))

    def _interval(
        self, group: str, methods: Sequence[Row], theirs: Sequence[float]
    ) -> tuple[float, float]:
        """What holds 95 % of the draws' tau-b; NaN where samples are not known."""
        import numpy as np

        right = [self._samples[row.label] for row in methods]
        if self.section.metric.tag != "test/acc" or len({len(one.T) for one in right}) > 1:
            return math.nan, math.nan
        if any(one.size == 0 for one in right):
            return math.nan, math.nan
        place = [*self.groups, AVERAGE].index(group)
        drawn = draw([one[:, place] for one in right])
        found = tau_b(theirs, drawn)
        low, high = np.nanquantile(found, [0.025, 0.975])
        return float(low), float(high)

    @cached_property
    def _samples(self) -> dict[str, "np.ndarray"]:
        """The share of right models ``[seeds, groups and average, samples]`` of each row; empty
        where some run does not tell.
        """
        import numpy as np

        weights = np.array(_shares(self.section))
        found = {}
        for row in self.section.finished:
            runs = []
            for run in row.runs:
                right = shares_right(run)
                if right.keys() >= set(self.groups):
                    each = np.stack([right[group] for group in self.groups])
                    runs.append(np.vstack([each, weights @ each]))
            whole = len(runs) == len(row.runs) and len({one.shape for one in runs}) == 1
            found[row.label] = np.stack(runs) if whole else np.zeros((0, 0, 0))
        return found


def draw(right: Sequence["np.ndarray"]) -> "np.ndarray":
    """Accuracies ``[draws, methods]`` of test samples that are drawn with replacement, the same for
    all methods, and of seeds.

    Args:
        right: The share of right models of each method, ``[seeds, samples]``. Where there are
            `LEAST_SEEDS` seeds or more as many are drawn, the same places for methods with as many.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    samples = right[0].shape[1]
    stacked = np.concatenate(right)
    ends = np.cumsum([len(one) for one in right])
    found = np.empty((DRAWS, len(right)))
    for i in range(DRAWS):
        counts = np.bincount(rng.integers(samples, size=samples), minlength=samples)
        by_seed = np.split(stacked @ counts / samples, ends[:-1])
        picks: dict[int, Any] = {}
        for place, values in enumerate(by_seed):
            seeds = len(values)
            if seeds >= LEAST_SEEDS:
                picks.setdefault(seeds, rng.integers(seeds, size=seeds))
                values = values[picks[seeds]]
            found[i, place] = values.mean()
    return found


def tau_b(known: Sequence[float], found: Any) -> "np.ndarray":
    """Kendall's tau-b between some values ``[n]`` and others ``[..., n]`` (Kendall 1945,
    doi:10.2307/2332303); NaN where all of one are equal.

    >>> float(tau_b([1, 2, 3], [10, 30, 20])).__round__(3)
    0.333
    """
    import numpy as np

    first, second = np.triu_indices(len(known), k=1)
    own = np.asarray(known, float)
    other = np.asarray(found, float)
    ours = np.sign(own[first] - own[second])
    theirs = np.sign(other[..., first] - other[..., second])
    untied = np.sqrt(np.sum(ours**2) * np.sum(theirs**2, axis=-1))
    with np.errstate(invalid="ignore"):
        tau: np.ndarray = np.sum(ours * theirs, axis=-1) / untied
    return tau


# ---- fleets --------------------------------------------------------------------------------------


def _shares(section: Section) -> list[float]:
    """The share of each group among the clients, in the fleet's order; nothing where it is not
    told.
    """
    clients = told_of(section.runs[0].told, [Role.TASK]).get("clients")
    if isinstance(clients, dict):
        clients = [{"count": count} for count in clients.values()]
    sizes = []
    for entry in clients if isinstance(clients, list) else []:
        size = entry.get("count", entry.get("fraction")) if isinstance(entry, dict) else None
        if not isinstance(size, int | float):
            return []
        sizes.append(size)
    total = sum(sizes)
    return [size / total for size in sizes] if total else []


def _fleet(section: Section) -> str:
    """A fleet as published figures call it: ``50/50``."""
    return "/".join(f"{100 * share:.4g}" for share in _shares(section))
