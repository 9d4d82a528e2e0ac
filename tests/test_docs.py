"""The documentation says what is so: its links lead somewhere, its code runs, its tables are whole.

What takes long is marked slow: ``make test-docs`` runs all of it.
"""

import html
import inspect
import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from filelock import FileLock

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*")
    if path.suffix in (".md", ".rst") and "_build" not in path.relative_to(DOCS).parts
)
TUTORIALS = [page for page in PAGES if page.parent.name == "tutorials" and page.stem != "index"]
MOST_WORDS = 1500
MOST_LINES = 30
"""What a cell of a tutorial may print: no dump of weights."""
sys.path.append(str(DOCS / "_ext"))

import facts  # noqa: E402

IMPORTS_ALONE = {"reference/wire.md", "howto/quantise.md"}
"""Pages whose code takes less than a second."""


OTHERS = {
    "howto/hub.md": ("timm", "transformers", "peft"),
    "howto/optuna.md": ("optuna",),
    "howto/tracking.md": ("wandb", "mlflow"),
}
"""Packages that nothing of ours depends on."""


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


# ---- pages as they are built ---------------------------------------------------------------------
# They come first: a build takes longest, and the other process runs what follows beside it.


class Page(HTMLParser):
    """What a page loads, where it leads, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.places |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical",):
            self.loads.append(found.get("href", ""))
        elif tag != "a":
            self.loads += [
                found[key] for key in ("src", "srcset", "data", "poster") if key in found
            ]


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """The pages, built as ``make docs`` does: a warning is an error."""
    for name in ("sphinx", "myst_nb", "pydata_sphinx_theme"):
        pytest.importorskip(name, reason="the extra docs is not installed: make test-docs")
    folder = tmp_path_factory.getbasetemp()
    # what the processes of one run of the tests have in common: one of them builds for all
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    said = folder / "docs-said.txt"
    with FileLock(folder / "docs.lock"):
        if not said.exists():
            said.write_text(build(folder))
    assert not said.read_text(), said.read_text()
    return folder / "html"


def build(folder: Path) -> str:
    """Build the pages into a folder; what was said if that failed."""
    command = [sys.executable, "-m", "sphinx", "-j", "2", "-b", "html", "-W", "--keep-going", "-q"]
    done = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done.stderr[-8000:] or "it failed" if done.returncode else ""


def written(built: Path) -> list[Path]:
    """The pages themselves, without the theme's templates."""
    return [path for path in built.rglob("*.html") if "_static" not in path.parts]


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(built):
    pages = written(built)
    assert len(pages) > 15
    for path in pages:
        for address in Page(path).loads:
            parts = urlsplit(address)
            assert not parts.scheme or parts.scheme == "data", f"{path.name}: {address}"
            assert not parts.netloc, f"{path.name}: {address}"
            if parts.path:
                assert (path.parent / unquote(parts.path)).exists(), f"{path.name}: {address}"
        inline = html.unescape(path.read_text())
        for script in re.findall(r"<script[^>]*>(.*?)</script>", inline, re.S):
            assert not re.search(r"https?://", script), path.name
    for path in built.rglob("*.css"):
        for address in re.findall(r"url\(([^)]*)\)|@import ([^;]*);", path.read_text()):
            assert not re.match(r"[\"'\s]*(https?:)?//", "".join(address)), path.name


@pytest.mark.slow
def test_links_and_anchors_of_built_pages_lead_somewhere(built):
    pages = {path.resolve(): Page(path) for path in written(built)}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert other.exists(), f"{path.name}: {link}"
            anchor = unquote(parts.fragment)
            if anchor and other in pages:
                assert anchor in pages[other].places, f"{path.name}: {link}"


@pytest.mark.slow
def test_the_search_works_from_the_disk(built):
    """Its index is a script, which a page on a disk may load; a fetch is what it may not do."""
    assert (built / "searchindex.js").read_text().startswith("Search.setIndex(")
    page = Page(built / "search.html")
    assert any("searchtools.js" in address for address in page.loads)
    assert any("searchindex.js" in address for address in page.loads)
    assert "DOCUMENTATION_OPTIONS" in (built / "_static/documentation_options.js").read_text()
    options = (built / "_static/documentation_options.js").read_text()
    assert re.search(r"SHOW_SEARCH_SUMMARY: false", options)


