"""The options of a trainer: what each one changes, and what it may be.

`Settings` holds all options of `FederatedTrainer` in groups, one a concern. A field says once which
role its option has, which is all that resuming, sweeps and reports go by, and once how its value is
checked. Values of classes of their own (the fleet, the network, callbacks) are checked by those
classes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import chain
from typing import Any, Literal, get_args, get_type_hints

from bhfl.checks import (
    Check,
    auto_or_switch,
    choice,
    count,
    folder_name,
    is_integer,
    not_negative,
    or_none,
    positive,
    text,
    too_long,
    true_or_false,
)
from bhfl.downlink import DownBits, Downlink, downlink
from bhfl.files import user_path

LARGEST_SEED = 2**32 - 1
"""The largest seed of `lightning.seed_everything`."""
_A_CPU = 16
"""Threads, or processes, for each CPU at most: far more than help, and far fewer than crash a
machine.
"""


Measures = Literal["none", "after", "both"]
"""When clients' own models are measured in a round: not at all, after their training, or before and
after it.
"""


class Role(Enum):
    """What an option is to a run.

    A run goes on only with the same RESULT, TASK and CHOICE; with another LENGTH it is the same run
    made longer or shorter. Reports compare runs that share their TASK and IDENTITY, and tell them
    apart by RESULT, LENGTH and CHOICE. All else may differ: of NUMERICS who goes on is warned.
    """

    RESULT = "result"
    """It changes what is computed."""
    TASK = "task"
    """It says what is learnt, by whom and over what links."""
    IDENTITY = "identity"
    """It tells data or models apart that nothing else names, such as folders of pictures. A run may
    go on with another value: its split and its tensors are compared themselves.
    """
    LENGTH = "length"
    """It says when training ends."""
    CHOICE = "choice"
    """It says which round is the best one."""
    NUMERICS = "numerics"
    """It changes the last bits of the results."""
    MACHINE = "machine"
    """It says where and by what means a run computes, and what faults it puts up with."""
    OUTPUT = "output"
    """It says what is measured, written and told besides."""


MUST_STAY = (Role.RESULT, Role.TASK, Role.CHOICE)
"""The roles of options that a run can only go on with as they are."""
MAKE_THE_RUN = (*MUST_STAY, Role.LENGTH)
"""The roles of options that tell a whole run from another."""

DATA_ROLES = {
    "batch_size": Role.RESULT,
    "eval_batch_size": Role.RESULT,  # samples of the holdout come in such batches
    "augment": Role.RESULT,
    "drop_last": Role.RESULT,
    "holdout": Role.RESULT,
    "root": Role.IDENTITY,
    "archive": Role.IDENTITY,
    "download": Role.MACHINE,
    "num_workers": Role.MACHINE,
}
"""Options of any data module; its others say what is learnt, or its class has ``roles``."""
_TRAINING = (
    "optimizer lr_scheduler lr_interval label_smoothing lr learning_rate momentum weight_decay"
)
MODEL_ROLES = {
    **dict.fromkeys(_TRAINING.split(), Role.RESULT),
    "num_classes": Role.MACHINE,  # as the data have them, or the model has other tensors
    "input_shape": Role.MACHINE,
}
"""Options of any model; its others say what is learnt."""


def option(role: Role, check: Check | None = None) -> Any:
    """A field of a group: an option of this role, whose values `check` refuses.

    Args:
        role: What the option is to a run.
        check: Says what is wrong with a value; None where the value's own class does.
    """
    return field(metadata={"role": role, "check": check})


# ---- checks --------------------------------------------------------------------------------------


def folder(value: Any) -> str:
    """Problems of the path of a folder."""
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        return f"must not be empty, got {value!r}"
    try:
        user_path(value)
    except ValueError as error:
        return f"must be a folder: {error}"
    return text(str(value)) or too_long(str(value))


def part(value: Any) -> str:
    """Problems of a number of clients, or a fraction of them."""
    if value is None or not count(1)(value) or (isinstance(value, float) and 0 < value <= 1):
        return ""
    return f"must be a count, or a fraction in (0, 1], got {value!r}"


# ---- groups --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Options of one concern."""

    def problems(self) -> Iterator[str]:
        """What is wrong with the options, each as ``key rule, got value``."""
        for one in fields(self):
            check = one.metadata["check"]
            if check and (problem := check(getattr(self, one.name))):
                yield f"{one.name} {problem}"


@dataclass(frozen=True)
class Fleet(Group):
    """The clients there are, their links, and how reliable they are; see `bhfl.engine.fleet`,
    `bhfl.comm.network` and `bhfl.engine.availability`.
    """

    clients: Any = option(Role.TASK)
    num_clients: int | None = option(Role.TASK, or_none(count(1)))
    network: Any = option(Role.TASK)
    availability: Any = option(Role.TASK)
    downlink: DownBits | Downlink = option(Role.RESULT, downlink)


@dataclass(frozen=True)
class Cohort(Group):
    """The clients of a round, and how many of them a round needs."""

    clients_per_round: int | float | None = option(Role.RESULT, part)
    sampling: Literal["stratified", "uniform", "poisson"] = option(
        Role.RESULT, choice("stratified", "uniform", "poisson")
    )
    min_clients: int = option(Role.RESULT, count(1))
    seed: int = option(Role.RESULT, count(0, LARGEST_SEED))


