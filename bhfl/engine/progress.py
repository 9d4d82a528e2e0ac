"""What a run says while it goes on: bars on a terminal, a line in a notebook, plain lines
elsewhere; and at the end a table and what to type next.

Lines and tables go to the logger ``bhfl`` as INFO: the command line prints them, and in Python
``logging`` says what becomes of them.
"""

import logging
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bhfl.checks import aligned
from bhfl.engine.callback import Callback
from bhfl.engine.console import terminal
from bhfl.engine.figures import group_rows, megabytes, metric_names
from bhfl.engine.roster import group_sizes, one_of_each
from bhfl.engine.screen import Screen
from bhfl.engine.types import Metrics
from bhfl.settings import Output
from bhfl.tags import ABSENT, LOST, STATUSES

_LOG = logging.getLogger("bhfl")


class Progress(Callback):
    """Bars of rounds and of clients on a terminal, with warnings above them; a line that changes in
    a notebook; one line a round elsewhere; and a table at the end.

    Lines and the table are messages of the logger ``bhfl``, as INFO. A trainer has this callback
    unasked where somebody looks on, see ``enable_progress_bar``.

    Args:
        metric: The metric shown by bit group in each round, without its stage: ``acc`` for
            ``val/acc_<group>``. That of `trainer.monitor` stands in where it is not logged; the
            table at the end has all.
    """

    def __init__(self, metric: str = "acc") -> None:
        self.metric = metric
        self._screen: Screen | None = None

    @contextmanager
    def around(self, trainer: Any, stage: str) -> Iterator[None]:
        """Show on a terminal what is done, from the first seconds on."""
        shows = trainer.settings.output.enable_progress_bar and trainer.fabric.is_global_zero
        console = terminal() if shows else None
        if console is not None:
            self._screen = Screen(console)
        try:
            yield
        finally:
            self._close()

    def _close(self) -> None:
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    def on_fit_start(self, trainer: Any) -> None:
        """Say what is about to run."""
        if not trainer.fabric.is_global_zero:
            return
        processes = trainer.fabric.world_size
        sizes = group_sizes(trainer.clients)
        fleet = ", ".join(f"{size} x {group}" for group, size in sizes.items())
        frozen = sum(tensor.numel() for tensor in trainer.server.buffers["frozen"].values())
        size = frozen + sum(tensor.numel() for tensor in trainer.server.params.values())
        told = f"{size:,} parameters" + f" ({frozen:,} frozen)" * bool(frozen)
        _LOG.info(
            f"{type(trainer.algorithm).__name__}: {len(trainer.clients)} clients ({fleet}), "
            f"{told}, {processes} process{'es' * (processes > 1)} on "
            f"{trainer.fabric.device.type}"
        )
        _LOG.info(f"logs and checkpoints: {trainer.run.folder}")
        if self._screen is not None:
            # a resumed run goes on where it stopped
            self._screen.begin(trainer.server.round, trainer.settings.stopping.max_rounds)

    def on_client_end(self, trainer: Any, client: Any, record: Any) -> None:
        """Count the client in its bar."""
        if self._screen is not None:
            self._screen.count(record.status == "ok", trainer.session.dealer.num_dealt)

    def on_round_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Show the round's loss and metrics, and what has been sent so far."""
        if not trainer.fabric.is_global_zero:
            return
        figures = self._figures(trainer, metrics)
        shown = {name: f"{value:.4f}" for name, value in figures.items()}
        if (epsilon := metrics.get("privacy/epsilon")) is not None:
            shown["epsilon"] = f"{epsilon:.3g}"
        shown["up"] = f"{megabytes(1e6 * metrics['comm/uplink_MB'])} MB"
        shown["down"] = f"{megabytes(1e6 * metrics['comm/downlink_MB'])} MB"
        if self._screen is not None:
            self._screen.end_round(shown, trainer.run.best_round == metrics["round"])
            return
        text = "  ".join(f"{name} {value}" for name, value in shown.items())
        total = trainer.settings.stopping.max_rounds
        line = f"round {metrics['round']:>{len(str(total))}}/{total}  {text}"
        if trainer.settings.output.enable_progress_bar and in_notebook():
            # over the last one
            sys.stderr.write(f"\r{line}")
            sys.stderr.flush()
            return
        _LOG.info(f"{line}  {metrics['time/round_s']:.1f} s")

    def _figures(self, trainer: Any, metrics: dict[str, Any]) -> Metrics:
        """The loss of training, and the metric of each bit group, as far as they were measured."""
        figures = {"loss": metrics.get("train/loss")}
        name = self.metric
        label = ""
        monitor = trainer.settings.choice.monitor.removeprefix("val/")
        monitored = monitor.removesuffix("_avg").removesuffix("_min")
        measured = metric_names(metrics, "val")
        # a model without an accuracy is watched by what its rounds are chosen by
        if name not in measured and monitored in measured:
            name = monitored
            label = f" {name}"
        for group in group_sizes(trainer.clients):
            figures[group + label] = metrics.get(f"val/{name}_{group}")
        return {name: value for name, value in figures.items() if value is not None}

    def on_fit_end(self, trainer: Any, metrics: Metrics) -> None:
        """Say the table, and what to type next."""
        self._close()
        if trainer.fabric.is_global_zero:
            _LOG.info("\n" + table(trainer, metrics, self.metric, "test"))
            _LOG.info("\n" + following(trainer))

    def on_measured(self, trainer: Any, metrics: Metrics, stage: str) -> None:
        """Print the table of ``bhfl validate`` and ``bhfl test``."""
        self._close()
        if trainer.fabric.is_global_zero:
            _LOG.info(table(trainer, metrics, self.metric, stage))


