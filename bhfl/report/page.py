"""The report as one HTML file: tables and pictures, nothing that is loaded from elsewhere, and no
script.
"""

import base64
from collections.abc import Sequence
from html import escape

from bhfl.report.pictures import Chapter, Colours, Picture, chapters, colours
from bhfl.report.rows import Section
from bhfl.report.tables import Table
from bhfl.report.words import summary

_STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #1d2330; --soft: #515a6b; --line: #dfe3ea; --best: #d9f0e3; --level: #eef8f2; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --page: #101114; --card: #1a1a1a; --ink: #e4e7ee; --soft: #a3acbc; --line: #343841; --best: #1f5138; --level: #1f3328; --link: #7db8f5; }
  img, .swatch { filter: invert(.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 0 0 8px; overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 28px 0 2px; }
nav ul, .notes { padding-left: 1.2em; }
nav a { color: var(--link); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px; margin-top: 24px; }
.words { margin: 0 0 14px; max-width: 46em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 4px; }
tbody tr:hover { background: var(--page); }
.best { font-weight: 700; background: var(--best); }
.level { background: var(--level); }
.notes span { padding: 1px 5px; border-radius: 3px; }
.notes, .about { color: var(--soft); font-size: .86rem; margin: 8px 0 0; overflow-wrap: anywhere; }
.about { margin-bottom: 10px; }
.legend { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 2px 18px; max-height: 25vh; overflow-y: auto; margin: 20px 0 0; padding: 8px 0; background: var(--card); border-bottom: 1px solid var(--line); list-style: none; font-size: .88rem; }
.legend li { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 22px; margin-right: 6px; border-top: 4px solid; vertical-align: middle; }
.swatch.dashed { border-top-style: dashed; }
.pictures { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
figure { margin: 0; }
figcaption { font-size: .88rem; font-weight: 600; text-align: center; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto; }
@media (max-width: 600px) {
  main { padding: 12px 8px 40px; } section { padding: 12px 10px; margin-top: 12px; border-radius: 6px; }
  h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; } table { font-size: .82rem; } th, td { padding: 5px 6px; }
  td:first-child { white-space: normal; overflow-wrap: break-word; }
}
@media print { body, section { background: #fff; border: 0; } figure { break-inside: avoid; } .legend { position: static; } }
"""  # noqa: E501


def page(sections: Sequence[Section], tables: Sequence[Sequence[Table]]) -> str:
    """The page of a report.

    Args:
        sections: What is compared.
        tables: The tables of each section, the results first.
    """
    # the tables are worth a page without pictures
    palette = colours(sections)
    try:
        drawn = [chapters(section, palette) for section in sections]
        missing = ""
    except ImportError as error:
        drawn = [[] for _ in sections]
        missing = f'<p class="about">No pictures are drawn: {escape(str(error))}.</p>'
    runs = sum(len(section.runs) for section in sections)
    body = ""
    for i, section in enumerate(sections):
        legend = _legend(section, palette) if drawn[i] else ""
        body += _section(f"s{i}", summary(section), tables[i], legend, drawn[i])
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
{missing}{_contents(sections)}{body}
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
    told = f"<summary>{len(sections)} comparisons</summary>"
    return f"<nav><details>{told}<ul>{links}</ul></details></nav>" if len(sections) > 1 else ""


def _section(
    name: str, words: str, tables: Sequence[Table], legend: str, drawn: Sequence[Chapter]
) -> str:
    first, *others = tables
    text = f'<section id="{name}"><h2>{escape(first.title)}</h2>'
    text += f'<p class="words">{escape(words)}</p>{_table(first)}'
    text += "".join(f"<h3>{escape(table.title)}</h3>{_table(table)}" for table in others)
    return text + legend + "".join(map(_chapter, drawn)) + "</section>"


def _legend(section: Section, palette: Colours) -> str:
    """The colours of a section's rows, which hold for all of its pictures."""
    rows = ""
    for row in section.rows:
        line = "swatch" if row.finished else "swatch dashed"
        swatch = f'<span class="{line}" style="color: {palette[row.label]}"></span>'
        rows += f"<li>{swatch}{escape(row.name)}</li>"
    return f'<ul class="legend">{rows}</ul>'


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