@pytest.mark.slow
def test_formulas_are_drawn_by_a_file_of_ours(built):
    page = Page(built / "reference/methods.html")
    assert any("mathjax/tex-svg.js" in address for address in page.loads)
    assert math.isclose((built / "_static/mathjax/tex-svg.js").stat().st_size, 2_108_580, abs_tol=1)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=name_of)
def test_cells_of_a_tutorial_ran_and_said_little(built, page):
    notebook = built.parent / "jupyter_execute/tutorials" / f"{page.stem}.ipynb"
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    for output in outputs:
        assert output["output_type"] != "error", output
        said = output.get("text", []) + output.get("data", {}).get("text/plain", [])
        if output.get("name") == "stderr":
            # one line, which changes with each round, however the notebook has cut it up
            lines = [line for line in re.split(r"[\r\n]+", "".join(said)) if line]
            assert all(re.match(r"round +\d+/\d+  ", line) for line in lines), output
            continue
        assert len(said) <= MOST_LINES, said[:3]
    num_pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    built_page = Page(built / "tutorials" / f"{page.stem}.html")
    shown = [address for address in built_page.loads if "_images" in address]
    assert num_pictures == len(shown) > 0
    assert any(link.endswith(f"/{page.stem}.ipynb") for link in built_page.links)


# ---- pages as they are written -------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.is_file(), f"{name_of(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.M)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_short_and_names_what_exists(page):
    text = page.read_text()
    if "reference" not in page.parts:
        assert len(text.split()) <= MOST_WORDS
    # code in blocks of another kind would not run
    known = r"python|bash|yaml|text|\{[\w:-]+\}"
    assert not re.findall(rf"^```(?!(?:{known})\b)\w+", text, re.M)
    assert ">>> " not in text
    for path in re.findall(r"`((?:bhfl|configs|examples)/[\w/]+\.(?:py|yaml|md))`", text):
        assert (ROOT / path).is_file(), path
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z][a-z0-9-]+)", text)) <= targets


def test_pages_link_to_nothing_outside_and_load_nothing_from_there():
    for page in PAGES:
        assert not re.search(r"https?://", page.read_text()), name_of(page)


@pytest.mark.parametrize("page", pages_with("yaml"), ids=name_of)
def test_configurations_on_pages_can_be_parsed(page, tmp_path, monkeypatch, capsys):
    from bhfl.main import main

    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "yaml"):
        (tmp_path / "page.yaml").write_text(block)
        fleet = [] if "clients" in yaml.safe_load(block) else ["--clients", "{8: 2, 32: 2}"]
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--config", "page.yaml", *fleet, "--print_config"])
        assert ended.value.code == 0, capsys.readouterr().err


# ---- tutorials -----------------------------------------------------------------------------------


def test_every_tutorial_is_in_the_index():
    text = (DOCS / "tutorials/index.md").read_text()
    contents = blocks(DOCS / "tutorials/index.md", r"\{toctree\}")[0].splitlines()
    assert len(TUTORIALS) == 8
    assert sorted(contents[1:]) == [page.stem for page in TUTORIALS]
    for page in TUTORIALS:
        assert f"({page.name})" in text, page.name


@pytest.mark.parametrize("page", TUTORIALS, ids=name_of)
def test_a_tutorial_is_a_notebook_whose_cells_all_run(page):
    text = page.read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["jupytext"]["text_representation"]["format_name"] == "myst"
    assert header["kernelspec"]["name"] == "python3"
    assert len(blocks(page, r"\{code-cell\} python")) == text.count("{code-cell}") > 5
    for not_run in ("python", r"\{code-block\} python"):
        assert not blocks(page, not_run), f"{page.name}: a block that is no cell does not run"
    for tag in ("skip-execution", "raises-exception"):
        assert tag not in text, page.name