@dataclass(frozen=True)
class LocalTraining(Group):
    """How long and in what manner a client trains in a round."""

    local_epochs: int = option(Role.RESULT, count(1))
    local_steps: int | None = option(Role.RESULT, or_none(count(1)))
    lr_schedule: Literal["continue", "restart"] = option(Role.RESULT, choice("continue", "restart"))
    gradient_clip_val: float | None = option(Role.RESULT, or_none(positive))
    precision: int | str = option(Role.RESULT, choice("32", "32-true", "16-mixed", "bf16-mixed"))
    save_in_int8: bool = option(Role.RESULT, true_or_false)

    def planned_steps(self, num_batches: int) -> int:
        """Optimiser steps in a round of a client with so many batches."""
        return self.local_epochs * num_batches if self.local_steps is None else self.local_steps


@dataclass(frozen=True)
class Aggregation(Group):
    """How one model is made of the clients' many."""

    algorithm: Any = option(Role.RESULT)
    server_optimizer: Callable[..., Any] | None = option(Role.RESULT)
    weights: Literal["samples", "uniform"] = option(Role.RESULT, choice("samples", "uniform"))
    norm: Literal["average", "local", "group"] = option(
        Role.RESULT, choice("average", "local", "group")
    )
    reestimate_norm: bool = option(Role.RESULT, true_or_false)
    finetune_epochs: int = option(Role.RESULT, count(0))


@dataclass(frozen=True)
class Stopping(Group):
    """When a run ends."""

    max_rounds: int = option(Role.LENGTH, count(1))
    patience: int | None = option(Role.LENGTH, or_none(count(1)))
    min_delta: float = option(Role.LENGTH, not_negative)
    max_failed_rounds: int = option(Role.MACHINE, count(0))


@dataclass(frozen=True)
class Choice(Group):
    """Which round is the best one."""

    monitor: str = option(Role.CHOICE, text)
    mode: Literal["max", "min"] = option(Role.CHOICE, choice("max", "min"))
    best_by_group: bool = option(Role.CHOICE, true_or_false)


@dataclass(frozen=True)
class Machine(Group):
    """Where and by what means a run computes."""

    accelerator: str = option(Role.MACHINE)
    devices: int | str | list[int] = option(Role.MACHINE)
    num_nodes: int = option(Role.MACHINE, count(1))
    strategy: Any = option(Role.MACHINE)
    threads: int = option(Role.NUMERICS, count(1))
    timeout_seconds: int = option(Role.MACHINE, count(1))
    channels_last: bool | Literal["auto"] = option(Role.NUMERICS, auto_or_switch)

    def problems(self) -> Iterator[str]:
        """Those of each option, and numbers that are too large for this very machine."""
        yield from super().problems()
        most = _A_CPU * (os.cpu_count() or 1)
        on_cpu = self.accelerator in ("auto", "cpu")
        processes = str(self.devices)
        numbers = {
            "threads": self.threads,
            "devices": int(processes) if on_cpu and processes.isdecimal() else 1,
        }
        for key, number in numbers.items():
            if is_integer(number) and number > most:
                yield f"{key} must be at most {most}, {_A_CPU} for each CPU here, got {number}"


@dataclass(frozen=True)
class Output(Group):
    """What a run measures and writes, where, and how often."""

    evaluate_clients: Measures = option(Role.OUTPUT, choice(*get_args(Measures)))
    validate_first: bool = option(Role.OUTPUT, true_or_false)
    check_val_every_n_rounds: int = option(Role.OUTPUT, count(1))
    checkpoint_every_n_rounds: int = option(Role.OUTPUT, count(1))
    keep_checkpoints: int = option(Role.OUTPUT, count(1))
    logger: Any = option(Role.OUTPUT)
    callbacks: Sequence[Any] | None = option(Role.OUTPUT)
    enable_progress_bar: bool = option(Role.OUTPUT, true_or_false)
    default_root_dir: str | os.PathLike[str] = option(Role.OUTPUT, folder)
    name: str = option(Role.OUTPUT, folder_name)


@dataclass(frozen=True)
class Settings:
    """All options of a trainer, by concern."""

    fleet: Fleet
    cohort: Cohort
    training: LocalTraining
    aggregation: Aggregation
    stopping: Stopping
    choice: Choice
    machine: Machine
    output: Output

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """The settings that a trainer's keyword arguments say."""
        groups = {}
        for name, kind in get_type_hints(cls).items():
            groups[name] = kind(**{one.name: options[one.name] for one in fields(kind)})
        return cls(**groups)

    @property
    def groups(self) -> list[Group]:
        """The options of each concern."""
        return [getattr(self, one.name) for one in fields(self)]

    def problems(self) -> list[str]:
        """What is wrong with the options, each as ``key rule, got value``."""
        return list(chain.from_iterable(group.problems() for group in self.groups))

    def options(self) -> Iterator[tuple[str, Role, Any]]:
        """The name, the role and the value of each option."""
        for group in self.groups:
            for one in fields(group):
                yield one.name, one.metadata["role"], getattr(group, one.name)


def option_names() -> list[str]:
    """The names of all options."""
    found: list[str] = []
    for kind in get_type_hints(Settings).values():
        found += [one.name for one in fields(kind)]
    return found
