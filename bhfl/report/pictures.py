"""The report's pictures: a method has the same colour in all of them, which the page names once."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from typing import Any, NamedTuple

import numpy as np

from bhfl.report import bits, spread, weights
from bhfl.report.drawing import PALETTE, bare, logarithmic, plain, pyplot, svg
from bhfl.report.goals import SIMULATED
from bhfl.report.rows import AVERAGE, Row, Section, Spread

Colours = Mapping[str, str]
"""Label of a row to its colour."""

_OVER = {
    "over rounds": ("round", "round"),
    "over bytes sent by clients": ("comm/uplink_MB", "MB up"),
    "over all bytes sent": ("comm/total_MB", "MB up and down"),
    "over simulated time": (SIMULATED, "simulated seconds"),
}
"""What a metric is drawn over: the tag, and the name of the axis."""
_OVER_ROUNDS = {
    "ProWD: what its mask keeps": (
        "Entries of low-bit clients, all layers together.",
        {
            "prowd/mask_keep": "share of entries kept",
            "prowd/cosine": "cosine with the high-bit move",
        },
    ),
    "ProWD: the dequantizer": (
        "Rounds in which it was trained; dotted: the loss of the identity, which does nothing.",
        {"dequantizer/recon": "reconstruction loss", "dequantizer/distill": "distillation loss"},
    ),
}
"""Chapters of what algorithms log: how to read them, and what to call their tags."""
_DOTTED = {"dequantizer/recon": "dequantizer/recon_identity"}
"""The tag that is drawn dotted beside another one."""
_UNITS = {"dequantizer/recon": ", steps of the grid"}
_WIDTH = 4.5
_HEIGHT = 3.0
"""Inches of a picture."""
_WIDE = 5
"""An axis is logarithmic where the largest end of a curve is more than so many times the smallest.
"""


class Picture(NamedTuple):
    """One picture: what it shows, and its SVG."""

    title: str
    svg: bytes


class Chapter(NamedTuple):
    """Pictures under one heading, with a line on how to read them."""

    title: str
    about: str
    pictures: list[Picture]


class Point(NamedTuple):
    """A finished row: the megabytes or seconds that a run of it took, and its metric."""

    row: Row
    cost: float
    value: Spread


class Line(NamedTuple):
    """A curve of one row: by round, the mean of x, and the mean and the deviation of y."""

    row: Row
    x: list[float]
    y: list[float]
    deviation: list[float]


def colours(sections: Sequence[Section]) -> dict[str, str]:
    """A colour for each label of the whole report."""
    rows = chain.from_iterable(section.rows for section in sections)
    labels = dict.fromkeys(row.label for row in rows)
    return dict(zip(labels, cycle(PALETTE), strict=False))


def chapters(section: Section, colours: Colours) -> list[Chapter]:
    """All pictures of a section. Chapters without data are left out.

    Raises:
        ImportError: matplotlib is not installed; the message says what to install.
    """
    parts = [_metric(section, colours, group) for group in section.groups]
    parts += [_frontier(section, colours), _clients(section), _weights(section)]
    for title, (about, names) in _OVER_ROUNDS.items():
        parts.append(Chapter(title, about, _series(section, colours, names)))
    parts += [_bits(section), _lost(section, colours)]
    return [part for part in parts if part.pictures]


# ---- chapters ------------------------------------------------------------------------------------


def _metric(section: Section, colours: Colours, group: str) -> Chapter:
    metric = section.metric
    pictures = []
    for title, (tag, axis) in _OVER.items():
        lines = _lines(section, group, tag, metric.scale)
        # methods that send nothing have no curve over bytes
        if any(line.x[-1] for line in lines):
            pictures.append(Picture(title, _curves(lines, colours, axis, metric.axis(begun=True))))
    about = "Mean over seeds, and one standard deviation around it; dashed: not finished."
    whose = "average over clients" if group == AVERAGE else group
    return Chapter(f"{metric.heading}: {whose}", about, pictures)


def _frontier(section: Section, colours: Colours) -> Chapter:
    pictures = []
    # means over different seeds must not be joined: one seed may be easier than another
    seeds = {frozenset(row.by_seed(AVERAGE)) for row in section.finished}
    joined = section.comparable and len(seeds) == 1
    for tag, axis in list(_OVER.values())[1:]:
        points = []
        for row in section.finished:
            point = Point(row, row.mean(tag), row.value(AVERAGE))
            if math.isfinite(point.cost + point.value.mean):
                points.append(point)
        if len(points) > 1 and any(point.cost for point in points):
            pictures.append(Picture(axis, _scatter(points, colours, axis, joined)))
    words = section.metric.words
    about = f"{words[0].upper()}{words[1:]} of all clients after the last round, against what a "
    about += "run sent, and how long it took where links are simulated. "
    if joined:
        about += "The line joins methods that no other beats in both."
    else:
        about += "No line joins the best, as the methods were not all run with the same "
        about += "seeds and known settings."
    return Chapter(f"{section.metric.heading} against bytes and time", about, pictures)


def _clients(section: Section) -> Chapter:
    pictures = []
    for label, clients in spread.points(section).items():
        axis = _axis("training samples", f"own test {section.metric.heading.lower()}")
        for group in dict.fromkeys(client.group for client in clients):
            members = [client for client in clients if client.group == group]
            x = [client.samples for client in members]
            y = [client.value for client in members]
            axis.scatter(x, y, s=14, alpha=0.7, label=plain(group), linewidths=0)
        axis.legend(fontsize=8)
        pictures.append(Picture(label, svg(axis.figure)))
    about = "Each point is a client, measured on test samples of its own; first seed."
    return Chapter("Clients: what each has, against its samples", about, pictures)


def _weights(section: Section) -> Chapter:
    pictures = []
    for row in section.rows:
        try:
            name, histograms = weights.chosen(row.runs[0].folder)
        except ValueError:
            # not all runs write histograms
            continue
        figure, panel = pyplot().subplots(figsize=(_WIDTH, 3.9), layout="constrained")
        weights.ridges(panel, histograms)
        panel.set_title(plain(name), fontsize=9)
        pictures.append(Picture(row.name, svg(figure)))
    about = "Float32 weights of the largest layer, first seed; heights are roots of densities. "
    about += "Narrow peaks are the levels of low-bit clients."
    return Chapter("Weights over rounds", about, pictures)


def _bits(section: Section) -> Chapter:
    pictures = []
    for row in section.rows:
        try:
            found = bits.read(row.runs[0])
        except ValueError:
            # FedLQ alone writes bits
            continue
        height = 1.3 + 0.2 * max(len(found[0]), 9)
        figure, panel = pyplot().subplots(figsize=(_WIDTH, height), layout="constrained")
        bits.heat([panel], [found])
        pictures.append(Picture(row.name, svg(figure)))
    about = "First seed; layers from the input down."
    return Chapter("FedLQ: bits by layer and round", about, pictures)


def _lost(section: Section, colours: Colours) -> Chapter:
    names = {f"clients/{status}": status for status in section.losses}
    pictures = _series(section, colours, names)
    return Chapter("Clients whose updates did not count", "By round, mean over seeds.", pictures)


def _series(section: Section, colours: Colours, names: Mapping[str, str]) -> list[Picture]:
    """A picture for each tag that has data; `names` says what to call the tags."""
    pictures = []
    for tag, name in names.items():
        lines = _lines(section, tag, "round")
        if lines:
            y = "clients" if tag.startswith("clients/") else name + _UNITS.get(tag, "")
            other = _DOTTED.get(tag)
            dotted = _lines(section, other, "round") if other else []
            pictures.append(Picture(name, _curves(lines, colours, "round", y, dotted)))
    return pictures


# ---- drawing -------------------------------------------------------------------------------------


def _lines(section: Section, tag: str, over: str, scale: float = 1) -> list[Line]:
    """The curves of all rows that have data, over the rounds that all runs of a row have.

    Args:
        section: The rows.
        tag: What is drawn; a bit group stands for its metric, by whatever name a run has it.
        over: The tag that it is drawn over.
        scale: What the values are multiplied by.
    """
    lines = []
    for row in section.rows:
        names = [tag] if "/" in tag else row.metric.before(row.runs[0], tag)
        name = next((name for name in names if row.runs[0].series(name)), names[0])
        # before training there are rounds to draw over, and no bytes or seconds
        first = over == "round"
        ys = [run.series(name, first) for run in row.runs]
        xs = [run.series(over, first) for run in row.runs]
        line = Line(row, [], [], [])
        # a mean over fewer seeds at the end of a curve would make it jump
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
    """Curves, and other curves dotted; `x` and `y` are the names of the axes."""
    axis = _axis(x, y)
    for i, line in enumerate(lines):
        _curve(axis, line, colours[line.row.label], i / len(lines))
    style = {"linestyle": ":", "marker": "x", "markersize": 4}
    for line in dotted:
        axis.plot(line.x, line.y, color=colours[line.row.label], **style)
    axis.ticklabel_format(axis="y", useOffset=False)
    # room above 100 % for the width of a line, and no more
    if y.endswith("%"):
        axis.set_ylim(top=min(axis.get_ylim()[1], 102))
    if x == "round":
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    else:
        _spread_out(axis, [line.x[-1] for line in lines if line.x[-1] > 0])
    return svg(axis.figure)


def _curve(axis: Any, line: Line, colour: str, place: float) -> None:
    """Draw one curve; `place` is its place among all, from 0 to 1."""
    finished = line.row.finished
    style = {"color": colour, "markersize": 4}
    style["linestyle"] = "-" if finished else "--"
    # a curve that hides another is the thinner one
    style["linewidth"] = 1.0 + (1.0 - place) * finished
    # points are marked while they are few: one alone has no line that would show it
    if len(line.x) < 30:
        style["marker"] = "o" if len(line.x) < 3 else "."
    axis.plot(line.x, line.y, **style)
    if not math.isnan(line.deviation[0]):
        low = np.subtract(line.y, line.deviation)
        high = np.add(line.y, line.deviation)
        axis.fill_between(line.x, low, high, color=colour, alpha=0.12, linewidth=0)


def _scatter(points: Sequence[Point], colours: Colours, x: str, joined: bool) -> bytes:
    """Points; `x` is the name of the axis, and a line joins the best."""
    metric = points[0].row.metric
    axis = _axis(x, metric.axis())
    if joined:
        axis.plot(*zip(*_front(points), strict=True), color="#999999", linewidth=1, zorder=1)
    style = {"fmt": "o", "markersize": 7, "capsize": 3, "linewidth": 1.2}
    for row, cost, value in points:
        error = None if math.isnan(value.deviation) else metric.scale * value.deviation
        axis.errorbar(cost, metric.scale * value.mean, error, color=colours[row.label], **style)
    # zero has no place on a logarithmic axis, and a method may send nothing
    if all(point.cost for point in points):
        _spread_out(axis, [point.cost for point in points])
    return svg(axis.figure)


def _front(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Cost and metric of the rows that no other beats in both."""
    metric = points[0].row.metric
    # from the lowest cost on, and of equal ones the best first
    front: list[tuple[float, float]] = []
    for _, cost, value in sorted(points, key=lambda one: (one.cost, -metric.sign * one.value.mean)):
        drawn = metric.scale * value.mean
        if not front or metric.sign * drawn > metric.sign * front[-1][1]:
            front.append((cost, drawn))
    return front


def _axis(x: str, y: str) -> Any:
    """A panel whose axes have these names."""
    _, axis = pyplot().subplots(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    bare(axis)
    axis.set(xlabel=x, ylabel=y)
    return axis


def _spread_out(axis: Any, ends: Sequence[float]) -> None:
    """Make the axis of x logarithmic where the ends of curves lie far apart."""
    if ends and max(ends) > _WIDE * min(ends):
        logarithmic(axis)
