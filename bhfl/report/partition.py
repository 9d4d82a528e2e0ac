"""Who has which samples: console tables, CSV and picture.

Shapes: K clients, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhfl.files import write_rows
from bhfl.report.drawing import PALETTE, bare, plain, pyplot, save
from bhfl.report.forms import ruled

Counts = NDArray[np.int64]

_LISTED = 20
"""The clients that the console lists."""
_NAMED = 40
"""The clients that a picture names; more are put in order."""
_DRAWN = 1000
"""The columns of a picture at most."""
_LABELS = 20
"""The labels whose numbers are written out."""


@dataclass(frozen=True)
class Partition:
    """The clients of a fleet and their samples, group after group."""

    title: str
    """What is shared out, and how."""
    groups: Sequence[str]
    """The names of the bit groups."""
    group_of: Counts
    """The place of each client's group among `groups`, ``[K]``."""
    samples: Counts
    """The training samples of each client, ``[K]``."""
    val: Counts
    """The samples that each client validates on, ``[K]``."""
    test: Counts
    """The samples that each client is tested on, ``[K]``."""
    labels: Counts | None
    """The training samples of each client with each label, ``[K, C]``; None where there are no
    labels, or more numbers of them than one could keep.
    """


# ---- text ----------------------------------------------------------------------------------------


def table(found: Partition) -> str:
    """The groups, how far the labels of clients differ, and the first clients one by one."""
    parts = [found.title, ruled(_by_group(found))]
    if found.labels is not None:
        mix = found.labels.sum(axis=0) / found.labels.sum()
        # as many labels of each client, drawn from the mix of all
        chance = np.random.default_rng(0).multinomial(found.labels.sum(axis=1), mix)
        parts.append(
            f"label skew {skew(found.labels):.3f}: the share of a client's samples that would need "
            "another label for the mix of\nall clients, on average; by chance alone it would be "
            f"{skew(chance):.3f}"
        )
    parts.append(ruled(_by_client(found)))
    if len(found.samples) > _LISTED:
        parts.append(f"and {len(found.samples) - _LISTED:,} more clients, in the CSV file")
    return "\n\n".join(parts)


def skew(labels: Counts) -> float:
    """The total variation distance between each client's label mix and that of all, on average over
    clients that have samples.

    Args:
        labels: ``[K, C]``.
    """
    labels = labels[labels.sum(axis=1) > 0]
    mix = labels.sum(axis=0) / labels.sum()
    shares = labels / labels.sum(axis=1, keepdims=True)
    return float(np.abs(shares - mix).sum(axis=1).mean() / 2)


def _by_group(found: Partition) -> list[list[str]]:
    rows = [["group", "clients", "samples", "least", "median", "most", "val", "test", "labels"]]
    members = [found.group_of == place for place in range(len(found.groups))]
    everyone = np.ones(len(found.samples), bool)
    for name, chosen in zip([*found.groups, "all"], [*members, everyone], strict=True):
        samples = found.samples[chosen]
        row = [name, f"{len(samples):,}", f"{samples.sum():,}"]
        for value in (samples.min(), np.median(samples), samples.max()):
            row.append(f"{value:,.10g}")
        row += [f"{found.val[chosen].sum():,}", f"{found.test[chosen].sum():,}"]
        known = "-"
        if found.labels is not None:
            known = f"{np.count_nonzero(found.labels[chosen], axis=1).mean():.1f}"
        rows.append([*row, known])
    return rows


def _by_client(found: Partition) -> list[list[str]]:
    labels = found.labels
    spelled = labels is not None and labels.shape[1] <= _LABELS
    head = ["client", "group", "samples", "val", "test"]
    if labels is not None:
        head += [f"{label}" for label in range(labels.shape[1])] if spelled else ["labels"]
    rows = [head]
    for client in range(min(_LISTED, len(found.samples))):
        row = [str(client), found.groups[found.group_of[client]]]
        row += [f"{count[client]:,}" for count in (found.samples, found.val, found.test)]
        if labels is not None:
            mine = labels[client]
            row += map(str, mine if spelled else [np.count_nonzero(mine)])
        rows.append(row)
    return rows


def write_csv(found: Partition, path: Path) -> None:
    """Write one line a client: its group, its samples, and those of each label.

    Raises:
        OSError: `path` cannot be written.
    """
    head = ["client", "group", "samples", "val_samples", "test_samples"]
    columns = [found.samples, found.val, found.test]
    if found.labels is not None:
        head += [f"label_{label}" for label in range(found.labels.shape[1])]
        columns += list(found.labels.T)
    names = [found.groups[place] for place in found.group_of.tolist()]
    rows = zip(range(len(names)), names, *map(np.ndarray.tolist, columns), strict=True)
    write_rows(path, [head, *rows])


