"""What the pictures have in common. Matplotlib is optional, and loaded when the first picture is
drawn.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bhfl.checks import printable
from bhfl.files import durable

PALETTE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#8c564b",
    "#555555", "#a6a400", "#b3001b", "#1f2a80", "#66a61e", "#f08a8a", "#00c2c2", "#b08fd8",
)  # fmt: skip
"""Colours of methods; the first of them, after Okabe and Ito, can be told apart by colour-blind
eyes too.
"""


def pyplot() -> Any:
    """The module ``matplotlib.pyplot``, which draws to files.

    Raises:
        ImportError: Matplotlib is not installed; the message says what to install.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'bhfl[plots]'") from error
    # no window, and no display is needed
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def side_by_side(runs: Sequence[Path], size: tuple[float, float], **options: Any) -> Any:
    """A figure, and its panels: one for each run, whose title says which run it is.

    Args:
        runs: Run folders.
        size: Inches to the right and up.
        options: More arguments of ``subplots``.
    """
    figure, panels = pyplot().subplots(1, len(runs), figsize=size, squeeze=False, **options)
    for panel, run in zip(panels[0], runs, strict=True):
        panel.set_title(plain("/".join(run.absolute().parts[-3:-1])), fontsize=9)
    return figure, panels[0]


def save(figure: Any, out: Path) -> None:
    """Write a figure whole or not at all, to a file of the kind that its name ends with, PNG where
    it has no ending; and close it.

    Raises:
        OSError: `out` cannot be written.
        ValueError: Matplotlib writes no files of that kind.
    """
    with durable(out) as file:
        figure.savefig(file, dpi=150, format=out.suffix[1:] or "png")
    pyplot().close(figure)


def name_rows(axis: Any, names: Sequence[str], shown: bool) -> None:
    """Let an axis of bars read from the top down, one row a name.

    Args:
        axis: The panel, whose bars lie at 0, 1, 2 ...
        names: What the rows are called.
        shown: Whether the names stand beside it.
    """
    bare(axis)
    axis.grid(visible=False, axis="y")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0, labelleft=shown)


def plain(text: str) -> str:
    """Text that matplotlib draws as it is, where a dollar would begin a formula."""
    return printable(text).replace("$", r"\$")


def svg(figure: Any) -> bytes:
    """A figure as SVG; the figure is closed."""
    plt = pyplot()
    text = io.BytesIO()
    # no salt by chance and no date: the same picture is the same bytes
    with plt.rc_context({"svg.hashsalt": "bhfl"}):
        figure.savefig(text, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return text.getvalue()


def bare(axis: Any) -> None:
    """Leave of an axis what is read: a light grid behind the data, and no frame above and to the
    right.
    """
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(linewidth=0.3)
    axis.set_axisbelow(True)


def logarithmic(axis: Any) -> None:
    """Make the axis of x logarithmic, with plain numbers at 1, 2, 5, 10, ..., which do not run into
    each other.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def labels(layers: Sequence[str]) -> list[str]:
    """Names of parameters without the words that all of them begin with, and without ``weight`` at
    the end where all have it.

    >>> labels(["net.conv.weight", "net.head.0.weight"])
    ['conv', 'head.0']
    >>> labels(["weight"])
    ['weight']
    """
    parts = [name.split(".") for name in layers]
    if all(len(words) > 1 and words[-1] == "weight" for words in parts):
        parts = [words[:-1] for words in parts]
    # a single layer keeps its name whole, and none loses its last word
    while len(parts) > 1 and all(len(words) > 1 and words[0] == parts[0][0] for words in parts):
        parts = [words[1:] for words in parts]
    return [".".join(words) for words in parts]
