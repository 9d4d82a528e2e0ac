"""The report as one HTML file: tables and pictures, nothing that is loaded from elsewhere, and no
script.
"""

import base64
from collections.abc import Sequence
from html import escape

from bhfl.report.pictures import Chapter, Picture, chapters, colours
from bhfl.report.rows import Section
from bhfl.report.tables import Table

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1d2330; font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 0 0 12px; overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 28px 0 2px; }
nav ul, .notes { padding-left: 1.2em; }
nav a { color: #0b5cad; }
section { background: #fff; border: 1px solid #dfe3ea; border-radius: 10px; padding: 20px; margin-top: 24px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e9ef; }
th { border-bottom: 2px solid #b9c1cf; font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 4px; }
tbody tr:hover { background: #f6f8fb; }
.best { font-weight: 700; background: #d9f0e3; }
.level { background: #eef8f2; }
.notes span { padding: 1px 5px; border-radius: 3px; }
.notes, .about { color: #515a6b; font-size: .86rem; margin: 8px 0 0; overflow-wrap: anywhere; }
.about { margin-bottom: 10px; }
.pictures { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
figure { margin: 0; }
figcaption { font-size: .88rem; font-weight: 600; text-align: center; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto; }
@media (max-width: 600px) { main { padding: 16px 8px 40px; } section { padding: 14px 10px; border-radius: 6px; } }
@media print { body, section { background: #fff; border: 0; } figure { break-inside: avoid; } }
"""  # noqa: E501


def page(sections: Sequence[Section], tables: Sequence[Sequence[Table]]) -> str:
    """The page of a report.

    Args:
        sections: What is compared.
        tables: The tables of each section, the results first.
    """
    # the tables are worth a page without pictures
    try:
        palette = colours(sections)
        drawn = [chapters(section, palette) for section in sections]
        missing = ""
    except ImportError as error:
        drawn = [[] for _ in sections]
        missing = f'<p class="about">No pictures are drawn: {escape(str(error))}.</p>'
    runs = sum(len(section.runs) for section in sections)
    body = [_section(f"s{i}", *part) for i, part in enumerate(zip(tables, drawn, strict=True))]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>bhfl: runs compared</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Runs compared</h1>
<p class="about">{runs} run{"s" * (runs != 1)}; written by <code>bhfl report</code>.</p>
{missing}{_contents(sections)}{"".join(body)}
</main>
</body>
</html>
"""  # noqa: E501


def _contents(sections: Sequence[Section]) -> str:
    """Links to the sections where there are several."""
    links = "".join(
        f'<li><a href="#s{i}">{escape(section.title)}</a></li>'
        for i, section in enumerate(sections)
    )
    return f"<nav><ul>{links}</ul></nav>" if len(sections) > 1 else ""


def _section(name: str, tables: Sequence[Table], drawn: Sequence[Chapter]) -> str:
    first, *others = tables
    text = f'<section id="{name}"><h2>{escape(first.title)}</h2>{_table(first)}'
    text += "".join(f"<h3>{escape(table.title)}</h3>{_table(table)}" for table in others)
    return text + "".join(map(_chapter, drawn)) + "</section>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.head)
    rows = ""
    for row in table.rows:
        cells = ""
        for cell in row:
            mark = f' class="{cell.mark}"' if cell.mark else ""
            cells += f"<td{mark}>{escape(cell.text)}</td>"
        rows += f"<tr>{cells}</tr>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    if table.level:
        notes += (
            '<li><span class="best">bold</span>: best of its column; '
            f'<span class="level">pale</span>: {escape(table.level)}</li>'
        )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<ul class="notes">{notes}</ul>'
    )


def _chapter(chapter: Chapter) -> str:
    pictures = "".join(_figure(chapter.title, picture) for picture in chapter.pictures)
    about = f'<p class="about">{escape(chapter.about)}</p>'
    return f'<h3>{escape(chapter.title)}</h3>{about}<div class="pictures">{pictures}</div>'


def _figure(chapter: str, picture: Picture) -> str:
    source = "data:image/svg+xml;base64," + base64.b64encode(picture.svg).decode()
    alt = escape(f"{chapter}: {picture.title}", quote=True)
    return (
        f"<figure><figcaption>{escape(picture.title)}</figcaption>"
        f'<img alt="{alt}" src="{source}"></figure>'
    )
