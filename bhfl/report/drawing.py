"""What the pictures have in common; matplotlib is optional, and loaded when the first one is
drawn.
"""

import io
from collections.abc import Sequence
from typing import Any

from bhfl.report.reading import printable

PALETTE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#8c564b",
    "#555555", "#a6a400", "#b3001b", "#1f2a80", "#66a61e", "#f08a8a", "#00c2c2", "#b08fd8",
)  # fmt: skip
"""Colours of methods; the first of them, after Okabe and Ito, can be told apart by colour-blind
eyes too.
"""


def pyplot() -> Any:
    """``matplotlib.pyplot``, drawing to files.

    Raises:
        ImportError: It is not installed; the message says what to install.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'bhfl[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plain(text: str) -> str:
    """Text as matplotlib draws it as it is: dollars would begin a formula."""
    return printable(text).replace("$", r"\$")


def svg(figure: Any) -> bytes:
    """A figure as SVG, the same bytes for the same picture; the figure is closed."""
    plt = pyplot()
    text = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "bhfl"}):
        figure.savefig(text, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return text.getvalue()


def bare(axis: Any) -> None:
    """No more of an axis than is read: a light grid, and no frame above and to the right."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(linewidth=0.3)
    axis.set_axisbelow(True)


def logarithmic(axis: Any) -> None:
    """A logarithmic axis of x with plain numbers at 1, 2, 5, 10, ..., which do not run into each
    other.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def labels(layers: Sequence[str]) -> list[str]:
    """Names of parameters without what all of them end with and begin with.

    >>> labels(["net.conv.weight", "net.head.0.weight"])
    ['conv', 'head.0']
    >>> labels(["weight"])
    ['weight']
    """
    parts = [name.split(".") for name in layers]
    if all(len(words) > 1 and words[-1] == "weight" for words in parts):
        parts = [words[:-1] for words in parts]
    while len(parts) > 1 and all(len(words) > 1 and words[0] == parts[0][0] for words in parts):
        parts = [words[1:] for words in parts]
    return [".".join(words) for words in parts]
