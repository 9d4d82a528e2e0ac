"""The tables of a report for LaTeX, with the rules of booktabs."""

import re
from collections.abc import Sequence

from bhfl.report.tables import Cell, Table

_SPELLED = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "λ": r"$\lambda$", "τ": r"$\tau$", "√": r"$\surd$", "−": "$-$",
}  # fmt: skip
_AROUND = {"": "{}", "best": r"\textbf{{{}}}", "level": r"\textit{{{}}}"}


def as_latex(tables: Sequence[Table]) -> str:
    r"""All tables, each for ``\input`` into a document that loads booktabs."""
    head = "% written by bhfl report; \\usepackage{booktabs}\n"
    return head + "\n".join(map(_table, tables))


def _table(table: Table) -> str:
    notes = [
        *table.notes,
        *([f"bold: best of its column; italic: {table.level}"] * bool(table.level)),
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.title)}}}",
        # names to the left, figures to the right
        rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"\toprule",
        rf"{' & '.join(map(_escaped, table.head))} \\",
        r"\midrule",
        *(rf"{' & '.join(map(_cell, row))} \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        *(f"% {note}" for note in notes),
    ]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell) -> str:
    return _AROUND[cell.mark].format(_escaped(cell.text))


def _escaped(text: str) -> str:
    """Text that LaTeX takes for text."""

    def spelled(match: re.Match[str]) -> str:
        character = match[0]
        return _SPELLED.get(character, f"\\{character}")

    return re.sub(r"[\\~^±λτ√−&%$#_{}]", spelled, text)