# ---- code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            marks=() if name_of(page) in IMPORTS_ALONE else pytest.mark.slow,
            id=name_of(page),
        )
        for page in pages_with("python")
    ],
)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """Its blocks one after the other, as in a session; a run's rounds are few."""
    for package in OTHERS.get(name_of(page), ()):
        pytest.importorskip(package, reason=f"{package} is no dependency: pip install {package}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, source in re.findall(
        r"^```\{code-block\} python\n:caption: (\w+\.py)\n\n(.*?)^```",
        page.read_text(),
        re.S | re.M,
    ):
        (tmp_path / name).write_text(source)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(re.sub(r"max_rounds=\d+", "max_rounds=1", block), names)


TYPES = """\
[mypy]
strict = true
ignore_missing_imports = true
# what torch does not say, such as what Tensor.backward is given
untyped_calls_exclude = torch
[mypy-bhfl.*]
ignore_errors = true
"""


def modules_of(page: Path) -> dict[str, str]:
    """The code of a page as a user's files: those that it names, and one of all else."""
    files = {}
    rest = []
    code = r"^```(?:\{code-(?:block|cell)\} )?python\n(?::caption: (\w+)\.py\n)?(.*?)^```"
    for name, source in re.findall(code, page.read_text(), re.S | re.M):
        lines = [line for line in source.splitlines() if not re.match(r":[\w-]+:", line)]
        if name:
            files[name] = "\n".join(lines)
        else:
            rest += lines
    if rest:
        files["page_" + re.sub(r"\W", "_", str(page.relative_to(ROOT)))] = "\n".join(rest)
    return files


@pytest.mark.slow
def test_code_of_readme_and_pages_passes_mypy_strict(tmp_path):
    """One process over all of it, as a user's who has installed bhfl."""
    for page in (ROOT / "README.md", *PAGES):
        for name, source in modules_of(page).items():
            assert not (tmp_path / f"{name}.py").exists(), f"two pages name {name}.py"
            (tmp_path / f"{name}.py").write_text(source + "\n")
    (tmp_path / "mypy.ini").write_text(TYPES)
    files = sorted(tmp_path.glob("*.py"))
    assert len(files) > 25
    options = ["--config-file", tmp_path / "mypy.ini", "--cache-dir", ROOT / ".mypy_cache/pages"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def typed(tmp_path_factory) -> Iterator[str]:
    """What is run for a ``bhfl`` that a page types."""
    place = tmp_path_factory.mktemp("bhfl") / "socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", place], cwd=ROOT, env=environment()
    )
    while not place.exists():
        assert server.poll() is None
        time.sleep(0.1)
    yield f'"{sys.executable}" -S "{ROOT / "tests/forked.py"}" "{place}"'
    server.kill()
    server.wait()


