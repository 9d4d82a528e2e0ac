"""What a run says on the console: a bar on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, get_args

from tqdm import tqdm

from bhfl.engine.records import Status


class Progress:
    """A progress bar over clients and rounds where the console is a terminal, one line a round where it is not.

    Args:
        metric: The metric shown by bit group, without its stage: ``acc`` for ``val/acc_<group>``.
    """

    def __init__(self, metric: str = "acc") -> None:
        self.metric = metric
        self._bar: Any = None

    def on_fit_start(self, trainer: Any) -> None:
        """Say what is about to run."""
        if not trainer.fabric.is_global_zero:
            return
        processes = trainer.fabric.world_size
        fleet = ", ".join(f"{n} x {group}" for group, n in Counter(c.group for c in trainer.clients).items())
        size = sum(tensor.numel() for tensor in trainer.server.params.values())
        print(
            f"{type(trainer.algorithm).__name__}: {len(trainer.clients)} clients ({fleet}), {size:,} parameters, "
            f"{processes} process{'es' * (processes > 1)} on {trainer.fabric.device.type}"
        )
        print(f"logs and checkpoints: {trainer.run.folder}", flush=True)
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=trainer.options["max_rounds"], initial=trainer.server.round, unit="round", dynamic_ncols=True
            )

    def on_client_end(self, trainer: Any, client: Any, record: Any) -> None:
        """Move within the round."""
        if self._bar is not None:
            self._bar.set_description(f"client {client.id} ({client.group})")

    def on_round_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Show the round's figures."""
        if not trainer.fabric.is_global_zero:
            return
        figures = {"loss": metrics.get("train/loss")}
        prefix = f"val/{self.metric}_"
        groups = list(trainer.evaluator.groups)
        figures |= {group: metrics.get(prefix + group) for group in groups}
        shown = {name: value for name, value in figures.items() if value is not None}
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
            self._bar.update()
            return
        text = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        up, down = (_megabytes(metrics[f"comm/{way}_MB"]) for way in ("uplink", "downlink"))
        total = trainer.options["max_rounds"]
        print(
            f"round {metrics['round']:>{len(str(total))}}/{total}  {text}  up {up} MB  down {down} MB  "
            f"{metrics['time/round_s']:.1f} s",
            flush=True,
        )

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
    """Accuracy of each bit group and of all clients, with the bytes really sent where a run has been."""
    ledger = trainer.run.ledger if trainer.run is not None else None
    counts = Counter(client.group for client in trainer.clients)
    head = ["group", "clients", f"{stage} {metric}"] + (["up MB", "down MB"] if ledger else [])
    rows = []
    for group, count in counts.items():
        row = [group, str(count), _percent(metrics.get(f"{stage}/{metric}_{group}"))]
        if ledger:
            sent = ledger.by_group.get(group, {})
            row += [_megabytes(sent.get(key, 0) / 1e6) for key in ("uplink_bytes", "downlink_bytes")]
        rows.append(row)
    total = ["all", str(sum(counts.values())), _percent(metrics.get(f"{stage}/{metric}_avg"))]
    if ledger:
        total += [_megabytes(ledger.total(key) / 1e6) for key in ("uplink_bytes", "downlink_bytes")]
    lines = _align([head, *rows, total])
    width = max(map(len, lines))
    text = [lines[0], "-" * width, *lines[1:-1], "-" * width, lines[-1]]
    if trainer.run is not None:
        history = trainer.run.history
        text.append(f"{len(history)} rounds in {trainer.run.seconds:.1f} s; bytes as measured on the payloads")
        text += [*_lost(history), *_notes(history[-1] if history else {})]
    return "\n".join(text)


def _lost(history: list[dict[str, Any]]) -> list[str]:
    """How many clients' rounds came to nothing, where any did."""
    totals = {status: sum(int(row.get(f"clients/{status}", 0)) for row in history) for status in get_args(Status)}
    told = ", ".join(f"{count} {status}" for status, count in totals.items() if count and status != "ok")
    return [f"of {sum(totals.values())} updates {told}; rounds.jsonl says why"] if told else []


def _notes(row: dict[str, Any]) -> list[str]:
    """What the last round's metrics say besides, where they do."""
    notes = []
    if (published := row.get("comm/downlink_published_MB")) is not None:
        notes.append(f"downlink as the method's authors count it: {published:.2f} MB")
    if (seconds := row.get("time/simulated_s")) is not None:
        notes.append(f"on the simulated network: {seconds:,.1f} s")
    return notes


def _megabytes(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
