"""Predictions of a model, or of a checkpoint of it, and the files that they are written to."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import numpy.typing as npt
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from bhfl.checks import refuse, suggestion
from bhfl.engine.client.module_hooks import overrides
from bhfl.engine.client.plain import num_samples
from bhfl.engine.devices import FLOAT
from bhfl.engine.measure import fitted_in, needs_global_model, refuse_parts, take_up
from bhfl.engine.session import Session
from bhfl.engine.types import FederatedData
from bhfl.files import durable, user_folder, user_option, write_rows

if TYPE_CHECKING:
    from bhfl.engine.trainer import FederatedTrainer

Columns = dict[str, npt.NDArray[Any]]
"""Arrays with a row for each sample, by name."""
ENDINGS = (".csv", ".npz")


def predict(
    trainer: "FederatedTrainer",
    model: L.LightningModule,
    data: FederatedData,
    ckpt_path: str | Path | None,
    group: str | None,
    out: str | Path | None,
) -> list[Any]:
    """What a model makes of each batch; see `FederatedTrainer.predict`."""
    file = user_option("out", out)
    problems = needs_global_model(trainer, "predict")
    if file is not None and file.suffix not in ENDINGS:
        problems.append(f"out must end in {' or '.join(ENDINGS)}, got {str(out)!r}")
    if file is not None and file.is_dir():
        problems.append(f"out must be a file to write, got the folder {str(out)!r}")
    module = getattr(model, "_orig_mod", model)
    if not any(overrides(module, name, L.LightningModule) for name in ("predict_step", "forward")):
        problems.append(f"{type(module).__name__} must define predict_step or forward to predict")
    refuse(problems)
    user_folder("out", file and file.parent)
    fitted = fitted_in(trainer, module)
    own = overrides(data, "predict_dataloader", DataHooks)
    stages = ("predict",) if own else ("predict", "test")
    targets: list[Any] = []
    with Session.opened(trainer, model, data, *stages) as session:
        take_up(session, ckpt_path, fitted)
        _load(session, group)
        # Lightning's hook, which only some data have
        loader: Any = data
        batches = loader.predict_dataloader() if own else data.test_batches()
        outputs = session.worker.predict(_noting(batches, targets))
        session.tear_down()
    if file is not None:
        write(columns(outputs, targets), file)
    return outputs


def _load(session: Session, group: str | None) -> None:
    """Make the module the model of a bit group, or the server's own.

    Raises:
        ValueError: There is no such group, or clients keep a part of its model, or of the models of
            all groups where the server's is meant.
    """
    groups = session.evaluator.groups(session.server)
    if group is None:
        refuse_parts(session, "predict")
        session.worker.load_global(session.global_model(), FLOAT)
        return
    if group not in groups:
        raise ValueError(
            f"group must be one of the fleet's, got {group!r}{suggestion(str(group), groups)}"
        )
    tensors = session.evaluator.model(session.server, groups[group])
    if missing := session.own.missing(tensors):
        raise ValueError(
            f"predict needs a whole model of group {group!r}, and {next(iter(missing))} stays with "
            "its clients"
        )
    session.worker.load_global(tensors, groups[group])


def _noting(batches: Iterable[Any], targets: list[Any]) -> Iterator[Any]:
    """The batches, whose targets are added to a list: the second of a pair, with as many rows.

    Raises:
        ValueError: They are not of one loader.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Mapping | CombinedLoader):
        raise ValueError(
            f"predict_dataloader must return one loader, got {type(batches).__name__}: predict "
            "once for each of several"
        )
    for batch in batches:
        if isinstance(batch, DataLoader):
            raise ValueError(
                "predict_dataloader must return one loader, got several: predict once for each"
            )
        pair = isinstance(batch, Sequence) and len(batch) == 2
        target = batch[1] if pair else None
        rows = len(target) if isinstance(target, Tensor) and target.ndim else None
        targets.append(target if rows and rows == num_samples(batch) else None)
        yield batch


# ---- files ---------------------------------------------------------------------------------------


def columns(outputs: Sequence[Any], targets: Sequence[Tensor | None]) -> Columns:
    """The predictions of all batches by name: ``sample``, what was predicted, ``target``.

    Args:
        outputs: What ``predict_step`` returned of each batch: a tensor with a row for each sample,
            which is called ``output``, or a mapping of such by name.
        targets: The batches' targets, where they are known.

    Raises:
        ValueError: An output is none of these, or there is none.

    >>> import torch
    >>> columns([torch.tensor([0.5, 2.0])], [None])["output"].tolist()
    [0.5, 2.0]
    """
    if not outputs:
        raise ValueError("predict needs samples, and the data have none to predict")
    parts: dict[str, list[Tensor]] = {}
    for output, target in zip(outputs, targets, strict=True):
        found = dict(output) if isinstance(output, Mapping) else {"output": output}
        if target is not None:
            found.setdefault("target", target)
        for name, value in found.items():
            if not isinstance(value, Tensor) or not value.ndim:
                raise ValueError(
                    "out needs a predict_step that returns a tensor with a row for each sample, or "
                    f"a mapping of such, got {type(value).__name__} for {name!r}"
                )
            parts.setdefault(str(name), []).append(value)
    arrays = {name: _joined(name, values) for name, values in parts.items()}
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"out needs as many rows of each output, got {sizes}")
    # what a user's own output is called stays
    found = {"sample": np.arange(next(iter(sizes.values())))}
    return found | {name: arrays[name] for name in sorted(arrays, key="target".__eq__)}


def _joined(name: str, values: Sequence[Tensor]) -> npt.NDArray[Any]:
    shapes = {tuple(value.shape[1:]) for value in values}
    if len(shapes) > 1:
        raise ValueError(f"out needs rows of one shape of {name!r}, got {sorted(shapes)}")
    whole = [value.detach().cpu() for value in values]
    # NumPy has no bfloat16, and nothing is lost in float32
    if whole[0].is_floating_point() and whole[0].element_size() < 4:
        whole = [value.float() for value in whole]
    return np.concatenate([value.numpy() for value in whole])


def write(found: Columns, file: Path) -> None:
    """Write columns whole or not at all: CSV with a column for each number of a row
    (``output_0``), or NumPy's ``.npz`` with the arrays as they are.

    Raises:
        OSError: The file cannot be written, naming it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npz":
        arrays: dict[str, Any] = dict(found)
        with durable(file) as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        return
    table: dict[str, npt.NDArray[Any]] = {}
    for name, array in found.items():
        flat = array.reshape(len(array), -1)
        for index in range(flat.shape[1]):
            key = name if array.ndim == 1 else f"{name}_{index}"
            # the shortest text that reads back to the same number
            table[key] = flat[:, index].astype(str)
    write_rows(file, [table, *zip(*table.values(), strict=True)])
