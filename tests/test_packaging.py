"""What the project says of itself: dependencies, versions known to work, licence, checks before a
commit.
"""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import bhfl

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> list[Requirement]:
    """All direct dependencies, of the extras too."""
    texts = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        texts += extra
    return [Requirement(text) for text in texts]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_each_dependency_has_a_version_that_is_known_to_work():
    known = constraints()
    assert {requirement.name for requirement in requirements()} == set(known)
    for requirement in requirements():
        assert requirement.specifier.contains(known[requirement.name]), requirement


WITH_FLOWER = {"rich": "14.3.4", "packaging": "25.0", "protobuf": "6.33.6", "click": "8.5.1"}
"""What pip chooses beside Flower 1.42, which wants rich below 15 and packaging below 26."""


def test_all_extras_fit_into_one_environment_with_flower():
    """What `pip check` would say there, of the packages that are installed here.

    Beside Flower, pip takes older releases of the tools of the extra ``dev``, whose newest ones
    need a newer packaging: of these, what is asked of them directly is looked at alone.
    """
    used = [*PROJECT["dependencies"]]
    for extra, texts in PROJECT["optional-dependencies"].items():
        used += texts if extra != "dev" else []
    tools = {one.name for one in requirements()} - {Requirement(text).name for text in used}
    waiting = requirements()
    seen = set()
    while waiting:
        needed = waiting.pop()
        if needed.name.lower() in WITH_FLOWER:
            assert needed.specifier.contains(WITH_FLOWER[needed.name.lower()]), needed
        if needed.name in tools:
            continue
        try:
            below = metadata.requires(needed.name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in below:
            one = Requirement(text)
            extras = needed.extras or {""}
            wanted = not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras)
            if wanted and str(one) not in seen:
                seen.add(str(one))
                waiting.append(one)
    assert len(seen) > 50


def test_the_licence_is_the_one_that_the_package_names():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Copyright 2026 The bhfl authors" in text


def test_the_citation_is_of_this_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == bhfl.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")


def test_the_pythons_that_are_promised_are_those_that_nox_tests():
    (listed,) = re.findall(r"^PYTHONS = (\[.*\])$", (ROOT / "noxfile.py").read_text(), re.M)
    nox = [sys.executable, "-m", "nox", "--list", "--json", "--noxfile", str(ROOT / "noxfile.py")]
    found = json.loads(subprocess.check_output(nox, text=True))
    assert [session["python"] for session in found] == yaml.safe_load(listed)
    prefix = "Programming Language :: Python :: "
    promised = [line.removeprefix(prefix) for line in PROJECT["classifiers"] if prefix in line]
    assert promised == ["3 :: Only", *yaml.safe_load(listed)]
    assert PROJECT["requires-python"] == ">=3.11"  # what is newer than these is not excluded


def test_the_checks_before_a_commit_run_tools_and_files_that_exist():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {"ruff", "ruff-format", "mypy", "fast-tests"} == {hook["id"] for hook in hooks}
    for hook in hooks:
        for path in re.findall(r"tests/\S+", hook["entry"]):
            assert (ROOT / path).exists(), path