def with_progress(output: Output) -> list[Callback]:
    """The callbacks of a trainer: those that it was given, and a bar where somebody looks on.

    Args:
        output: The trainer's settings.
    """
    given = list(output.callbacks or [])
    watched = sys.stdout.isatty() or in_notebook()
    told = any(isinstance(callback, Progress) for callback in given)
    return [Progress(), *given] if output.enable_progress_bar and watched and not told else given


def in_notebook() -> bool:
    """Whether this is the process of a notebook."""
    # what has not been imported does not run this code
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


def table(trainer: Any, metrics: Metrics, metric: str, stage: str) -> str:
    """What was measured of each bit group and of all clients, `metric` first, accuracies in per
    cent, with the bytes really sent where a run has been.
    """
    sent = trainer.run.ledger.by_group if trainer.run is not None else None
    sizes = group_sizes(trainer.clients)
    lines = aligned(group_rows(metrics, stage, sizes, sent, metric))
    width = max(map(len, lines))
    text = [lines[0], "-" * width, *lines[1:-1], "-" * width, lines[-1]]
    if trainer.run is not None:
        history = trainer.run.history
        text.append(
            f"{len(history)} rounds in {trainer.run.seconds:.1f} s; bytes as measured on the "
            "payloads"
        )
        text += _notes(history)
    device = trainer.fabric.device.type
    notes = dict.fromkeys(one.devices.caution(device) for one in one_of_each(trainer.clients))
    text += [f"note: {note}" for note in notes if note]
    return "\n".join(text)


def following(trainer: Any) -> str:
    """The best round of a run that is done, where its files are, and what can be typed next."""
    run = trainer.run
    lines = []
    if run.best is not None:
        lines.append(
            f"best round: {run.best_round}, {trainer.settings.choice.monitor} {run.best:.4g}"
        )
    lines.append(f"run folder: {run.folder}")
    folder = shlex.quote(str(run.folder))
    lines += [
        "next:",
        f"  bhfl test --config {shlex.quote(str(run.folder / 'config.yaml'))} --ckpt_path best",
        f"  bhfl report {folder}",
    ]
    if any(run.folder.glob("events.out.tfevents.*")):
        lines.append(f"  tensorboard --logdir {folder}")
    return "\n".join(lines)


def _notes(history: list[dict[str, Any]]) -> list[str]:
    """Lines on updates that did not count, and on bytes and seconds that only some runs have."""
    notes = []
    totals = Counter[str]()
    for row in history:
        for status in STATUSES:
            totals[status] += int(row.get(f"clients/{status}", 0))
    bad = [status for status in LOST if status not in ABSENT and totals[status]]
    if lost := ", ".join(f"{totals[status]} {status}" for status in bad):
        notes.append(f"of {totals.total()} updates {lost}; rounds.jsonl says why")
    if anew := sum(int(row.get("clients/anew", 0)) for row in history):
        notes.append(f"clients that had lost what they kept, and began anew: {anew}")
    notes += _absences(history, totals)
    row = history[-1] if history else {}
    if (published := row.get("comm/downlink_published_MB")) is not None:
        notes.append(f"downlink as the method's authors count it: {published:.2f} MB")
    if (seconds := row.get("time/simulated_s")) is not None:
        notes.append(f"on the simulated network: {seconds:,.1f} s")
    if (epsilon := row.get("privacy/epsilon")) is not None:
        notes.append(
            f"privacy of the models: epsilon {epsilon:.3g} at delta {row['privacy/delta']:.2g}"
        )
    return notes


def _absences(history: list[dict[str, Any]], totals: Mapping[str, int]) -> Iterator[str]:
    """What ``trainer.availability`` did to clients, where a run has it."""
    if not history or "clients/retries" not in history[-1]:
        return
    stragglers = int(sum(row["clients/stragglers"] for row in history))
    retries = int(sum(row["clients/retries"] for row in history))
    sent = megabytes(sum(row["retry_bytes"] for row in history))
    yield (
        f"availability: {totals['dropped']} dropped out, {totals['lost']} lost on their way, "
        f"{stragglers} stragglers, {retries} retries of {sent} MB"
    )
