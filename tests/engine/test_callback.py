"""The base of callbacks: what the trainer takes, and when it calls what."""

from __future__ import annotations

import functools

import lightning as L
import pytest

from bhfl.callbacks import Callback, Progress, WeightHistograms
from bhfl.engine import FederatedTrainer
from bhfl.engine.hooks import HookError
from tests.federation import fit


def trainer(**options):
    return FederatedTrainer({32: 2}, **{"logger": False, **options})


class Duck:
    def on_round_end(self, trainer, metrics): ...


class Derived(Duck, Callback):
    """The remedy of the message: the base beside the class as it was."""


def test_a_callback_that_overrides_nothing_changes_nothing(tmp_path):
    assert fit(tmp_path, max_rounds=1, callbacks=[Callback()]).server.round == 1


@pytest.mark.parametrize(
    ("callbacks", "problem"),
    [
        (
            [Duck()],
            r"callbacks\[0\] must be an object of a class that derives from "
            "bhfl.engine.Callback, got Duck",
        ),
        (
            [Progress(), L.pytorch.callbacks.EarlyStopping("x")],
            r"callbacks\[1\] must be .* got EarlyStopping of Lightning",
        ),
        ([Progress], r"callbacks\[0\] must be .* got the class Progress: write Progress\(\)"),
        (Progress(), r"callbacks must be a list such as \[Progress\(\)\], got <"),
        ("Progress", r"callbacks must be a list such as \[Progress\(\)\], got 'Progress'"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks, problem):
    with pytest.raises(ValueError, match=problem):
        trainer(callbacks=callbacks)
    # what the messages advise
    assert trainer(callbacks=[Derived(), Progress(), WeightHistograms()])


def test_hooks_that_were_planted_later_are_checked_too():
    progress = Progress()
    progress.on_round_end = lambda trainer: None
    progress.on_fit_ended = lambda trainer, metrics: None
    with pytest.raises(
        ValueError, match=r"callbacks\[0\]: Progress.on_round_end\(trainer\) cannot be called"
    ) as caught:
        trainer(callbacks=[progress])
    assert "Progress.on_fit_ended is no hook" in str(caught.value)


def test_a_hook_that_only_hands_out_a_coroutine_is_refused_when_it_is_called(tmp_path):
    def hidden(function):
        return functools.wraps(function)(lambda *args, **named: function(*args, **named))

    class Late(Callback):
        @hidden
        def on_fit_start(self, trainer):
            yield "never"

    with pytest.raises(
        HookError, match=r"Late.on_fit_start must do its work when it is called, got a generator"
    ):
        fit(tmp_path, callbacks=[Late()])
