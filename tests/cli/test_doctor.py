"""``bhfl doctor`` tells what is there, what is missing, and what is broken."""

import re
import sys

import pytest

from bhfl.checks import CONSOLE
from bhfl.cli import checkup, doctor
from bhfl.quant.backends import auto, machine
from bhfl.quant.backends.bnb import BitsAndBytes
from tests.cli.conftest import Command


@pytest.fixture(autouse=True)
def _what_other_tests_go_by_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "TABLES", {})
    # it brings an SGD of its own, and the short name would have two meanings from here on
    monkeypatch.setattr(BitsAndBytes, "require", lambda self: None)


def test_all_is_well(bhfl: Command) -> None:
    code, out, err = bhfl("doctor")
    assert (code, err) == (0, "")
    assert out.startswith("bhfl 0.1.0, Python 3.")
    assert re.search(r"\nall is well \(\d+\.\d s\)\n$", out)
    assert max(map(len, out.splitlines())) <= CONSOLE
    for part in ("packages", "cores", "extras", "devices", "backends on", "self-test"):
        assert re.search(rf"^ *{part}", out, re.M), part
    assert out.count(" ok: ") == len(checkup.TESTS) == 3
    for label in ("torch", "plots", "fake", "auto-integer"):
        assert label in out


def test_a_part_that_is_broken_is_told_and_the_rest_tested(
    bhfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "decode", lambda payload: 1 // 0)
    code, out, _ = bhfl("doctor")
    assert code == 1
    assert "codes         FAILED: ZeroDivisionError: " in out
    assert "\nnot all is well: 1 of 3 tests failed (" in out
    assert out.count(" ok: ") == 2


def test_wrong_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "fake_quantize", lambda weight, bits: weight)
    with pytest.raises(ArithmeticError, match="not what was computed with at 2 bits"):
        checkup.TESTS["codes"]()


def test_extras_and_packages_that_are_missing_name_their_command(
    bhfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ("matplotlib", "onnxscript", "sphinx", "rich", "torchmetrics")
    known = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "" if name in gone else known(name))
    code, out, _ = bhfl("doctor")
    assert code == 1
    assert "plots         pip install 'bhfl[plots]' (missing: matplotlib)" in out
    assert "onnx          pip install 'bhfl[onnx]' (missing: onnxscript)" in out
    assert "docs          not installed: pip install -e '.[docs]'" in out
    assert out.endswith("\nnot all is well: pip install torchmetrics rich\n")


def test_a_torch_that_cannot_be_imported_is_told(
    bhfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bhfl.cli.checkup", None)
    code, out, _ = bhfl("doctor")
    assert code == 1
    assert "\nnot all is well: bhfl cannot be imported: ModuleNotFoundError: " in out


def test_without_pip_nothing_is_said_of_extras(
    bhfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requires(name: str) -> list[str]:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", requires)
    code, out, _ = bhfl("doctor")
    assert code == 0
    assert "unknown: bhfl was not installed by pip" in out


@pytest.mark.parametrize(
    ("flags", "products", "chosen"),
    [
        ({"avx2"}, "instructions: none", "fake for all layers"),
        (
            {"avx_vnni"},
            "instructions: avx_vnni",
            "int8 for linear layers from 256 channels, else fake",
        ),
    ],
)
def test_backends_of_other_processors(
    bhfl: Command,
    monkeypatch: pytest.MonkeyPatch,
    flags: set[str],
    products: str,
    chosen: str,
) -> None:
    monkeypatch.setattr(machine, "_flags", lambda: flags)
    monkeypatch.setattr(machine, "_kept", lambda device: {("int8", "linear"): 256})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = bhfl("doctor").out
    assert re.search(rf"^  products +{products}$", out, re.M)
    assert re.search(rf"^  auto +{chosen}", out, re.M)


def test_a_backend_that_cannot_be_used_says_why(
    bhfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require(self: BitsAndBytes) -> None:
        raise ImportError("no such package: pip install bitsandbytes")

    monkeypatch.setattr(BitsAndBytes, "require", require)
    code, out, _ = bhfl("doctor")
    assert code == 0
    assert "  bitsandbytes  cannot be used: no such package: pip install bitsandbytes\n" in out


@pytest.mark.parametrize(("arg", "word"), [("x", "'x'"), ("--x", "--x")])
def test_it_has_no_options(bhfl: Command, arg: str, word: str) -> None:
    done = bhfl("doctor", arg)
    assert done.code == 2
    assert done.problems == [f"{word} is not understood: bhfl doctor has no options"]
    assert bhfl("doctor", "--help").out.startswith("usage: bhfl doctor")
