"""What the command line does besides training and measuring: predict, partition, analyze, profile,
export.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import torch

from bhfl.cli.exits import say
from bhfl.engine.console import terminal
from bhfl.engine.ending import STANDING
from bhfl.engine.folder import subfolder
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import FederatedData
from bhfl.files import user_folder, user_option

Where = str | Path | None
"""A path of the user's; None for what a command takes by default."""
SELDOM_SECONDS = 15.0
"""The time between two lines of `analyze` where no bar is drawn."""


class CommandTrainer(FederatedTrainer):
    """The trainer of the command line, with a method for each command."""

    def analyze(  # noqa: PLR0913
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: Where = None,
        out: Where = None,
        samples: int = 1000,
        probe_bits: Sequence[int] = (2, 4),
        uniform_bits: int = 4,
        threads: int | None = None,
    ) -> None:
        """Tell what each layer saves when it is quantised, and what quantising it alone costs.

        Writes a table, ``layers.csv``, and ``layers.png`` where matplotlib is installed.

        Args:
            model: Any LightningModule whose validation_step logs a loss, and an accuracy where it
                has one.
            datamodule: Data as for `fit`.
            ckpt_path: A checkpoint, a run folder, or ``last`` or ``best`` of the newest run of this
                `name`.
            out: Folder to write to; by default ``analysis`` in the checkpoint's run folder, or a
                new folder ``<default_root_dir>/<name>/analysis_N``.
            samples: Held-out samples used at most.
            probe_bits: Widths at which each layer is quantised and the model evaluated, one pass a
                layer and width.
            uniform_bits: Width of all layers for their shares of the convergence bound.
            threads: CPU threads, in place of ``trainer.threads``; all cores by default.

        Raises:
            ValueError: `out` is no folder.
        """
        from bhfl.analysis import analyze
        from bhfl.report import layers

        chosen = self._chosen(out, ckpt_path)
        found = analyze(
            self,
            model,
            datamodule,
            ckpt_path,
            samples=samples,
            probe_bits=probe_bits,
            uniform_bits=uniform_bits,
            threads=threads,
            progress=partial(_bar, threads or torch.get_num_threads()),
        )
        _write(chosen or self._folder(found.run), layers, found.rows, title=found.title)

    def serve(  # noqa: PLR0913
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: Where = None,
        keys: str | Path = "keys",
        make_keys: Where = None,
        host: Sequence[str] = (),
        listen: str = "0.0.0.0",
        port: int = 8443,
        superlink: str | None = None,
        wait_for: int | None = None,
        round_seconds: float = 600.0,
        strict: bool = False,
    ) -> None:
        """Train as ``fit`` does, over clients on other machines, which join by ``bhfl join``.

        Args:
            model: The LightningModule.
            datamodule: The server's data: what is held out, and how all are split.
            ckpt_path: See `fit`.
            keys: Folder of the keys by which the server and its clients know each other.
            make_keys: Make such a folder, with a key for each client of the fleet, and end.
            host: The names and addresses by which clients reach the server, for `make_keys`.
            listen: The address to listen at; ``0.0.0.0`` are all of this machine.
            port: The port to listen at; 0 takes a free one.
            superlink: ``HOST:PORT`` of a SuperLink on this machine that runs already.
            wait_for: Clients that must be there before the run begins; the whole fleet by default.
            round_seconds: How long a round waits for a client, which is late then.
            strict: Refuse clients where anything could make their bits differ, such as another
                version of torch.

        Raises:
            ValueError: The keys cannot be used, or the run needs several processes.
        """
        from bhfl.remote.attendance import Terms
        from bhfl.remote.serve import Place, groups_of, serve

        if make_keys is not None:
            from bhfl.remote.keys import make_keys as made

            print(made(make_keys, groups_of(self), host))
            return
        place = Place(keys=keys, host=listen, port=port, superlink=superlink)
        terms = Terms(wait_for=wait_for, round_seconds=round_seconds, strict=strict)
        serve(self, model, datamodule, place, terms, ckpt_path, self.written)

    written: Mapping[str, Any] | None = None
    """The whole configuration, as plain values."""

    def _chosen(self, out: Where, ckpt_path: Where = None) -> Path | None:
        """The folder that `out` names, if any.

        Raises:
            ValueError: `out` is no folder, or the default one cannot be made: told before the work,
                which takes long, and not when its outcome is to be written.
            OSError: A file or a link is in the place of the default one.
        """
        if out is not None:
            return user_folder("out", out)
        if ckpt_path is not None and (run := self.find_checkpoint(ckpt_path)[0]):
            subfolder(run, "analysis")
        else:
            user_folder("trainer.default_root_dir/trainer.name", self.root)
        return None

    def _folder(self, run: Path | None, name: str = "analysis") -> Path:
        """The folder that an analysis is written to by default."""
        if run is not None:
            return subfolder(run, name)
        for n in count():
            place = self.root / f"{name}_{n}"
            # another command may take the same number right now
            with suppress(FileExistsError):
                place.mkdir(parents=True)
                break
        return place

    def partition(self, datamodule: FederatedData, out: Where = None) -> None:
        """Show which samples each client has, without training.

        It prints a table, and writes ``partition.csv`` and, where matplotlib is installed,
        ``partition.png``.

        Args:
            datamodule: Data as for `fit`.
            out: Folder to write to; by default a new one,
                ``<default_root_dir>/<name>/partition_N``.

        Raises:
            ValueError: `out` is no folder, or the data cannot be split.
        """
        from bhfl.analysis import partition
        from bhfl.report import partition as report

        chosen = self._chosen(out)
        found = partition(self, datamodule)
        _write(chosen or self._folder(None, "partition"), report, found)

    def profile(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        out: Where = None,
        steps: int = 5,
        repeats: int = 3,
    ) -> None:
        """Tell what a round costs a client of each bit group, in all and layer by layer.

        That is parameters, FLOPs, memory, seconds of a step, bytes up and down, and energy where
        the machine counts it, before anything is trained. Writes a table, ``profile.csv``, and
        ``profile.png`` where matplotlib is installed.

        Args:
            model: Any LightningModule that can be trained.
            datamodule: Data as for `fit`.
            out: Folder to write to; by default a new one, ``<default_root_dir>/<name>/profile_N``.
            steps: Training steps of the shorter of two measurements; the longer one has twice as
                many.
            repeats: How often both are measured; the median counts.

        Raises:
            ValueError: `out` is no folder.
        """
        from bhfl.analysis import profile
        from bhfl.report import profile as report

        chosen = self._chosen(out)
        found = profile(self, model, datamodule, steps=steps, repeats=repeats)
        _write(chosen or self._folder(None, "profile"), report, found.rows, title=found.title)

    def predict(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: Where = None,
        group: str | None = None,
        out: Where = None,
    ) -> list[Any]:
        """Write what a model predicts of the test split: a row for each sample.

        Data of your own may have a ``predict_dataloader``, which is predicted then.

        Args:
            model: The LightningModule, whose predict_step is called.
            datamodule: Data as for `fit`.
            ckpt_path: A checkpoint, a run folder, or ``last`` or ``best`` of the newest run of this
                `name`.
            group: Predict as this bit group runs the model; by default its float32 weights.
            out: The file to write, which ends in .csv or .npz.

        Raises:
            ValueError: `out` is missing, or cannot hold what is predicted.
        """
        if out is None:
            raise ValueError("predict needs a file to write: --out predictions.csv, or .npz")
        outputs = super().predict(model, datamodule, ckpt_path, group, out)
        print(user_option("out", out))
        return outputs

    def export(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: Where = None,
        out: Where = None,
        calibrate: int | None = None,
    ) -> None:
        """Write the model of a checkpoint as each bit group runs it, with a model card.

        Args:
            model: The LightningModule that the run trained.
            datamodule: Data as for `fit`; they give the inputs from which ONNX takes its shapes.
            ckpt_path: A checkpoint, a run folder, or ``last`` or ``best`` of the newest run of this
                `name`.
            out: Folder to write to; by default ``export`` in the checkpoint's run folder.
            calibrate: Samples of the validation split on which the ranges of activations in ONNX
                files are found, to be constants, which run faster.

        Raises:
            ValueError: `out` is no folder, `calibrate` is less than 1, or no checkpoint is given.
        """
        from bhfl.export import export_run

        chosen = user_folder("out", out)
        if not ckpt_path:
            raise ValueError(
                "export needs a checkpoint: --ckpt_path last, best, a run folder or a file"
            )
        made = export_run(self, model, datamodule, ckpt_path, chosen, calibrate=calibrate)
        for note in made.notes:
            say(f"note: {note}")
        for file in made.files:
            print(
                f"{made.folder / file.file}  {file.num_bytes:,} bytes, "
                f"{file.num_bytes / file.float_bytes:.3f} of float32"
            )
        print(made.card)