# ---- picture -------------------------------------------------------------------------------------


def draw(found: Partition, out: Path) -> None:
    """Draw the samples of each client, by group, and below them its labels.

    Up to `_NAMED` clients stand by their numbers. More are put in order within their group, by
    their most frequent label, so that clients that are alike lie side by side; of very many, evenly
    spread ones are drawn.

    Args:
        found: The clients.
        out: The picture, a PNG file.

    Raises:
        OSError: `out` cannot be written.
        ImportError: matplotlib is not installed; the message says what to install.
    """
    order = _order(found)
    labels = None if found.labels is None else found.labels[order]
    num_labels = 0 if labels is None else labels.shape[1]
    heights = [2.2, *([min(7.0, 1.2 + 0.22 * num_labels)] if num_labels else [])]
    figure, axes = pyplot().subplots(
        len(heights),
        1,
        height_ratios=heights,
        figsize=(11, sum(heights) + 0.9),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    _samples(axes[0, 0], found, order)
    if labels is not None:
        _labels(figure, axes[1, 0], labels)
    _name_clients(axes[-1, 0], found, order)
    figure.suptitle(plain(found.title), fontsize=10)
    save(figure, out)


def _order(found: Partition) -> Counts:
    """The clients that are drawn, from left to right."""
    clients = np.arange(len(found.samples))
    if len(clients) <= _NAMED:
        return clients
    if found.labels is not None:
        most = found.labels.max(axis=1) / np.maximum(found.samples, 1)
        clients = np.lexsort((-most, found.labels.argmax(axis=1), found.group_of))
    else:
        clients = np.lexsort((-found.samples, found.group_of))
    num_drawn = min(_DRAWN, len(clients))
    return clients[np.arange(num_drawn) * len(clients) // num_drawn]


def _samples(axis: Any, found: Partition, order: Counts) -> None:
    """Draw a bar for each client, in the colour of its group."""
    edges = np.arange(len(order) + 1) - 0.5
    for place, name in enumerate(found.groups):
        counts = np.where(found.group_of[order] == place, found.samples[order], 0)
        look = {"color": PALETTE[place % len(PALETTE)], "label": plain(name)}
        if len(order) <= _NAMED:
            axis.bar(range(len(order)), counts, **look)
        else:
            axis.stairs(counts, edges, fill=True, **look)
    axis.set_ylabel("training samples", fontsize=9)
    axis.set_xlim(edges[0], edges[-1])
    bare(axis)
    axis.grid(visible=False, axis="x")
    columns = min(len(found.groups), 8)
    axis.legend(fontsize=8, frameon=False, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1))


def _labels(figure: Any, axis: Any, labels: Counts) -> None:
    """Draw the share of each label among each client's samples."""
    shares = (labels / np.maximum(labels.sum(axis=1, keepdims=True), 1)).T
    picture = axis.imshow(shares, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
    axis.set_ylabel("label", fontsize=9)
    num_labels, num_clients = shares.shape
    if num_labels <= _NAMED:
        axis.set_yticks(range(num_labels))
    axis.tick_params(labelsize=8)
    bar = figure.colorbar(picture, ax=axis, pad=0.01, aspect=30)
    bar.set_label("share of the client's samples", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if num_labels > _LABELS or num_clients > _LISTED:
        return
    dark = shares.max() * 0.6
    for label in range(num_labels):
        for client in range(num_clients):
            colour = "white" if shares[label, client] > dark else "black"
            text = str(labels[client, label])
            axis.text(client, label, text, color=colour, fontsize=7, ha="center", va="center")


def _name_clients(axis: Any, found: Partition, order: Counts) -> None:
    """Say below the picture which clients are where."""
    if len(order) <= _NAMED:
        axis.set_xticks(range(len(order)), [str(client) for client in order], fontsize=8)
        axis.set_xlabel("client", fontsize=9)
        return
    num_clients = len(found.samples)
    drawn = f"{num_clients:,} clients"
    if len(order) < num_clients:
        drawn = f"{len(order):,} of {num_clients:,} clients, evenly spread"
    order_of = "number of samples" if found.labels is None else "most frequent label"
    axis.set_xlabel(f"{drawn}, within each group by {order_of}", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
