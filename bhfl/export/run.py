"""The global model of a checkpoint at each bit-width of its fleet, as files for others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from bhfl.checks import clipped
from bhfl.engine.client.worker import Worker
from bhfl.engine.folder import subfolder
from bhfl.engine.records import Ledger
from bhfl.engine.session import Session
from bhfl.engine.types import FederatedData
from bhfl.export.card import Exported, model_card
from bhfl.export.example import example_of
from bhfl.export.extras import installed
from bhfl.export.integers import save_quantized
from bhfl.export.qdq import export_onnx
from bhfl.files import durable, read_limited, user_path
from bhfl.plain import read_json
from bhfl.tags import ACCURACIES

if TYPE_CHECKING:
    import lightning as L

    from bhfl.engine.trainer import FederatedTrainer

CARD = "README.md"
_MAX_SUMMARY_BYTES = 4 * 2**20


@dataclass
class Export:
    """A model as files."""

    folder: Path
    files: list[Exported] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Why a file is missing, or a figure."""

    @property
    def card(self) -> Path:
        """The model card, which says what the files are and how to load them."""
        return self.folder / CARD


def export_run(
    trainer: FederatedTrainer,
    model: L.LightningModule,
    datamodule: FederatedData,
    ckpt_path: str | Path,
    out: str | Path | None = None,
) -> Export:
    """Write the model of a checkpoint as each bit group runs it, with a model card.

    For each group ``<group>.safetensors`` (see `bhfl.export.restore_`); for those with 8-bit
    weights ``<group>.onnx`` too, where the extra ``onnx`` is installed; and ``README.md``.

    Args:
        trainer: Whose options, fleet and algorithm are meant.
        model: The LightningModule that the run trained.
        datamodule: Data as for `fit`; they give the inputs from which ONNX takes its shapes.
        ckpt_path: A checkpoint, a run folder, or ``last`` or ``best`` of the newest run.
        out: Folder to write to; by default ``export`` in the checkpoint's run folder.

    Raises:
        ValueError: There is no whole global model, or no package that writes it.
        CheckpointError: `ckpt_path` cannot be used.
    """
    problems = trainer.needs_global_model("export")
    if not installed("export"):
        problems.append("export needs the package safetensors: pip install 'bhfl[export]'")
    if problems:
        raise ValueError("\n".join(problems))
    with Session.opened(trainer, model, datamodule, "test") as session:
        if session.buffers.policy == "local" and session.buffers.statistics:
            raise ValueError(
                "export needs running statistics, and with trainer.norm local they stay with "
                "clients"
            )
        run, state = session.load(ckpt_path, clients=False)
        if out is not None or run is None:
            folder = user_path(out) if out is not None else trainer.root / "export"
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = subfolder(run, "export")
        made = Export(folder)
        measured, accuracies = _accuracies(session, run, state["run"]["history"], made)
        made.files += _files(session, made, accuracies)
        session.tear_down()
    with durable(made.card) as file:
        file.write(_card(session, made, measured, state["run"]["ledger"]).encode())
    return made


def _files(session: Session, made: Export, accuracies: Mapping[str, float]) -> Iterator[Exported]:
    """The files, each written when it is asked for."""
    worker, server = session.worker, session.server
    worker.layout.take_(server.channels_last)
    if not (onnx := installed("onnx")):
        made.notes.append("no ONNX file is written: pip install 'bhfl[onnx]'")
    for group, spec in session.evaluator.groups.items():
        params = session.algorithm.group_params(server, group)
        tensors = session.own.whole({**params, **session.buffers.of(server, group)}, {})
        float_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
        worker.load_global(tensors, spec)
        path = made.folder / f"{group}.safetensors"
        sizes = {path.name: save_quantized(worker.module, path)}
        if onnx and spec.weights == 8 and spec.activations in (*range(2, 9), 32):
            sizes |= _onnx(worker, session.data, path.with_name(f"{group}.onnx"), made.notes)
        for name, size in sizes.items():
            yield Exported(group, name, size, float_bytes, accuracies.get(group))


def _accuracies(
    session: Session, run: Path | None, history: list[dict[str, Any]], made: Export
) -> tuple[str, dict[str, float]]:
    """What split the accuracies of this very state were measured on, and these by group."""
    round = session.server.round
    summary = summary_of(run / "summary.json", made.notes) if run else {}
    stage, metrics = "val", next((row for row in history if row["round"] == round), {})
    if summary.get("rounds") == round and "failed" not in summary:
        stage, metrics = "test", summary["metrics"]
    found = {}
    for group in session.groups:
        for name in reversed(ACCURACIES):
            value = metrics.get(f"{stage}/{name}_{group}")
            if isinstance(value, (int, float)):
                found[group] = value
    return {"test": "test split", "val": "validation split"}[stage], found


def _card(
    session: Session, made: Export, measured: str, ledger: Mapping[str, Mapping[str, int]]
) -> str:
    """The text of the model card."""
    trainer, model = session.trainer, session.module
    config = {"clients": trainer.fleet.to_config(), **trainer.config}
    sent = Ledger(ledger)
    groups = [client.group for client in session.fleet]
    examples = sum(client.num_examples for client in session.fleet)
    rounds = session.server.round
    facts = {
        "Data": f"{type(session.data).__name__}, {examples:,} training samples",
        "Clients": ", ".join(f"{groups.count(group)} of {group}" for group in session.groups),
        "Method": type(session.algorithm).__name__,
        "Rounds": f"{rounds}, seed {session.settings.cohort.seed}",
        "Sent": f"{sent.total('uplink_bytes'):,} bytes up, "
        f"{sent.total('downlink_bytes'):,} bytes down",
    }
    name = f"{session.settings.output.name}: {type(model).__name__}"
    given = trainer.config.get("model", {}).get("init_args", {})
    return model_card(
        f"{name}, {rounds} rounds of {facts['Method']}",
        made.files,
        measured,
        facts,
        yaml.safe_dump(config, sort_keys=False),
        _loading(model, session.data, given, made.files[0].file),
    )


def summary_of(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """What a run came to; empty where there is no such file, or none that can be read, of which a
    note is made.
    """
    if not path.is_file():
        return {}
    try:
        found = read_json(read_limited(path, _MAX_SUMMARY_BYTES))
        if not (isinstance(found, dict) and isinstance(found.get("metrics"), dict)):
            raise ValueError("it has no metrics")
    except (OSError, ValueError) as error:
        why = f"so the card tells what the validation split had: {error}"
        notes.append(f"{path} cannot be read, {why}")
        return {}
    return found


def _onnx(worker: Worker, data: FederatedData, path: Path, notes: list[str]) -> dict[str, int]:
    """Name and size of the ONNX file; none, but a note, where the model or its input is nothing
    that the exporter takes.
    """
    try:
        example = example_of(worker, data)
        return {path.name: export_onnx(worker.module, example, path)}
    except (ValueError, ImportError) as error:
        notes.append(f"{path.name} is not written: {clipped(' '.join(str(error).split()))}")
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
