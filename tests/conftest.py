"""What holds for every test."""

import gc
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.interrupts import hear_interrupts

hear_interrupts()

# Two threads in each of two processes on two cores wait for each other in loops, and made some
# tests ten times as dear. Set before torch is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# A machine that loses its power is not tested, and to wait for its disk took a third of the time of
# short runs. Processes that tests start still wait.
os.fsync = lambda file: None


# Every Fabric and every Trainer looks for Lightning's plug-ins in the files of all installed
# packages, which takes 6 ms each time.
_look_for = importlib.metadata.entry_points


@cache
def _found(path: tuple[str, ...], **which: Any) -> importlib.metadata.EntryPoints:
    return _look_for(**which)


importlib.metadata.entry_points = lambda **which: _found(tuple(sys.path), **which)


def _ask_git_once(environment: Any) -> None:
    """Every run asks git for the commit of the current folder, in one or two processes; here a
    repository is asked once, and where there is none, nobody is. Tests of the question itself
    import it by its name, and runs in processes of their own ask.
    """
    ask = cache(environment.git)

    def asked(folder: Path) -> Any:
        here = folder.absolute()
        tops = [place for place in (here, *here.parents) if (place / ".git").exists()]
        return ask(tops[0]) if tops else None

    environment.git = asked


def _write_scalars_once(parser: Any) -> None:
    """Each command writes each option and reads it again, to see whether it can be; here the same
    number or word of an option of the same kind is written once.
    """
    ask = parser.reads_back
    answers: dict[Any, bool] = {}

    def asked(action: Any, value: Any) -> bool:
        if type(value) not in (bool, int, float, str):
            return ask(action, value)
        hint = getattr(action, "_typehint", None)
        # of a union, which is equal to that of another order, the first member that fits counts
        key = (hint, repr(hint), type(value), repr(value))
        if key not in answers:
            answers[key] = ask(action, value)
        return answers[key]

    parser.reads_back = asked


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: no later collection has to look through
    millions of objects for garbage again.
    """
    if environment := sys.modules.get("bhfl.engine.environment"):
        _ask_git_once(environment)
    if parser := sys.modules.get("bhfl.cli.parser"):
        _write_scalars_once(parser)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed_of_lightning_is_put_back() -> Iterator[None]:
    """`lightning.seed_everything` leaves a variable behind, which later trainers take their seed
    from.
    """
    before = os.environ.pop("PL_GLOBAL_SEED", None)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
    if before is not None:
        os.environ["PL_GLOBAL_SEED"] = before


@pytest.fixture(autouse=True)
def _registered_quantizers_are_put_back() -> Iterator[None]:
    """A name is registered once in a process, and examples of several pages register the same."""
    yield
    # not imported here: some tests run without torch
    if quantizers := sys.modules.get("bhfl.quant.quantizers"):
        quantizers.REGISTERED.clear()
