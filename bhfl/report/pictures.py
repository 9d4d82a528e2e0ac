"""The report's pictures: a method has the same colour in all of them, and legends stand below the
data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bhfl.report import bits, weights
from bhfl.report.drawing import PALETTE, bare, logarithmic, plain, pyplot, svg
from bhfl.report.goals import SIMULATED
from bhfl.report.rows import AVERAGE, Row, Section, Spread
from bhfl.tags import LOST

Colours = Mapping[str, str]
"""Label of a row to its colour."""

_OVER = {
    "over rounds": ("round", "round"),
    "over bytes sent by clients": ("comm/uplink_MB", "MB up"),
    "over all bytes sent": ("comm/total_MB", "MB up and down"),
    "over simulated time": (SIMULATED, "simulated seconds"),
}
"""What accuracy is drawn over: tag and name of the axis."""
_SIZE = (4.5, 3.0)
_WIDE = 5
"""Ratio of methods' ends from which on their axis is logarithmic."""


class Picture(NamedTuple):
    """What it shows, and the picture as SVG."""

    title: str
    svg: bytes


class Chapter(NamedTuple):
    """Pictures under one heading, with a line on how to read them."""

    title: str
    about: str
    pictures: list[Picture]


class Line(NamedTuple):
    """A curve: its row, and mean x, mean y and deviation of y by round."""

    row: Row
    x: list[float]
    y: list[float]
    deviation: list[float]


def colours(sections: Sequence[Section]) -> dict[str, str]:
    """A colour for each label of the whole report."""
    found: dict[str, None] = {}
    for section in sections:
        found |= dict.fromkeys(row.label for row in section.rows)
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(found)}


def chapters(section: Section, colours: Colours) -> list[Chapter]:
    """All pictures of a section; chapters without data are left out.

    Raises:
        ImportError: matplotlib is not installed; the message says what to install.
    """
    parts = [_accuracy(section, colours, group) for group in section.groups]
    parts += [_frontier(section, colours), _weights(section), _prowd(section, colours)]
    parts += [_dequantizer(section, colours), _bits(section), _lost(section, colours)]
    return [part for part in parts if part.pictures]


# ---- chapters ------------------------------------------------------------------------------------


def _accuracy(section: Section, colours: Colours, group: str) -> Chapter:
    pictures = []
    for title, (tag, axis) in _OVER.items():
        lines = _lines(section, f"acc_{group}", tag, 100)
        if any(line.x[-1] for line in lines):
            pictures.append(Picture(title, _curves(lines, colours, axis, "validation accuracy, %")))
    about = "Mean over seeds, and one standard deviation around it; dashed: not finished."
    whose = "average over clients" if group == AVERAGE else group
    return Chapter(f"Accuracy: {whose}", about, pictures)


_NO_LINE = (
    "No line joins the best, as the methods were not all run with the same "
    "seeds and known settings."
)


def _frontier(section: Section, colours: Colours) -> Chapter:
    pictures = []
    seeds = {frozenset(row.by_seed(AVERAGE)) for row in section.finished}
    joined = section.comparable and len(seeds) == 1
    for axis, tag in {"MB up": "comm/uplink_MB", "MB up and down": "comm/total_MB"}.items():
        points = [(row, row.mean(tag), row.accuracy(AVERAGE)) for row in section.finished]
        points = [point for point in points if math.isfinite(point[1] + point[2].mean)]
        if len(points) > 1 and any(sent for _, sent, _ in points):
            pictures.append(Picture(axis, _scatter(points, colours, axis, joined)))
    about = "Test accuracy of all clients after the last round, against what a run sent. "
    about += "The line joins methods that no other beats in both." if joined else _NO_LINE
    return Chapter("Accuracy against bytes", about, pictures)


def _weights(section: Section) -> Chapter:
    pictures = []
    for row in section.rows:
        try:
            name, histograms = weights.chosen(row.runs[0].folder)
        except ValueError:
            continue  # the run has none
        figure, panel = pyplot().subplots(figsize=(4.5, 3.9), layout="constrained")
        weights.ridges(panel, histograms)
        panel.set_title(plain(name), fontsize=9)
        pictures.append(Picture(row.name, svg(figure)))
    about = "Float32 weights of the largest layer, first seed; heights are roots of densities. "
    about += "Narrow peaks are the levels of low-bit clients."
    return Chapter("Weights over rounds", about, pictures)


def _prowd(section: Section, colours: Colours) -> Chapter:
    names = {
        "prowd/mask_keep": "share of entries kept",
        "prowd/cosine": "cosine with the high-bit move",
    }
    pictures = _series(section, colours, names)
    about = "Entries of low-bit clients, all layers together."
    return Chapter("ProWD: what its mask keeps", about, pictures)


def _dequantizer(section: Section, colours: Colours) -> Chapter:
    names = {"dequantizer/recon": "reconstruction loss", "dequantizer/distill": "distillation loss"}
    identity = {"dequantizer/recon": "dequantizer/recon_identity"}
    pictures = _series(section, colours, names, beside=identity)
    about = "Rounds in which it was trained; dotted: the loss of the identity, which does nothing."
    return Chapter("ProWD: the dequantizer", about, pictures)


def _bits(section: Section) -> Chapter:
    pictures = []
    for row in section.rows:
        try:
            found = bits.read(row.runs[0])
        except ValueError:
            continue  # the run has none
        height = 1.3 + 0.2 * max(len(found[0]), 9)
        figure, panel = pyplot().subplots(figsize=(4.5, height), layout="constrained")
        bits.heat([panel], [found])
        pictures.append(Picture(row.name, svg(figure)))
    about = "First seed; layers from the input down."
    return Chapter("FedLQ: bits by layer and round", about, pictures)


