"""What watches a run: callbacks, whose hooks the trainer calls on every process."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import lightning as L

from bhfl.engine.hooks import Guard, HookError

if TYPE_CHECKING:
    from bhfl.engine.records import ClientRecord
    from bhfl.engine.trainer import FederatedTrainer
    from bhfl.engine.types import Client, Metrics


class Callback:
    """The base of all callbacks: override the hooks that you need.

    Hooks are called on every process, as ``hook(trainer, **named)``: check
    ``trainer.fabric.is_global_zero`` before anything that one process should do. They are given
    what the run uses, so they are not to change it, but for ``trainer.should_stop``: set to True on
    any process, it ends a fit after the round that is at work.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class with a method that looks like a hook and is none."""
        super().__init_subclass__(**kwargs)
        _GUARD.check_class(cls)

    def around(self, trainer: "FederatedTrainer", stage: str) -> AbstractContextManager[object]:
        """A context that a fit or a measurement lies in, from before its data and its model are set
        up to its end, whatever that is. By default nothing is done.

        Args:
            trainer: What trains or measures.
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Returns:
            It is entered once, on every process.
        """
        return nullcontext()

    def on_fit_start(self, trainer: "FederatedTrainer") -> None:
        """Everything is set up, a checkpoint is taken up, and no round has begun."""

    def on_client_end(
        self, trainer: "FederatedTrainer", client: "Client", record: "ClientRecord"
    ) -> None:
        """A client of this process is done with its round.

        Args:
            trainer: The run's.
            client: Who is done.
            record: What became of it: its status, bytes, steps and metrics.
        """

    def on_round_end(self, trainer: "FederatedTrainer", metrics: dict[str, Any]) -> None:
        """A round is logged and saved, so that a run that is killed in here goes on after it,
        without this call.

        Args:
            trainer: The run's.
            metrics: Its row of ``rounds.jsonl``, by tag.
        """

    def on_test_end(self, trainer: "FederatedTrainer", metrics: "Metrics") -> None:
        """The test at the end of a fit is done, and the loggers are still open.

        Args:
            trainer: The run's; its `session.evaluator.own` has what each client's model is worth on
                test samples of its own.
            metrics: What was measured, by tag.
        """

    def on_fit_end(self, trainer: "FederatedTrainer", metrics: "Metrics") -> None:
        """The run is done.

        Args:
            trainer: The run's.
            metrics: Those of its test, by tag.
        """

    def on_measured(
        self, trainer: "FederatedTrainer", metrics: "Metrics", stage: Literal["val", "test"]
    ) -> None:
        """`trainer.validate` or `trainer.test` is done.

        Args:
            trainer: Who measured.
            metrics: What was measured, by tag.
            stage: The split.
        """


# `call_hook` gives what comes after the trainer by name, so hooks may not call it otherwise.
_GUARD = Guard(Callback, by_name=True)


def callback_problems(callbacks: Any) -> list[str]:
    """What is wrong with the callbacks that a trainer was given, one a line."""
    if callbacks is None:
        return []
    if not isinstance(callbacks, list | tuple):
        return [f"callbacks must be a list such as [Progress()], got {callbacks!r}"]
    problems = []
    for i, callback in enumerate(callbacks):
        if isinstance(callback, Callback):
            try:
                # its class was checked when it was made; an attribute may hide a hook since
                _GUARD.check(callback)
            except HookError as error:
                problems += [f"callbacks[{i}]: {line}" for line in str(error).splitlines()]
            continue
        got = type(callback).__name__
        # Lightning's hooks have some of our names, with other arguments
        if isinstance(callback, L.Callback):
            got = f"{got} of Lightning"
        elif isinstance(callback, type):
            got = f"the class {callback.__name__}: write {callback.__name__}()"
        problems.append(
            f"callbacks[{i}] must be an object of a class that derives from "
            f"bhfl.engine.Callback, got {got}"
        )
    return problems


def call_hook(
    callbacks: Sequence[Callback], hook: str, trainer: "FederatedTrainer", **arguments: Any
) -> None:
    """Call `hook` of all callbacks, as ``hook(trainer, **arguments)``.

    Raises:
        HookError: It gave a coroutine or a generator, whose body has not run.
    """
    for callback in callbacks:
        result = getattr(callback, hook)(trainer, **arguments)
        # the guard reads signatures; that a wrapped function gives a coroutine shows only here
        if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise HookError(
                f"{type(callback).__name__}.{hook} must do its work when it is called, got a "
                f"{type(result).__name__}"
            )
