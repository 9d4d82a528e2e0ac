"""The options of `FederatedTrainer`, checked one by one and against each other before any work is
done.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from bhfl.engine.callback import callback_problems
from bhfl.engine.fleet import Fleet
from bhfl.engine.sampling import cohort_size
from bhfl.engine.server_optimizer import unusable
from bhfl.files import user_path

_COUNTS = {
    "max_rounds": 1, "local_epochs": 1, "min_clients": 1, "max_failed_rounds": 0,
    "check_val_every_n_rounds": 1, "checkpoint_every_n_rounds": 1, "keep_checkpoints": 1,
    "num_nodes": 1, "threads": 1, "timeout_seconds": 1,
}  # fmt: skip
_OPTIONAL_COUNTS = {"num_clients": 1, "local_steps": 1, "patience": 1}
_CHOICES = {
    "sampling": ("stratified", "uniform"),
    "lr_schedule": ("continue", "restart"),
    "weights": ("samples", "uniform"),
    "norm": ("average", "local", "group"),
    "mode": ("max", "min"),
}
_PRECISIONS = ("32", "32-true", "16-mixed", "bf16-mixed")
_LARGEST = 2**31
_LONGEST_PART, _LONGEST_PATH = 255, 3000
"""Bytes of a file's name and of a path, as Linux takes them, which leaves room for the files inside
of a run folder.
"""
_A_CPU = 16
"""Threads, or processes, for each CPU at most: far more than help, and far fewer than crash a
machine.
"""
_LARGEST_SEED = 2**32 - 1
"""As in `lightning.seed_everything`."""

FREE = (
    "max_rounds", "max_failed_rounds", "check_val_every_n_rounds", "patience", "evaluate_clients",
    "checkpoint_every_n_rounds", "keep_checkpoints", "accelerator", "devices", "num_nodes",
    "strategy", "threads", "timeout_seconds", "logger", "callbacks", "default_root_dir", "name",
)  # fmt: skip
"""Options that may differ when a run is resumed: they shape neither the model nor what is its best
one.
"""

DATA = ("batch_size", "augment", "drop_last")
"""Attributes of a data module that shape the model, besides the split, which a resumed run has by
its hash.
"""


def global_seed() -> int:
    """The number that `lightning.seed_everything` was given, in this process or in the one that
    started it; else 0.

    Raises:
        ValueError: The environment variable that it leaves behind was set to something else.
    """
    text = os.environ.get("PL_GLOBAL_SEED", "0")
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > _LARGEST_SEED:
        raise ValueError(
            "the environment variable PL_GLOBAL_SEED must be an integer from 0 to "
            f"{_LARGEST_SEED:,}, got {text!r}: unset it, or call lightning.seed_everything with a "
            "number, or give the trainer a seed"
        )
    return int(text)


def check_settings(options: Mapping[str, Any]) -> None:
    """Raise one ValueError with every problem of `FederatedTrainer`'s options, one a line."""
    problems = [
        f"{key} must be an integer from {low} to {_LARGEST:,}, got {options[key]!r}"
        for key, low in (_COUNTS | _OPTIONAL_COUNTS).items()
        if not (key in _OPTIONAL_COUNTS and options[key] is None)
        and not _is_count(options[key], low)
    ]
    if not _is_count(options["seed"], 0, _LARGEST_SEED):
        problems.append(
            f"seed must be an integer from 0 to {_LARGEST_SEED:,}, got {options['seed']!r}"
        )
    problems += [
        f"{key} must be one of {', '.join(choices)}, got {options[key]!r}"
        for key, choices in _CHOICES.items()
        if options[key] not in choices
    ]
    if str(options["precision"]) not in _PRECISIONS:
        problems.append(
            f"precision must be one of {', '.join(_PRECISIONS)}, got {options['precision']!r}"
        )
    for key in ("save_in_int8", "reestimate_norm"):
        if not isinstance(options[key], bool):
            problems.append(f"{key} must be true or false, got {options[key]!r}")
    if not isinstance(options["channels_last"], bool) and options["channels_last"] != "auto":
        problems.append(
            f"channels_last must be auto, true or false, got {options['channels_last']!r}"
        )
    clip = options["gradient_clip_val"]
    if clip is not None and not (_is_number(clip) and 0 < clip < math.inf):
        problems.append(f"gradient_clip_val must be positive and finite, got {clip!r}")
    problems += _folder_problems(options["default_root_dir"])
    for key in ("name", "monitor"):
        problems += _text_problems(key, options[key])
    problems += _machine_problems(options)
    if isinstance(options["name"], str) and (
        options["name"].startswith("/") or ".." in options["name"].split("/")
    ):
        problems.append(f"name must stay inside default_root_dir, got {options['name']!r}")
    problems += callback_problems(options["callbacks"])
    problems += _fleet_problems(options, problems)
    if problems:
        raise ValueError("\n".join(problems))