def environment() -> dict[str, str]:
    """That of a user who has installed this checkout, on a machine without a GPU."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "PATH": path}


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("bash"), ids=name_of)
def test_commands_of_a_page_run(page, tmp_path, typed):
    for name, source in re.findall(
        r"^```\{code-block\} (?:python|yaml)\n:caption: ([\w.]+)\n\n(.*?)^```",
        page.read_text(),
        re.S | re.M,
    ):
        (tmp_path / name).write_text(source)
    script = "\n".join(
        [
            "set -eo pipefail",
            f'bhfl() {{ {typed} "$@"; }}',
            *blocks(page, "bash"),
        ]
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


# ---- the wire format, from its page alone --------------------------------------------------------

BFLOAT16 = 4


@pytest.fixture(scope="module")
def wire() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(blocks(DOCS / "reference/wire.md", "python")[0], names)
    return names


def some_tensors() -> dict[str, Any]:
    """Every dtype, every width, odd sizes, scalars, empty tensors."""
    from bhfl.comm.wire import DTYPES
    from bhfl.quant import quantize
    from bhfl.quant.signs import signs

    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Any] = {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3)}
    for kind, dtype in DTYPES.items():
        values = torch.randint(0, 2, (3, 5), generator=generator)
        tensors[f"plain.{kind}"] = values.to(dtype)
    for bits in range(2, 17):
        values = torch.randn(7, 2 * bits + 1, generator=generator)
        tensors[f"läyer.{bits}"] = quantize(values, bits)
        tensors[f"rows.{bits}"] = quantize(values, bits, granularity="channel")
        few = quantize(values * (values > 1), bits)
        tensors[f"few.{bits}"] = replace(few, sparse=True)
    for granularity in ("tensor", "channel"):
        tensors[f"signs.{granularity}"] = signs(values, granularity)
    return tensors


def test_code_of_the_wire_page_reads_what_bhfl_writes(wire):
    from bhfl.comm import encode
    from bhfl.comm.wire import KINDS
    from bhfl.quant import QuantizedTensor

    tensors = some_tensors()
    read = wire["decode"](encode(tensors))
    assert list(read) == list(tensors)
    for name, value in tensors.items():
        kind, bits, shape, values, codes = read[name]
        if isinstance(value, QuantizedTensor):
            dense = (33 if value.scale.ndim else 32) + 3 * (value.bits == 1)
            assert (kind, bits) == (34 if value.sparse else dense, value.bits)
            assert codes == value.codes.reshape(-1).tolist()
            plain, shape_of = value.scale, value.codes.shape
        else:
            assert (kind, bits, codes) == (KINDS[value.dtype], 0, [])
            plain, shape_of = value, value.shape
        assert shape == tuple(shape_of)
        assert values == plain.reshape(-1).tolist()


def test_bhfl_reads_what_code_of_the_wire_page_writes(wire):
    from bhfl.comm import decode, encode

    message = encode(some_tensors())
    assert wire["encode"](wire["decode"](message)) == message
    assert encode(decode(message)) == message


def test_the_wire_page_has_the_kinds_and_limits_of_the_format(wire):
    from bhfl.comm import wire as ours

    assert {kind for kind in wire["SIZES"] if kind < 32} == set(ours.DTYPES)
    coded = {kind for kind in wire["SIZES"] if kind >= 32}
    assert coded == {*ours._CODED}
    for kind, dtype in ours.DTYPES.items():
        assert wire["SIZES"][kind] == dtype.itemsize
        if kind != BFLOAT16:
            assert struct.calcsize("<" + wire["PLAIN"][kind]) == dtype.itemsize
    text = (DOCS / "reference/wire.md").read_text()
    for limit in (ours.MAX_TENSORS, ours.MAX_HEADER_BYTES, ours.MAX_NAME_BYTES, ours.MAX_DIMS):
        assert f"{limit:,}" in text


# ---- tables that code could outgrow --------------------------------------------------------------


@pytest.mark.parametrize("room", ["engine", "quant", "data", "algorithms", "models", "callbacks"])
def test_public_names_have_words(room):
    for name in facts.public_names(f"bhfl.{room}"):
        value = facts.named(f"bhfl.{room}.{name}")
        assert name in facts.public(f"bhfl.{room}")
        if inspect.isclass(value) or inspect.isfunction(value):
            assert facts.first_sentence(value), name


def test_every_option_is_on_the_page_of_the_configuration():
    from bhfl import algorithms
    from bhfl.engine import FederatedTrainer

    # those of a group of options stand below it
    listed = {option.key.split(".")[1] for option in facts.trainer_options()}
    taken = set(inspect.signature(FederatedTrainer).parameters)
    assert listed == taken - {"clients", "algorithm", "seed"}
    for option in facts.trainer_options():
        assert option.text, option.key
        assert option.key in facts.trainer()
    for name in algorithms.__all__:
        for option in facts.options(getattr(algorithms, name)):
            assert option.text, f"{name}.{option.key}"


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        ("typing.Optional[int]", "integer or null"),
        ("typing.Union[str, pathlib.Path, NoneType]", "path or null"),
        ("typing.Literal['a', 'b']", "a or b"),
        ("typing.Union[bool, typing.Literal['auto']]", "true or false or auto"),
        (
            "typing.Optional[dict[str, bhfl.comm.network.links.Profile]]",
            "dict[text, Profile] or null",
        ),
    ],
)
def test_types_are_told_in_words(hint, words):
    assert facts.shown(hint) == words


def test_every_method_has_a_card_with_its_options():
    from bhfl import algorithms

    text = (DOCS / "reference/methods.md").read_text()
    cards = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.S | re.M))
    assert set(cards) == set(algorithms.__all__)
    for name, card in cards.items():
        for row in ("Paper", "Rule", "Options", "Ours", "Configuration", "Class"):
            assert f"| {row} |" in card, name
        for option in facts.options(getattr(algorithms, name)):
            generated = "see [the configuration]" in card
            assert generated or f"`{option.key}`" in card or "those of" in card, option.key


def test_exit_codes_are_on_their_page():
    from bhfl.cli import exits
    from bhfl.engine.ending import LOST

    text = (DOCS / "reference/exit-codes.md").read_text()
    codes = [exits.BAD_CONFIG, exits.BAD_DATA, exits.BAD_CHECKPOINT, exits.TOO_FEW_CLIENTS, LOST]
    for code in (0, *codes, 130, 143):
        assert f"\n| {code} | " in text


def tags_on_page() -> list[re.Pattern[str]]:
    """The tags of the page as patterns, its letters as in its first paragraph."""
    text = (DOCS / "reference/metrics.md").read_text()
    first_cells = re.findall(r"^\| ([^|]*) \|", text, re.M)
    tags = re.findall(r"`([\w/]+)`", " ".join(first_cells))
    letters = {
        r"\bM": "(loss|acc)",
        "_G": "_[a-z0-9]+",
        "_S": "_(mean|std|worst10|jain)",
        "_L": r"_[\w.]+",
    }
    patterns = []
    for tag in tags:
        for letter, what in letters.items():
            tag = re.sub(letter + r"(?=_|$)", lambda _, what=what: what, tag)
        patterns.append(re.compile(tag))
    return patterns


def test_metrics_and_files_of_a_run_are_on_their_pages(tmp_path):
    from bhfl.comm.network import SimulatedNetwork
    from tests.federation import fake, fit

    trainer = fit(
        tmp_path,
        data=fake(client_val_fraction=0.2, client_test_fraction=0.2),
        max_rounds=1,
        evaluate_clients="both",
        network=SimulatedNetwork("phone-4g"),
        logger=True,
    )
    patterns = tags_on_page()
    measured = json.loads((trainer.run.folder / "summary.json").read_text())["metrics"]
    for tag in [*trainer.run.history[-1], *measured]:
        assert "/" not in tag or any(one.fullmatch(tag) for one in patterns), tag
    text = (DOCS / "reference/run-folder.md").read_text()
    for path in trainer.run.folder.iterdir():
        name = re.sub(r"tfevents\..*", "tfevents.*", path.name)
        assert f"`{name}" in text, name


def test_tags_of_methods_are_on_the_page_of_metrics():
    patterns = tags_on_page()
    for path in sorted((ROOT / "bhfl/algorithms").rglob("*.py")):
        for tag in re.findall(
            r'"((?:prowd|fedlq|dequantizer|adaquantfl|comm)/[^"]*)"', path.read_text()
        ):
            made = re.sub(r"\{[^}]*\}", "x", tag)
            assert any(one.fullmatch(made) for one in patterns), f"{path.name}: {tag}"


def test_messages_on_the_page_of_questions_are_said_by_the_code():
    """What is fixed in a message stands in the source, or in a test of what torch says."""
    files = [*(ROOT / "bhfl").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    text = " ".join(path.read_text() for path in files if path.name != Path(__file__).name)
    said = " ".join(re.sub(r'"\s*f?"', "", text).split())
    pages = "\n".join((DOCS / name).read_text() for name in ("faq.md", "howto/resume.md"))
    for message in re.findall(r"(?:\*\*|^\| )`([^`]+)`", pages, re.M):
        parts = re.split(r"'[^']*'|\d[\d.e+%]*|…|\?|=|\bmax_ronds\b", message)
        for part in (part.strip(" ;:,'") for part in parts):
            assert len(part) < 8 or part in said, f"{message}: {part}"