def _lost(section: Section, colours: Colours) -> Chapter:
    names = {}
    for status in LOST:
        if any(row.total(f"clients/{status}") for row in section.rows):
            names[f"clients/{status}"] = status
    pictures = _series(section, colours, names, axis="clients")
    return Chapter("Clients whose updates did not count", "By round, mean over seeds.", pictures)


def _series(
    section: Section,
    colours: Colours,
    names: Mapping[str, str],
    beside: Mapping[str, str] | None = None,
    axis: str = "",
) -> list[Picture]:
    """A picture for each tag that has data, with a second tag dotted beside it where there is
    one.
    """
    pictures = []
    for tag, name in names.items():
        lines = _lines(section, tag, "round")
        if lines:
            other = (beside or {}).get(tag)
            dotted = _lines(section, other, "round") if other else []
            pictures.append(Picture(name, _curves(lines, colours, "round", axis or name, dotted)))
    return pictures


# ---- drawing -------------------------------------------------------------------------------------


def _lines(section: Section, tag: str, over: str, scale: float = 1) -> list[Line]:
    """The curves of all rows that have data, over the rounds that all runs of a row have."""
    lines = []
    for row in section.rows:
        name = tag if "/" in tag else f"val/{tag.replace('acc', row.runs[0].metric, 1)}"
        ys = [run.series(name) for run in row.runs]
        xs = [run.series(over) for run in row.runs]
        line = Line(row, [], [], [])
        for round in sorted(set.intersection(*map(set, [*ys, *xs]))):
            spread = Spread.of([scale * y[round] for y in ys])
            line.x.append(Spread.of([x[round] for x in xs]).mean)
            line.y.append(spread.mean)
            line.deviation.append(spread.deviation)
        if line.x:
            lines.append(line)
    return lines


def _curves(
    lines: Sequence[Line], colours: Colours, x: str, y: str, dotted: Sequence[Line] = ()
) -> bytes:
    def draw(axis: Any) -> None:
        for i, line in enumerate(lines):
            _curve(axis, line, colours[line.row.label], i / len(lines))
        for line in dotted:
            style = {"linestyle": ":", "marker": "x", "markersize": 4}
            axis.plot(line.x, line.y, color=colours[line.row.label], **style)
        ends = [line.x[-1] for line in lines if line.x[-1] > 0]
        axis.ticklabel_format(axis="y", useOffset=False)
        if y.endswith("%"):
            axis.set_ylim(top=min(axis.get_ylim()[1], 102))
        if x == "round":
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        elif ends and max(ends) > _WIDE * min(ends):
            logarithmic(axis)

    return _figure(draw, [line.row.name for line in lines], x, y)


def _curve(axis: Any, line: Line, colour: str, place: float) -> None:
    """Draw one curve; `place` is its place among all, from 0 to 1."""
    finished = line.row.finished
    style: dict[str, Any] = {"color": colour, "markersize": 4, "label": _shown(line.row)}
    style["linestyle"] = "-" if finished else "--"
    style["linewidth"] = 1.0 + (1.0 - place) * finished  # one that hides another is the thinner one
    if len(line.x) < 30:
        style["marker"] = "o" if len(line.x) < 3 else "."
    axis.plot(line.x, line.y, **style)
    if not math.isnan(line.deviation[0]):
        low = [y - deviation for y, deviation in zip(line.y, line.deviation, strict=True)]
        high = [y + deviation for y, deviation in zip(line.y, line.deviation, strict=True)]
        axis.fill_between(line.x, low, high, color=colour, alpha=0.12, linewidth=0)


def _scatter(
    points: Sequence[tuple[Row, float, Spread]], colours: Colours, x: str, joined: bool
) -> bytes:
    def draw(axis: Any) -> None:
        best = -math.inf
        front = []
        for _, sent, accuracy in sorted(points, key=lambda point: (point[1], -point[2].mean)):
            if accuracy.mean > best:
                best = accuracy.mean
                front.append((sent, 100 * best))
        if joined:
            axis.plot(*zip(*front, strict=True), color="#999999", linewidth=1, zorder=1)
        for row, sent, accuracy in points:
            error = None if math.isnan(accuracy.deviation) else 100 * accuracy.deviation
            style = {
                "color": colours[row.label],
                "label": _shown(row),
                "markersize": 7,
                "capsize": 3,
                "linewidth": 1.2,
            }
            axis.errorbar(sent, 100 * accuracy.mean, error, fmt="o", **style)
        ends = [sent for _, sent, _ in points]
        if min(ends) > 0 and max(ends) > _WIDE * min(ends):
            logarithmic(axis)

    return _figure(draw, [row.name for row, _, _ in points], x, "test accuracy, %")


def _shown(row: Row) -> str:
    """A name as a legend takes it: dollars would begin a formula, and an underscore hides an
    entry.
    """
    name = plain(row.name)
    return f" {name}" if name.startswith("_") else name


def _figure(draw: Callable[[Any], None], names: Sequence[str], x: str, y: str) -> bytes:
    """One panel with its legend below."""
    plt = pyplot()
    columns = max(1, min(3, len(names), 62 // (max(map(len, names)) + 6)))
    height = _SIZE[1] + 0.19 * math.ceil(len(names) / columns)
    figure, axis = plt.subplots(figsize=(_SIZE[0], height), layout="constrained")
    draw(axis)
    bare(axis)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    return svg(figure)
