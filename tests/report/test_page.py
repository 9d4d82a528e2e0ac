"""The page, as text and as a browser shows it."""

import json
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import pytest

from bhfl.report.page import page
from bhfl.report.reading import find_runs, read_run
from bhfl.report.rows import sections
from bhfl.report.tables import results
from tests.report import made

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = (1280, 390)

FRAMES = """<!DOCTYPE html><meta charset="utf-8"><body>{frames}<script>
addEventListener("load", () => {{
  document.body.dataset.found = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement, pictures = [...page.images];
    return {{
      accuracy: page.querySelector("tbody td:nth-child(3)")?.getBoundingClientRect().toJSON(),
      width: root.clientWidth, content: root.scrollWidth, pictures: pictures.length,
      broken: pictures.filter(picture => !picture.naturalWidth).length,
      scrolling: [...page.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth).length,
      fetched: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    }};
  }}));
}});
</script></body>"""  # noqa: E501
"""The page in a frame of each width, and what a browser makes of it."""


def shown(text: str, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What each width of the page came to in a browser, and the lines on its console."""
    frames = "".join(
        f'<iframe style="width:{w}px;height:20000px;border:0" srcdoc="{escape(text)}"></iframe>'
        for w in WIDTHS
    )
    (folder / "frames.html").write_text(FRAMES.format(frames=frames))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder}/browser",
        "--window-size=1400,900",
    ]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--dump-dom"]
    command = [str(BROWSER), *options, f"file://{folder}/frames.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<body data-found="([^"]*)"', done.stdout)
    assert found, done.stderr
    return json.loads(found[1].replace("&quot;", '"')), [
        line for line in done.stderr.splitlines() if "CONSOLE" in line
    ]


def report(root: Path) -> str:
    found = sections([read_run(folder) for folder in find_runs([root])])
    return page(found, [[results(section)] for section in found])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sections, a long label, and a run that is not finished."""
    root = tmp_path_factory.mktemp("runs")
    for bits in (2, 3):
        made.run(root / str(bits), made.config("FedPAQ", a_long_name_of_an_option=10**bits))
    made.run(root / "b", made.config(clients={"float32": 10}), {"float32": 0.5}, finished=False)
    return root


@pytest.fixture(scope="module")
def text(runs: Path) -> str:
    return report(runs)


def test_it_is_whole_and_loads_nothing(text: str) -> None:
    assert text.count("<section") == text.count("<table") == 2
    assert text.count("<img") == 9 + 2 + 3
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(source.startswith("data:") or source in ("#s0", "#s1") for source in sources)
    assert len(sources) == 14 + 3
    assert not re.search(r"<script|url\(|@import|srcset", text)
    assert '<td class="best">' in text


def test_a_section_begins_in_words_and_has_one_legend(text: str) -> None:
    first, second = text.split("<section")[1:]
    assert "is first, with" in first or "are equal, with" in first
    assert "No run is finished yet." in second
    for section, names in ((first, 2), (second, 1)):
        (legend,) = re.findall(r'<ul class="legend">(.*?)</ul>', section)
        assert legend.count("<li>") == names
    assert 'class="swatch dashed"' in second


def test_it_has_colours_for_light_and_dark_screens(text: str) -> None:
    light, dark = re.findall(r":root {([^}]*)}", text)
    names = set(re.findall(r"(--\w+):", light))
    assert set(re.findall(r"(--\w+):", dark)) == names == set(re.findall(r"var\((--\w+)\)", text))


def test_what_runs_are_called_is_no_markup(tmp_path: Path) -> None:
    made.run(
        tmp_path / "a", {**made.config(), "algorithm": {"class_path": "<script>alert(1)</script>"}}
    )
    text = report(tmp_path)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_without_matplotlib_it_says_so(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = report(runs)
    assert (
        "No pictures are drawn: pictures need matplotlib: pip install &#x27;bhfl[plots]&#x27;."
        in text
    )
    assert ("<img" in text, "<td>" in text) == (False, True)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_in_a_browser_at_desktop_and_phone_width(text: str, tmp_path: Path) -> None:
    found, console = shown(text, tmp_path)
    assert console == []
    for width, seen in zip(WIDTHS, found, strict=True):
        assert seen["width"] == seen["content"] == width  # nothing sticks out
        assert (seen["pictures"], seen["broken"], seen["fetched"]) == (14, 0, [])
    assert [seen["scrolling"] for seen in found] == [0, 2]  # the tables, each inside its box
    # of a phone of 844 pixels, too
    assert all(seen["accuracy"]["bottom"] < 844 for seen in found)
    assert all(seen["accuracy"]["right"] < seen["width"] for seen in found)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_browser_sees_what_is_wrong(tmp_path: Path) -> None:
    bad = (
        '<img src="http://nowhere.invalid/x.png"><div style="width:3000px">x</div>'
        '<script>console.log("y")</script>'
    )
    found, console = shown(f"<!DOCTYPE html><body>{bad}", tmp_path)
    assert len(console) >= 2
    assert [seen["broken"] for seen in found] == [1, 1]
    assert all(seen["content"] >= 3000 > seen["width"] for seen in found)
    assert all(seen["fetched"] == ["http://nowhere.invalid/x.png"] for seen in found)
