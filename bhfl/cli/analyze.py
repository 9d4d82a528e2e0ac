"""``bhfl analyze``: what each layer saves when it is quantised, and what that costs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Optional, Union

import lightning as L
import torch
from tqdm import tqdm

from bhfl.cli.exits import say
from bhfl.engine.client.worker import Worker
from bhfl.engine.folder import subfolder
from bhfl.engine.resume import fitting
from bhfl.engine.system import computing_threads
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import FederatedData
from bhfl.files import user_path
from bhfl.quant import BitSpec

ACCURACIES = ("acc", "accuracy")
"""What a model may call its accuracy, after the stage."""


class AnalyzingTrainer(FederatedTrainer):
    """The trainer of the command line: it can also analyse a model layer by layer."""

    def analyze(  # noqa: PLR0913
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: Union[str, Path, None] = None,
        out: Union[str, Path, None] = None,
        samples: int = 1000,
        probe_bits: Sequence[int] = (2, 4),
        uniform_bits: int = 4,
        threads: Optional[int] = None,
    ) -> list[dict[str, Any]]:
        """What each layer saves when it is quantised, and what quantising it alone costs: a table,
        CSV and picture.

        Of the server's float32 weights, in one process, on samples held out for the server
        (``data.holdout``) or else on the validation split. Writes ``layers.csv`` and, where
        matplotlib is installed, ``layers.png``.

        Args:
            model: Any LightningModule whose validation_step logs a loss, and an accuracy where it
                has one.
            datamodule: As for `fit`.
            ckpt_path: A checkpoint, a run folder, or ``last`` or ``best`` of the newest run of this
                `name`.
            out: Folder to write to; by default ``analysis`` in the checkpoint's run folder, or a
                new folder ``<default_root_dir>/<name>/analysis_N``.
            samples: Held-out samples used at most.
            probe_bits: Widths at which each layer is quantised and the model evaluated, one pass a
                layer and width.
            uniform_bits: Width of all layers for their shares of the convergence bound.
            threads: CPU threads, in place of ``trainer.threads``; all cores by default.

        Returns:
            The rows, one a layer; see `bhfl.analysis.layers` for the columns.

        Raises:
            ValueError: An option is out of its range, the model has no layer to quantise or logs no
                loss, the algorithm keeps no global model, or there are no samples.
            CheckpointError: `ckpt_path` cannot be used.
        """
        self._check_analysis(samples, probe_bits, uniform_bits, threads, out)
        threads = threads or torch.get_num_threads()
        with self._machine(), computing_threads(threads), self._lent(model, datamodule) as module:
            folder = self._load_server(module, datamodule, ckpt_path)
            rows, title = self._analyze(datamodule, samples, probe_bits, uniform_bits, threads)
            self._loan.tear_down("validate")
        _write(rows, self._analysis_folder(out, folder), title)
        return rows

    def _check_analysis(
        self,
        samples: int,
        probe_bits: Sequence[int],
        uniform_bits: int,
        threads: int | None,
        out: Union[str, Path, None],
    ) -> None:
        """Raise one ValueError with every problem of the options, one a line."""
        widths = list(probe_bits)
        counts = {"samples": samples, "threads": 1 if threads is None else threads}
        problems = blank(out=out)
        problems += [
            f"{key} must be at least 1, got {value}" for key, value in counts.items() if value < 1
        ]
        if (
            not widths
            or len(set(widths)) < len(widths)
            or not all(2 <= bits <= 16 for bits in widths)
        ):
            problems.append(
                f"probe_bits must be one or more distinct widths of 2..16, got {widths}"
            )
        if not 2 <= uniform_bits <= 16:
            problems.append(f"uniform_bits must be 2..16, got {uniform_bits}")
        if not self.algorithm.communicates:
            problems.append(
                f"analyze needs a global model, and {type(self.algorithm).__name__} keeps none"
            )
        devices = self.settings.machine.devices
        if self.fabric.world_size > 1:
            problems.append(f"analyze runs in one process: devices must be 1, got {devices!r}")
        if problems:
            raise ValueError("\n".join(problems))

    def _load_server(
        self, model: L.LightningModule, data: FederatedData, ckpt_path: Union[str, Path, None]
    ) -> Path | None:
        """Put the server's float32 weights into the worker; the run folder that they come from, if
        any.
        """
        from bhfl.quant import layer_weights

        layer_weights(model)  # refuses a model without any before the data are loaded
        self._setup(model, data, "validate")
        folder = None
        if ckpt_path is not None:
            folder, state = self.find_checkpoint(ckpt_path)
            self.server = fitting(state, self.server)
        group = next((c.group for c in self.clients if c.spec.is_float), self.clients[0].group)
        worker, buffers = self.rounds.worker, self.rounds.buffers.of(self.server, group)
        worker.load({**self.server.params, **buffers}, BitSpec())
        return folder

    def _analyze(
        self,
        data: FederatedData,
        samples: int,
        probe_bits: Sequence[int],
        uniform_bits: int,
        threads: int,
    ) -> tuple[list[dict[str, Any]], str]:
        """The rows, and in words what they are of."""
        from bhfl.analysis.layers import layer_harm, layer_rows
        from bhfl.analysis.samples import held_out
        from bhfl.quant import layer_weights

        module, seed = self.rounds.worker.module, self.settings.cohort.seed
        layers, evaluate = layer_weights(module), _evaluation(self.rounds.worker)
        chunks, source = held_out(data, samples, seed)
        total, passes = sum(size for size, _ in chunks), 1 + len(layers) * len(probe_bits)
        widths = " and ".join(map(str, probe_bits))
        print(
            f"{len(layers)} layers, each alone at {widths} bits, on {total:,} samples of {source}",
            flush=True,
        )
        with _progress(total * passes, threads) as advance:
            harm = layer_harm(
                module, layers, probe_bits, evaluate, chunks, seed=seed, progress=advance
            )
        rows = layer_rows(module, harm, uniform_bits=uniform_bits)
        accuracy = "" if math.isnan(harm.accuracy) else f", accuracy {100 * harm.accuracy:.2f} %"
        model = f"{type(module).__name__} after {self.server.round} rounds"
        return rows, f"{model}: loss {harm.loss:.4f}{accuracy} on {total:,} samples of {source}"

    def _analysis_folder(self, out: Union[str, Path, None], run: Path | None) -> Path:
        """The folder to write to, made."""
        if out is None and run is not None:
            return subfolder(run, "analysis")
        free = (place for n in count() if not (place := self._root / f"analysis_{n}").exists())
        folder = user_path(out) if out is not None else next(free)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def blank(**folders: Union[str, Path, None]) -> list[str]:
    """What is wrong with names of folders, which may be unset: an empty one would be the working
    folder.
    """
    problems = []
    for key, name in folders.items():
        try:
            _ = name is None or user_path(name)
        except ValueError as error:
            problems.append(
                f"{key} must name a folder, got {str(name)!r}" + (f": {error}" if name else "")
            )
    return problems


def _evaluation(worker: Worker) -> Callable[[Any], tuple[float, float]]:
    """Mean loss and accuracy of the worker's module on a batch, as its validation_step has them."""

    def evaluate(batch: Any) -> tuple[float, float]:
        metrics = worker.evaluate([batch], "val")
        if "loss" not in metrics:
            module, found = type(worker.module).__name__, ", ".join(metrics) or "nothing"
            raise ValueError(
                f"analyze needs a loss: {module}.validation_step must log val/loss, and gives "
                f"{found}"
            )
        return metrics["loss"], next(
            (metrics[name] for name in ACCURACIES if name in metrics), math.nan
        )

    return evaluate


@contextmanager
def _progress(num_images: int, threads: int) -> Iterator[Callable[[int], object]]:
    """A bar over samples on stderr; where that is no terminal, it is written again but seldom."""
    seldom = 0.1 if sys.stderr.isatty() else 15.0
    words = f"{threads} thread{'s' * (threads > 1)}"
    with tqdm(
        total=num_images, desc=words, unit=" samples", unit_scale=True, mininterval=seldom
    ) as bar:
        yield bar.update


def _write(rows: list[dict[str, Any]], folder: Path, title: str) -> None:
    """Tables to the console, CSV and picture to the folder."""
    from bhfl.report.layers import draw, table, write_csv

    print(f"{title}\n\n{table(rows)}\n")
    write_csv(rows, folder / "layers.csv")
    print(folder / "layers.csv")
    try:
        draw(rows, folder / "layers.png", title)
        print(folder / "layers.png")
    except ImportError as error:
        say(f"note: no picture is drawn: {error}")
