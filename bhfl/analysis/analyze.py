"""What each layer of a model saves when it is quantised, and what quantising it alone costs."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from bhfl.analysis.layers import layer_harm, layer_rows
from bhfl.analysis.samples import held_out
from bhfl.checks import is_integer, refuse
from bhfl.engine.client.worker import Worker
from bhfl.engine.devices import FLOAT
from bhfl.engine.measure import needs_global_model, refuse_parts
from bhfl.engine.session import Session
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import FederatedData
from bhfl.quant import layer_weights
from bhfl.tags import ACCURACIES

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Told what is about to be done, and on how many samples in all; what it gives is called with each
number of them that is done.
"""


@dataclass(frozen=True)
class Analysis:
    """A model, layer by layer."""

    rows: list[dict[str, Any]]
    """One a layer; see `bhfl.analysis.layers` for the columns, `bhfl.report.layers` for tables."""
    title: str
    """What they are of, in words."""
    run: Path | None
    """The run folder that the model comes from, if any."""


def analyze(  # noqa: PLR0913
    trainer: FederatedTrainer,
    model: L.LightningModule,
    datamodule: FederatedData,
    ckpt_path: str | Path | None = None,
    *,
    samples: int = 1000,
    probe_bits: Sequence[int] = (2, 4),
    uniform_bits: int = 4,
    threads: int | None = None,
    progress: Progress = lambda what, num_samples: nullcontext(lambda done: None),
) -> Analysis:
    """Analyse the server's float32 weights, in one process, on samples held out for the server
    (``data.holdout``) or else on the validation split.

    Args:
        trainer: Whose options, fleet and algorithm are meant.
        model: Any LightningModule whose validation_step logs a loss, and an accuracy where it has
            one.
        datamodule: Data as for `fit`.
        ckpt_path: A checkpoint, a run folder, or ``last`` or ``best`` of the newest run.
        samples: Held-out samples used at most.
        probe_bits: Widths at which each layer is quantised and the model evaluated, one pass a
            layer and width.
        uniform_bits: Width of all layers for their shares of the convergence bound.
        threads: CPU threads, in place of ``trainer.threads``; all cores by default.
        progress: Told of what is done.

    Returns:
        A row for each layer, and what they are of.

    Raises:
        ValueError: An option is out of its range, the model has no layer to quantise or logs no
            loss, the algorithm keeps no global model or a part of it stays with the clients, or
            there are no samples.
        CheckpointError: `ckpt_path` cannot be used.
    """
    widths: list[Any] = list(probe_bits) if isinstance(probe_bits, list | tuple) else [probe_bits]
    if threads is None:
        threads = torch.get_num_threads()
    _check(trainer, samples, threads, widths, uniform_bits)
    # refuses a model without any before the data are loaded
    layer_weights(model)
    with Session.opened(trainer, model, datamodule, "validate", threads=threads) as session:
        run = session.load(ckpt_path, clients=False)[0] if ckpt_path is not None else None
        refuse_parts(session, "analyze")
        worker, seed = session.worker, session.settings.cohort.seed
        # in float32, so that what a probe finds is due to its layer alone
        worker.load_global(session.global_model(), FLOAT)
        layers = layer_weights(worker.module)
        chunks, source = held_out(datamodule, samples, seed)
        total = sum(size for size, _ in chunks)
        on = f"on {total:,} samples of {source}"
        what = f"{len(layers)} layers, each alone at {' and '.join(map(str, widths))} bits, {on}"
        with progress(what, total * (1 + len(layers) * len(widths))) as advance:
            evaluate = _evaluation(worker)
            harm = layer_harm(worker.module, widths, evaluate, chunks, seed=seed, progress=advance)
        rows = layer_rows(worker.module, harm, uniform_bits=uniform_bits)
        accuracy = "" if math.isnan(harm.accuracy) else f", accuracy {100 * harm.accuracy:.2f} %"
        name = f"{type(worker.module).__name__} after {session.server.round} rounds"
        session.tear_down()
    return Analysis(rows, f"{name}: loss {harm.loss:.4f}{accuracy} {on}", run)


def _check(
    trainer: FederatedTrainer, samples: int, threads: int, widths: list[int], uniform_bits: int
) -> None:
    """Raise one ValueError with every problem of the options, one a line."""
    problems = list(replace(trainer.settings.machine, threads=threads).problems())
    if not is_integer(samples) or samples < 1:
        problems.append(f"samples must be at least 1, got {samples!r}")
    distinct = widths and len(set(widths)) == len(widths)
    if not (distinct and all(is_integer(bits) and 2 <= bits <= 16 for bits in widths)):
        problems.append(f"probe_bits must be one or more distinct widths of 2..16, got {widths}")
    if not 2 <= uniform_bits <= 16:
        problems.append(f"uniform_bits must be 2..16, got {uniform_bits}")
    problems += needs_global_model(trainer, "analyze")
    refuse(problems)


def _evaluation(worker: Worker) -> Callable[[Any], tuple[float, float]]:
    """Mean loss and accuracy of the worker's module on a batch, as its validation_step has them."""

    def evaluate(batch: Any) -> tuple[float, float]:
        metrics = worker.evaluate([batch], "val")
        if "loss" not in metrics:
            raise ValueError(
                f"analyze needs a loss: {type(worker.module).__name__}.validation_step must log "
                f"val/loss, and gives {', '.join(metrics) or 'nothing'}"
            )
        accuracies = [metrics[name] for name in ACCURACIES if name in metrics]
        return metrics["loss"], (accuracies or [math.nan])[0]

    return evaluate
