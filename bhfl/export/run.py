"""The global model of a checkpoint at each bit-width of its fleet, as files for others."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bhfl.checks import clipped, refuse
from bhfl.engine.ending import STANDING
from bhfl.engine.folder import subfolder
from bhfl.engine.measure import needs_global_model, refuse_parts
from bhfl.engine.records import Ledger
from bhfl.engine.resume import algorithm_of
from bhfl.engine.roster import group_sizes
from bhfl.engine.session import Session
from bhfl.engine.types import FederatedData
from bhfl.export.card import Exported, front_matter, model_card
from bhfl.export.example import example_of, samples_of
from bhfl.export.extras import installed
from bhfl.export.integers import save_quantized
from bhfl.export.qdq import export_onnx, num_samples
from bhfl.files import naming, read_limited, user_folder, write_text
from bhfl.plain import read_json, written
from bhfl.tags import ACCURACIES

if TYPE_CHECKING:
    import lightning as L

    from bhfl.engine.trainer import FederatedTrainer

CARD = "README.md"
_MAX_SUMMARY_BYTES = 4 * 2**20


@dataclass
class Export:
    """The files that a model was written as."""

    folder: Path
    files: list[Exported] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Why a file, or a figure, is missing."""

    @property
    def card(self) -> Path:
        """The model card, which says what the files are and how to load them."""
        return self.folder / CARD


def export_run(
    trainer: "FederatedTrainer",
    model: "L.LightningModule",
    datamodule: FederatedData,
    ckpt_path: str | Path,
    out: str | Path | None = None,
    *,
    calibrate: int | None = None,
) -> Export:
    """Write the model of a checkpoint as each group of clients runs it, with a model card.

    Each group gets ``<group>.safetensors`` (see `bhfl.export.restore_`), and one with 8-bit weights
    ``<group>.onnx`` too, if the extra ``onnx`` is installed. The card is ``README.md``.

    Args:
        trainer: The trainer, with the options, fleet and algorithm of the run.
        model: The LightningModule that the run trained.
        datamodule: The data as for `fit`; their inputs give an ONNX file its shapes.
        ckpt_path: A checkpoint, a run folder, or ``last`` or ``best`` of the newest run.
        out: The folder to write to; by default ``export`` in the checkpoint's run folder.
        calibrate: Samples of the validation split on which the ranges of activations in ONNX files
            are found, to be constants; by default each input has a range of its own.

    Returns:
        The files, and why one is missing.

    Raises:
        ValueError: The algorithm has no whole global model, a package is not installed, `calibrate`
            is less than 1, or `out` is no folder.
        CheckpointError: `ckpt_path` cannot be used.
    """
    chosen = user_folder("out", out)
    problems = needs_global_model(trainer, "export")
    if calibrate is not None and calibrate < 1:
        problems.append(f"calibrate must be at least 1 sample, got {calibrate}")
    if not installed("export"):
        problems.append("export needs the package safetensors: pip install 'bhfl[export]'")
    refuse(problems)
    with Session.opened(trainer, model, datamodule, "test") as session:
        run, state = session.load(ckpt_path, clients=False)
        refuse_parts(session, "export")
        if run is not None and chosen is None:
            folder = subfolder(run, "export")
        else:
            folder = chosen or trainer.root / "export"
        folder.mkdir(parents=True, exist_ok=True)
        made = Export(folder)
        STANDING.writes(folder)
        # an earlier export's would tell of this one's files, where it does not come to its end
        with naming(made.card):
            made.card.unlink(missing_ok=True)
        measured, accuracies = _accuracies(session, run, state["run"]["history"], made)
        _write(session, made, accuracies, calibrate)
        session.tear_down()
    write_text(made.card, _card(session, made, measured, state))
    return made


def _write(
    session: Session, made: Export, accuracies: Mapping[str, float], calibrate: int | None
) -> None:
    """Write the files."""
    worker, server = session.worker, session.server
    worker.layout.take_(server.channels_last)
    with_onnx = installed("onnx")
    if not with_onnx:
        made.notes.append("no ONNX file is written: pip install 'bhfl[onnx]'")
    for group, devices in session.evaluator.groups(server).items():
        spec = devices.spec
        worker.load_global(session.own.whole(session.evaluator.model(server, devices), {}), devices)
        float_bytes = sum(tensor.nbytes for tensor in worker.state().values())
        path = made.folder / f"{group}.safetensors"
        size = save_quantized(worker.module, path)
        integers = Exported(group, path.name, size, float_bytes, accuracies.get(group))
        made.files.append(integers)
        file = path.with_name(f"{group}.onnx")
        # where none is written, one of an earlier export would pass for this model's
        with naming(file):
            file.unlink(missing_ok=True)
        # other weights would not be a smaller file: a graph has int8 at least
        if with_onnx and spec.weights == 8 and spec.activations in (*range(2, 9), 32):
            made.files += _onnx(session, integers, file, made.notes, calibrate)


