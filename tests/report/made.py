"""Run folders as the engine writes them, made in no time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints

import bhfl.data
from bhfl.recorded import flatten
from bhfl.settings import DATA_ROLES, MODEL_ROLES, Role, Settings
from bhfl.told import Told

_OPTIONS = chain.from_iterable(map(fields, get_type_hints(Settings).values()))
TRAINER_ROLES = {one.name: one.metadata["role"] for one in _OPTIONS}


def config(
    algorithm: str = "FedAvg",
    seed: int = 0,
    clients: Any = None,
    max_rounds: int = 3,
    **options: Any,
) -> dict[str, Any]:
    """A configuration, whole enough; `options` are the algorithm's, or of another part:
    ``data__holdout=64``.
    """
    found: dict[str, Any] = {
        "seed_everything": seed,
        "clients": clients or {"int8": 5, "float32": 5},
        "algorithm": {"class_path": f"bhfl.algorithms.{algorithm}", "init_args": {}},
        "model": {
            "class_path": "bhfl.models.Classifier",
            "init_args": {
                "net": "cnn",
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
            },
        },
        "data": {
            "class_path": "bhfl.data.Digits",
            "init_args": {
                "partition": {"class_path": "bhfl.data.IID"},
                "batch_size": 16,
                "holdout": 0,
            },
        },
        "trainer": {
            "max_rounds": max_rounds,
            "network": None,
            "default_root_dir": "runs",
            "name": algorithm,
        },
    }
    for key, value in options.items():
        part, _, name = key.rpartition("__")
        section = found[part or "algorithm"]
        section.get("init_args", section)[name] = value
    return found


def told(config: Mapping[str, Any]) -> Told:
    """What a run of this configuration is told."""
    data = config.get("data", {})
    cls = getattr(bhfl.data, str(data.get("class_path")).rpartition(".")[2], None)
    roles = {
        "trainer": TRAINER_ROLES,
        "data": {**DATA_ROLES, **getattr(cls, "roles", {})},
        "model": MODEL_ROLES,
        "algorithm": {"": Role.RESULT},
    }
    found: Told = {role.value: {} for role in Role}
    for part, value in config.items():
        if part == "seed_everything":
            found[Role.RESULT.value]["trainer.seed"] = value
        elif part == "clients":
            found[Role.TASK.value][part] = value
        for key, item in flatten({part: value}).items() if part in roles else ():
            name = "" if part == "algorithm" else key.partition(".")[2].partition(".")[0]
            found[roles[part].get(name, Role.TASK).value][key] = item
    return found


def rows(
    accuracies: Sequence[Mapping[str, float]],
    up: int = 1_000_000,
    down: int = 2_000_000,
    **tags: Sequence[float],
) -> list[dict[str, Any]]:
    """Rows of ``rounds.jsonl`` with these accuracies by group, these bytes a round, and `tags` by
    round.
    """
    found = []
    for round, values in enumerate(accuracies, 1):
        average = sum(values.values()) / len(values)
        row: dict[str, Any] = {"round": round, "clients/ok": 10.0}
        row |= {f"clients/{status}": 0.0 for status in ("failed", "rejected", "late", "skipped")}
        row |= {
            "uplink_bytes": up,
            "downlink_bytes": down,
            "header_bytes": 100,
            "time/round_s": 0.5,
        }
        row |= {f"val/acc_{group}": value for group, value in values.items()}
        row |= {"val/acc_avg": average, "val/acc_min": min(values.values()), "val/loss": 1.0}
        row |= {"comm/uplink_MB": round * up / 1e6, "comm/downlink_MB": round * down / 1e6}
        row |= {"comm/total_MB": round * (up + down) / 1e6, "problems": []}
        found.append(row | {tag: values[round - 1] for tag, values in tags.items()})
    return found


def run(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    ends: Sequence[float] | Mapping[str, float] = (0.8, 0.9),
    finished: bool = True,
    **options: Any,
) -> Path:
    """A run folder whose accuracies rise to `ends`, of int8 and float32 clients or by group, in
    three rounds.
    """
    named = ends if isinstance(ends, Mapping) else dict(zip(("int8", "float32"), ends, strict=True))
    by_round = [
        {group: share * value for group, value in named.items()} for share in (0.25, 0.5, 1.0)
    ]
    return write(folder, settings or config(), rows(by_round, **options), finished)


def write(
    folder: Path,
    settings: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    finished: bool = True,
) -> Path:
    """The files of a run."""
    folder.mkdir(parents=True)
    (folder / "env.json").write_text("{}")
    (folder / "settings.json").write_text(json.dumps(told(settings)))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    if finished:
        last = found[-1]
        metrics = {
            tag.replace("val/", "test/"): value
            for tag, value in last.items()
            if tag.startswith("val/")
        }
        groups = [
            t[8:]
            for t in last
            if t.startswith("val/acc_") and t not in ("val/acc_avg", "val/acc_min")
        ]
        summary = {
            "metrics": metrics,
            "rounds": last["round"],
            "bytes": {group: {} for group in groups},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