def _write(folder: Path, report: Any, found: Any, **title: str) -> None:
    """Print what was found, write it to ``<name>.csv`` and draw it to ``<name>.png``, and say where
    these files are, or why there is no picture.

    Args:
        folder: Where they are written.
        report: The module that does it, whose name is theirs.
        found: What the module's functions take.
        title: What stands above it, where it does not say that itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    STANDING.writes(folder)
    print("\n\n".join([*title.values(), f"{report.table(found)}\n"]))
    path = folder / report.__name__.rpartition(".")[2]
    lines = path.with_suffix(".csv")
    # before the picture, which needs a package that may not be there
    report.write_csv(found, lines)
    print(lines)
    picture = path.with_suffix(".png")
    try:
        report.draw(found, picture, **title)
        print(picture)
    except ImportError as error:
        say(f"note: no picture is drawn: {error}")


@contextmanager
def _bar(threads: int, what: str, num_samples: int) -> Iterator[Callable[[int], object]]:
    """A bar over samples where stderr is a terminal, and a line now and then where it is not."""
    # the bar is on stderr, and would come before what waits in the buffer of stdout
    print(what, flush=True)
    words = f"{threads} thread{'s' * (threads > 1)}"
    if console := terminal():
        from rich.progress import Progress

        with Progress(console=console, transient=True) as bars:
            yield partial(bars.advance, bars.add_task(words, total=num_samples))
        return
    done = 0
    said = time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, said
        done += more
        if done >= num_samples or time.monotonic() - said >= SELDOM_SECONDS:
            said = time.monotonic()
            say(f"{words}: {done / num_samples:.0%} of {num_samples:,} samples")

    yield advance
