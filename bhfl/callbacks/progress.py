"""What a run says on the console: a bar on a terminal, plain lines elsewhere, and a table at the
end.
"""

import sys
from collections import Counter
from typing import Any, get_args

from tqdm import tqdm

from bhfl.checks import aligned
from bhfl.engine.callback import Callback
from bhfl.engine.figures import group_rows, megabytes, metric_names
from bhfl.tags import LOST, Status


class Progress(Callback):
    """A progress bar over clients and rounds where the console is a terminal, one line a round
    where it is not.

    Args:
        metric: The metric shown by bit group in each round, without its stage: ``acc`` for
            ``val/acc_<group>``. That of `trainer.monitor` stands in where it is not logged; the
            table at the end has all.
    """

    def __init__(self, metric: str = "acc") -> None:
        self.metric = metric
        self._bar: Any = None

    def on_fit_start(self, trainer: Any) -> None:
        """Say what is about to run."""
        if not trainer.fabric.is_global_zero:
            return
        processes = trainer.fabric.world_size
        sizes = Counter(client.group for client in trainer.clients)
        fleet = ", ".join(f"{size} x {group}" for group, size in sizes.items())
        size = sum(tensor.numel() for tensor in trainer.server.params.values())
        print(
            f"{type(trainer.algorithm).__name__}: {len(trainer.clients)} clients ({fleet}), "
            f"{size:,} parameters, {processes} process{'es' * (processes > 1)} on "
            f"{trainer.fabric.device.type}"
        )
        print(f"logs and checkpoints: {trainer.run.folder}", flush=True)
        # tqdm draws on stderr; stdout may go to a file all the same
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=trainer.settings.stopping.max_rounds,
                # a resumed run goes on where it stopped
                initial=trainer.server.round,
                unit="round",
                dynamic_ncols=True,
            )

    def on_client_end(self, trainer: Any, client: Any, record: Any) -> None:
        """Say in the bar which client has just trained."""
        if self._bar is not None:
            self._bar.set_description(f"client {client.id} ({client.group})")

    def on_round_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Show the round's loss and metrics, and what has been sent so far."""
        if not trainer.fabric.is_global_zero:
            return
        figures = self._figures(trainer, metrics)
        if self._bar is not None:
            in_bar = {name: f"{value:.3f}" for name, value in figures.items()}
            # the update below draws the bar anyway
            self._bar.set_postfix(in_bar, refresh=False)
            self._bar.update()
            return
        text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        up = megabytes(1e6 * metrics["comm/uplink_MB"])
        down = megabytes(1e6 * metrics["comm/downlink_MB"])
        total = trainer.settings.stopping.max_rounds
        print(
            f"round {metrics['round']:>{len(str(total))}}/{total}  {text}  up {up} MB  down {down} "
            f"MB  {metrics['time/round_s']:.1f} s",
            flush=True,
        )

    def _figures(self, trainer: Any, metrics: dict[str, Any]) -> dict[str, float]:
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
        for group in dict.fromkeys(client.group for client in trainer.clients):
            figures[group + label] = metrics.get(f"val/{name}_{group}")
        return {name: value for name, value in figures.items() if value is not None}

    def on_fit_end(self, trainer: Any, metrics: dict[str, float]) -> None:
        """Close the bar and print the table."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if trainer.fabric.is_global_zero:
            print("\n" + table(trainer, metrics, self.metric, "test"), flush=True)

    def on_measured(self, trainer: Any, metrics: dict[str, float], stage: str) -> None:
        """Print the table of ``bhfl validate`` and ``bhfl test``."""
        if trainer.fabric.is_global_zero:
            print(table(trainer, metrics, self.metric, stage), flush=True)


def table(trainer: Any, metrics: dict[str, float], metric: str, stage: str) -> str:
    """What was measured of each bit group and of all clients, `metric` first, accuracies in per
    cent, with the bytes really sent where a run has been.
    """
    sent = trainer.run.ledger.by_group if trainer.run is not None else None
    sizes = Counter(client.group for client in trainer.clients)
    lines = aligned(group_rows(metrics, stage, sizes, sent, metric))
    width = max(map(len, lines))
    text = [lines[0], "-" * width, *lines[1:-1], "-" * width, lines[-1]]
    if trainer.run is not None:
        history = trainer.run.history
        seconds = trainer.run.seconds
        text.append(f"{len(history)} rounds in {seconds:.1f} s; bytes as measured on the payloads")
        text += _notes(history)
    for devices in dict.fromkeys(client.devices for client in trainer.clients):
        if note := devices.caution(trainer.fabric.device.type):
            text.append(f"note: {note}")
    return "\n".join(text)


def _notes(history: list[dict[str, Any]]) -> list[str]:
    """Lines on updates that did not count, and on bytes and seconds that only some runs have."""
    notes = []
    totals = Counter[str]()
    for row in history:
        for status in get_args(Status):
            totals[status] += int(row.get(f"clients/{status}", 0))
    if lost := ", ".join(f"{totals[status]} {status}" for status in LOST if totals[status]):
        notes.append(f"of {totals.total()} updates {lost}; rounds.jsonl says why")
    row = history[-1] if history else {}
    if (published := row.get("comm/downlink_published_MB")) is not None:
        notes.append(f"downlink as the method's authors count it: {published:.2f} MB")
    if (seconds := row.get("time/simulated_s")) is not None:
        notes.append(f"on the simulated network: {seconds:,.1f} s")
    return notes