def _accuracies(
    session: Session, run: Path | None, history: list[dict[str, Any]], made: Export
) -> tuple[str, dict[str, float]]:
    """The split that the accuracies of this very state were measured on, and the accuracies by
    group; none where the run measured other models.
    """
    round = session.server.round
    summary = summary_of(run / "summary.json", made.notes) if run else {}
    # the summary tells of the end of the run, and the checkpoint may be an earlier state
    if summary.get("rounds") == round and "failed" not in summary:
        stage, split = "test", "test split"
        metrics = summary["metrics"]
    else:
        stage, split = "val", "validation split"
        metrics = next((row for row in history if row["round"] == round), {})
    found: dict[str, float] = {}
    if session.evaluator.by_client(session.server) or session.evaluator.training:
        made.notes.append(
            f"the card has no accuracies: the run measured its clients' own models on the {split}, "
            "and the files hold the global one"
        )
        return split, found
    for group in group_sizes(session.fleet):
        # of several accuracies the first name counts, and so it is written last
        for name in reversed(ACCURACIES):
            value = metrics.get(f"{stage}/{name}_{group}")
            if isinstance(value, int | float):
                found[group] = value
    return split, found


def _card(session: Session, made: Export, measured: str, state: Mapping[str, Any]) -> str:
    """The text of the model card of a checkpoint, which is `state`."""
    trainer, model = session.trainer, session.module
    config = {"clients": trainer.fleet.to_config(), **trainer.config}
    sizes = group_sizes(session.fleet)
    rounds = session.server.round
    sent = Ledger(state["run"]["ledger"])
    facts = {
        "Data": f"{type(session.data).__name__}, {session.fleet.sizes.sum():,} training samples",
        "Clients": ", ".join(f"{size} of {group}" for group, size in sizes.items()),
        # whatever the configuration says, which may be that of another run
        "Method": algorithm_of(state["config"]),
        "Rounds": f"{rounds}, seed {session.settings.cohort.seed}",
        "Sent": f"{sent.total('uplink_bytes'):,} bytes up, "
        f"{sent.total('downlink_bytes'):,} bytes down",
    }
    title = (
        f"{session.settings.output.name}: {type(model).__name__}, {rounds} rounds of "
        f"{facts['Method']}"
    )
    kind = None
    # samples may be anything, and labels words, of which data do not tell a shape or a number
    with suppress(ValueError):
        pictures = len(getattr(session.data, "input_shape", ())) == 3
        # of which the Hub has a name where they have classes
        if pictures and hasattr(session.data, "num_classes"):
            kind = "image-classification"
    head = front_matter(title, made.files, measured, type(session.data).__name__, kind)
    return head + model_card(
        title,
        made.files,
        measured,
        facts,
        written(config),
        _loading(
            model,
            session.data,
            trainer.config.get("model", {}).get("init_args", {}),
            made.files[0].file,
        ),
    )


def summary_of(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """The summary of a run; empty if there is no such file, or if it cannot be read, of which a
    note is made.
    """
    if not path.is_file():
        return {}
    try:
        found = read_json(read_limited(path, _MAX_SUMMARY_BYTES))
        if not (isinstance(found, dict) and isinstance(found.get("metrics"), dict)):
            raise ValueError("it has no metrics")
    except (OSError, ValueError) as error:
        notes.append(
            f"{path} cannot be read, so the card tells what the validation split had: {error}"
        )
        return {}
    return found


def _onnx(
    session: Session, integers: Exported, path: Path, notes: list[str], calibrate: int | None
) -> Iterator[Exported]:
    """Write the ONNX file beside that of the integers; nothing, with a note, if the exporter cannot
    take the model or its input.
    """
    worker, data = session.worker, session.data
    used: list[int] = []

    def samples(most: int) -> Iterator[tuple[Any, ...]]:
        for arguments in samples_of(worker, data, most):
            used.append(num_samples(arguments) or 1)
            yield arguments

    try:
        example = example_of(worker, data)
        fixed = samples(calibrate) if calibrate else None
        size = export_onnx(worker.module, example, path, calibration=fixed)
    except (ValueError, ImportError) as error:
        notes.append(f"{path.name} is not written: {clipped(' '.join(str(error).split()))}")
        return
    # with fixed ranges it computes otherwise than the model that was measured
    accuracy = None if used else integers.accuracy
    yield replace(integers, file=path.name, num_bytes=size, accuracy=accuracy, calibrated=sum(used))


def _loading(
    model: "L.LightningModule", data: FederatedData, given: Mapping[str, Any], file: str
) -> str:
    """Code that makes the model again and loads a file into it.

    Args:
        model: The model, of the class that is to be made.
        data: The data, from which a command line takes some arguments.
        given: The arguments in the configuration; those that only training needs are left out.
        file: The name of the file.
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
    arguments = {}
    imports = {"from bhfl.export import restore_", _home(type(model))}
    for key, value in values.items():
        if not (isinstance(value, dict) and "class_path" in value):
            arguments[key] = repr(value)
        elif isinstance(made := getattr(model, key, None), torch.nn.Module):
            own = {name: repr(option) for name, option in value.get("init_args", {}).items()}
            arguments[key] = _call(made, own)
            imports.add(_home(type(made)))
    lines = "\n".join(sorted(imports))
    return f"""
{lines}

model = restore_({_call(model, arguments)}, {file!r}).eval()
"""


def _call(made: object, arguments: Mapping[str, str]) -> str:
    """The code that makes an object of the same class."""
    listed = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"{type(made).__name__}({listed})"


def _home(cls: type) -> str:
    """The line that imports a class."""
    module = "bhfl.models" if cls.__module__.startswith("bhfl.models.") else cls.__module__
    return f"from {module} import {cls.__name__}"