def _folder_problems(value: Any) -> list[str]:
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        return [f"default_root_dir must not be empty, got {value!r}"]
    try:
        user_path(value)
    except ValueError as error:
        return [f"default_root_dir must be a folder: {error}"]
    return _text_problems("default_root_dir", str(value))


def _text_problems(key: str, text: Any) -> list[str]:
    """Problems of an option that is text: empty, or no name that a file system takes."""
    if not isinstance(text, str) or not text.strip():
        return [f"{key} must not be empty, got {text!r}"]
    if not text.isprintable() and re.search("[\0\ud800-\udfff]", text):
        return [f"{key} must be text without NUL that UTF-8 can write, got {text!r}"]
    parts = text.encode().split(b"/")
    if key != "monitor" and (
        len(text.encode()) > _LONGEST_PATH or max(map(len, parts)) > _LONGEST_PART
    ):
        longest = f"{_LONGEST_PATH} bytes, and {_LONGEST_PART} between two slashes"
        return [
            f"{key} must have at most {longest}, "
            f"got {len(text.encode())} bytes that begin with {text[:20]!r}"
        ]
    return []


def _machine_problems(options: Mapping[str, Any]) -> list[str]:
    """Problems of what only this machine can tell, or a trial."""
    found, most = [], _A_CPU * (os.cpu_count() or 1)
    processes = str(options["devices"]) if options["accelerator"] in ("auto", "cpu") else ""
    numbers = {
        "threads": options["threads"],
        "devices": int(processes) if processes.isdecimal() else 1,
    }
    for key, number in numbers.items():
        if _is_count(number, 1, sys.maxsize) and number > most:
            found.append(f"{key} must be at most {most}, {_A_CPU} for each CPU here, got {number}")
    if callable(make := options.get("server_optimizer")) and (why := unusable(make)):
        found.append(f"server_optimizer cannot be used: {why}")
    return found


def _fleet_problems(options: Mapping[str, Any], problems: list[str]) -> list[str]:
    """Problems of the fleet, and of the cohort against it where the rest is right."""
    try:
        fleet = Fleet(options["clients"])
    except ValueError as error:
        return str(error).splitlines()
    if problems:
        return []
    try:
        total = len(fleet.specs(options["num_clients"]))
    except ValueError as error:
        return [str(error)]
    cohort = options["clients_per_round"]
    if isinstance(cohort, float) and not 0 < cohort <= 1:
        return [f"clients_per_round must be a count, or a fraction in (0, 1], got {cohort!r}"]
    if cohort is not None and not isinstance(cohort, float) and not _is_count(cohort, 1):
        return [f"clients_per_round must be a count, or a fraction in (0, 1], got {cohort!r}"]
    size = cohort_size(total, cohort)
    found = []
    if size > total:
        found.append(
            f"clients_per_round must be at most {total}, the number of clients, got {cohort!r}"
        )
    if options["min_clients"] > min(size, total):
        found.append(
            f"min_clients must be at most {min(size, total)}, the clients of a round, got "
            f"{options['min_clients']}"
        )
    return found


def _is_count(value: Any, low: int, high: int = _LARGEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
