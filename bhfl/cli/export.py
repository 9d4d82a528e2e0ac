"""``bhfl export``: the global model of a checkpoint at each bit-width of its fleet, as files for
others.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import lightning as L
import torch
import yaml

from bhfl.checks import clipped
from bhfl.cli.analyze import ACCURACIES, AnalyzingTrainer, blank
from bhfl.cli.example import example_of
from bhfl.cli.exits import say
from bhfl.engine.client.worker import Worker
from bhfl.engine.folder import subfolder
from bhfl.engine.resume import fitting
from bhfl.engine.types import FederatedData
from bhfl.export import export_onnx, save_quantized
from bhfl.export.card import Exported, model_card
from bhfl.export.extras import installed
from bhfl.files import durable, read_limited, user_path
from bhfl.plain import read_json

CARD = "README.md"
_MAX_SUMMARY_BYTES = 4 * 2**20


class ExportingTrainer(AnalyzingTrainer):
    """The trainer of the command line: it can also hand a trained model on."""

    def export(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: Union[str, Path, None] = None,
        out: Union[str, Path, None] = None,
    ) -> list[Path]:
        """Write the model of a checkpoint as each bit group runs it, with a model card.

        For each group ``<group>.safetensors`` (see `bhfl.export.restore_`); for those with 8-bit
        weights ``<group>.onnx`` too, where the extra ``onnx`` is installed; and ``README.md``,
        which says what they are and how to load them.

        Args:
            model: The LightningModule that the run trained.
            datamodule: As for `fit`; it gives the inputs from which ONNX takes its shapes.
            ckpt_path: A checkpoint, a run folder, or ``last`` or ``best`` of the newest run of this
                `name`.
            out: Folder to write to; by default ``export`` in the checkpoint's run folder.

        Returns:
            The files written.

        Raises:
            ValueError: There is no checkpoint to export, or no whole global model.
            CheckpointError: `ckpt_path` cannot be used.
        """
        self._check_export(ckpt_path, out)
        with self._machine(), self._lent(model, datamodule) as module:
            self._setup(module, datamodule, "test")
            if self.rounds.buffers.policy == "local" and self.rounds.buffers.statistics:
                raise ValueError(
                    "export needs running statistics, and with trainer.norm local they stay with "
                    "clients"
                )
            run, state = self.find_checkpoint(ckpt_path or "last")
            self.server = fitting(state, self.server)
            if out is not None or run is None:
                folder = user_path(out) if out is not None else self._root / "export"
                folder.mkdir(parents=True, exist_ok=True)
            else:
                folder = subfolder(run, "export")
            measured, accuracies = self._accuracies(run, state["run"]["history"])
            files = list(self._files(folder, datamodule, accuracies))
            self._loan.tear_down("test")
        with durable(folder / CARD) as file:
            file.write(
                self._card(files, measured, module, datamodule, state["run"]["ledger"]).encode()
            )
        print(folder / CARD)
        return [*(folder / file.file for file in files), folder / CARD]

    def _check_export(self, ckpt_path: Union[str, Path, None], out: Union[str, Path, None]) -> None:
        """Raise one ValueError with every problem, one a line."""
        problems = blank(out=out)
        if not ckpt_path:
            problems.append(
                "export needs a checkpoint: --ckpt_path last, best, a run folder or a file"
            )
        if not self.algorithm.communicates:
            problems.append(
                f"export needs a global model, and {type(self.algorithm).__name__} keeps none"
            )
        devices = self.settings.machine.devices
        if self.fabric.world_size > 1:
            problems.append(f"export runs in one process: devices must be 1, got {devices!r}")
        if not installed("export"):
            problems.append("export needs the package safetensors: pip install 'bhfl[export]'")
        if problems:
            raise ValueError("\n".join(problems))

    def _files(
        self, folder: Path, data: FederatedData, accuracies: Mapping[str, float]
    ) -> Iterator[Exported]:
        """The files, each written and told of on the console."""
        worker, buffers = self.rounds.worker, self.rounds.buffers
        worker.layout.take_(self.server.channels_last)
        if not (onnx := installed("onnx")):
            say("note: no ONNX file is written: pip install 'bhfl[onnx]'")
        groups = {client.group: client.spec for client in self.clients}
        for group, spec in groups.items():
            given = {
                **self.algorithm.group_params(self.server, group),
                **buffers.of(self.server, group),
            }
            tensors = self.rounds.own.whole(self.server, given)
            float_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
            worker.load_global(tensors, spec)
            sizes = {
                f"{group}.safetensors": save_quantized(
                    worker.module, folder / f"{group}.safetensors"
                )
            }
            if onnx and spec.weights == 8 and spec.activations in (*range(2, 9), 32):
                sizes.update(_onnx(worker, data, folder / f"{group}.onnx"))
            for file, size in sizes.items():
                print(f"{folder / file}  {size:,} bytes, {size / float_bytes:.3f} of float32")
                yield Exported(group, file, size, float_bytes, accuracies.get(group))

    def _accuracies(
        self, run: Path | None, history: list[dict[str, Any]]
    ) -> tuple[str, dict[str, float]]:
        """What split the accuracies of this very state were measured on, and these by group."""
        summary = _summary(run / "summary.json") if run else {}
        if summary.get("rounds") == self.server.round and "failed" not in summary:
            stage, metrics = "test", summary["metrics"]
        else:
            stage = "val"
            metrics = next((row for row in history if row["round"] == self.server.round), {})
        found = {
            client.group: metrics[tag]
            for client in self.clients
            for name in reversed(ACCURACIES)
            if isinstance(metrics.get(tag := f"{stage}/{name}_{client.group}"), (int, float))
        }
        return {"test": "test split", "val": "validation split"}[stage], found

    def _card(
        self,
        files: list[Exported],
        measured: str,
        model: L.LightningModule,
        data: FederatedData,
        ledger: Mapping[str, Mapping[str, int]],
    ) -> str:
        config = {"clients": self.fleet.to_config(), **self.config}
        sent = {
            way: sum(row.get(f"{way}_bytes", 0) for row in ledger.values())
            for way in ("uplink", "downlink")
        }
        facts = {
            "Data": (
                f"{type(data).__name__}, "
                f"{sum(client.num_examples for client in self.clients):,} training samples"
            ),
            "Clients": ", ".join(
                f"{sum(client.group == group for client in self.clients)} of {group}"
                for group in dict.fromkeys(client.group for client in self.clients)
            ),
            "Method": type(self.algorithm).__name__,
            "Rounds": f"{self.server.round}, seed {self.settings.cohort.seed}",
            "Sent": f"{sent['uplink']:,} bytes up, {sent['downlink']:,} bytes down",
        }
        title = (
            f"{self.settings.output.name}: {type(model).__name__}, "
            f"{self.server.round} rounds of {facts['Method']}"
        )
        loading = _loading(
            model, data, self.config.get("model", {}).get("init_args", {}), files[0].file
        )
        return model_card(
            title, files, measured, facts, yaml.safe_dump(config, sort_keys=False), loading
        )


def _summary(path: Path) -> Mapping[str, Any]:
    """What a run came to; empty where there is no such file, or none that can be read, which is
    told.
    """
    if not path.is_file():
        return {}
    try:
        found = read_json(read_limited(path, _MAX_SUMMARY_BYTES))
        if not (isinstance(found, dict) and isinstance(found.get("metrics"), dict)):
            raise ValueError("it has no metrics")
    except (OSError, ValueError) as error:
        say(
            f"note: {path} cannot be read, so the card tells what the validation split had: {error}"
        )
        return {}
    return found


def _onnx(worker: Worker, data: FederatedData, path: Path) -> dict[str, int]:
    """Name and size of the ONNX file; none where the model or its input is nothing that the
    exporter takes.
    """
    try:
        example = example_of(worker, data)
        return {path.name: export_onnx(worker.module, example, path)}
    except (ValueError, ImportError) as error:
        say(f"note: {path.name} is not written: {clipped(' '.join(str(error).split()))}")
        return {}


def _loading(
    model: L.LightningModule, data: FederatedData, given: Mapping[str, Any], file: str
) -> str:
    """Code that makes the model again and loads a file into it; what only training needs is left
    out.
    """
    accepted = inspect.signature(type(model)).parameters
    values = {
        key: value
        for key, value in given.items()
        if key in accepted and value != accepted[key].default
    }
    for key in ("num_classes", "input_shape"):
        if key in accepted and hasattr(data, key):
            values[key] = getattr(data, key)
    arguments, imports = [], {_home(type(model))}
    for key, value in values.items():
        if not (isinstance(value, dict) and "class_path" in value):
            arguments.append(f"{key}={value!r}")
        elif isinstance(made := getattr(model, key, None), torch.nn.Module):
            own = ", ".join(
                f"{name}={option!r}" for name, option in value.get("init_args", {}).items()
            )
            arguments.append(f"{key}={type(made).__name__}({own})")
            imports.add(_home(type(made)))
    name = type(model).__name__
    lines = "\n".join(sorted({"from bhfl.export import restore_", *imports}))
    return f"""
{lines}

model = restore_({name}({", ".join(arguments)}), {file!r}).eval()
"""


def _home(cls: type) -> str:
    """The line that imports a class."""
    module = "bhfl.models" if cls.__module__.startswith("bhfl.models.") else cls.__module__
    return f"from {module} import {cls.__name__}"
