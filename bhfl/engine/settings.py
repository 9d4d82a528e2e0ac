"""The settings of `FederatedTrainer`, checked one by one and against each other before any work is
done.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from bhfl.checks import choice, refuse
from bhfl.checks import options as options_of
from bhfl.comm.network import SimulatedNetwork
from bhfl.downlink import Downlink
from bhfl.engine.availability import Availability
from bhfl.engine.callback import callback_problems
from bhfl.engine.devices import Group
from bhfl.engine.fleet import Fleet
from bhfl.engine.optimizers import describe, unusable
from bhfl.engine.sampling import cohort_size
from bhfl.settings import LARGEST_SEED, Settings


def global_seed() -> int:
    """The number that `lightning.seed_everything` was given, in this process or in the one that
    started it; else 0.

    Raises:
        ValueError: The environment variable that it leaves behind was set to something else.
    """
    text = os.environ.get("PL_GLOBAL_SEED", "0")
    # int() alone takes signs, spaces and digits of other alphabets
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > LARGEST_SEED:
        raise ValueError(
            "the environment variable PL_GLOBAL_SEED must be an integer from 0 to "
            f"{LARGEST_SEED:,}, got {text!r}: unset it, or call lightning.seed_everything with a "
            "number, or give the trainer a seed"
        )
    return int(text)


def checked_settings(options: Mapping[str, Any]) -> Settings:
    """The settings that the trainer's keyword arguments say.

    Raises:
        ValueError: With every problem of them, one a line.
    """
    # one way to write what is the same: runs are compared by what they were told
    options = {**options, "downlink": Downlink.of(options["downlink"]).short()}
    settings = Settings.of(options)
    problems = settings.problems()
    make = settings.aggregation.server_optimizer
    if callable(make) and (why := unusable(make)):
        problems.append(f"server_optimizer cannot be used: {why}")
    elif callable(make) and describe(make)["init_args"].get("maximize"):
        problems.append("server_optimizer must go down to the clients' mean, got maximize: true")
    problems += callback_problems(settings.output.callbacks)
    if wrong := options_of(Availability, optional=True)(settings.fleet.availability):
        problems.append(f"availability {wrong}")
    problems += _fleet_problems(settings, alone=bool(problems))
    refuse(problems)
    return settings


def _fleet_problems(settings: Settings, alone: bool) -> list[str]:
    """Problems of the fleet.

    Args:
        settings: The trainer's settings.
        alone: Other options are wrong, so that the fleet is not compared with its cohort.
    """
    try:
        fleet = Fleet(settings.fleet.clients)
        if alone:
            return []
        total = sum(fleet.counts(settings.fleet.num_clients))
    except ValueError as error:
        return str(error).splitlines()
    cohort = settings.cohort
    last = settings.stopping.max_rounds - 1
    found = [
        f"clients: schedule of group {group.label!r} must name rounds from 1 to {last}, below "
        f"max_rounds, got {latest}"
        for group in fleet.groups
        if (latest := max(group.schedule, default=0)) > last
    ]
    size = cohort_size(total, cohort.clients_per_round)
    if size > total:
        found.append(
            f"clients_per_round must be at most {total}, the number of clients, got "
            f"{cohort.clients_per_round!r}"
        )
    if cohort.min_clients > min(size, total):
        found.append(
            f"min_clients must be at most {min(size, total)}, the clients of a round, got "
            f"{cohort.min_clients}"
        )
    availability: Availability | None = settings.fleet.availability
    if availability and (wrong := availability.problem(total, settings.stopping.max_rounds)):
        found.append(wrong)
    return found


def profile_problem(group: Group, network: SimulatedNetwork | None) -> str:
    """What is wrong with the profile of a group; empty if nothing is.

    Args:
        group: A group of the fleet.
        network: The simulated network, made: a configuration alone does not say what it knows.
    """
    if group.profile is None:
        return ""
    key = f"clients: profile of group {group.label!r}"
    if network is None:
        return f"{key} needs trainer.network, got {group.profile!r}"
    known = network.profiles
    if not known:
        return f"{key} needs links from profiles, and trainer.network has a trace"
    problem = choice(*known)(group.profile)
    return f"{key} {problem}" if problem else ""
