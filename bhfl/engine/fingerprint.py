"""What a run was told: all its options as plain values, by what they are to it."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bhfl.engine.devices import Devices
from bhfl.engine.fleet import Fleet
from bhfl.engine.optimizers import describe
from bhfl.recorded import Recorded, described, flatten, plain, spelled
from bhfl.settings import DATA_ROLES, MODEL_ROLES, Role, Settings
from bhfl.told import Told, told_of

# A small device tells of itself without Lightning, which is imported for type checks only.
if TYPE_CHECKING:
    import lightning as L

BACKENDS = "backends"


def fingerprint(settings: Settings, data: Any, model: Mapping[str, Any]) -> Told:
    """All that a model is trained with.

    Args:
        settings: The trainer's settings.
        data: The data module. Of a class that is not ours, it is told what it has of the same
            options.
        model: What the model was made with, as a configuration says it.
    """
    told: Told = {role.value: {} for role in Role}
    for name, role, value in settings.options():
        if name == "clients":
            value = Fleet(value).to_list()
        if name == "server_optimizer" and value:
            value = describe(value)
        # their classes alone: loggers may be made with secrets
        deep = role not in (Role.MACHINE, Role.OUTPUT)
        key = name if name in ("clients", "algorithm") else f"trainer.{name}"
        told[role.value] |= flatten(plain(value, deep), key)
        digests = value.file_digests if isinstance(value, Recorded) else {}
        for argument, sha256 in digests.items():
            place = f"{key}.{argument}"
            # a class of the user's own may name its file otherwise
            if place in told[role.value]:
                told[Role.MACHINE.value][place] = told[role.value].pop(place)
            told[role.value][f"{place}.sha256"] = sha256
    if isinstance(data, Recorded):
        options = described(data)
    else:
        known = {name: getattr(data, name) for name in DATA_ROLES if hasattr(data, name)}
        options = spelled(type(data), known)
    _add(told, flatten(options, "data"), {**DATA_ROLES, **getattr(data, "roles", {})})
    _add(told, flatten(model, "model"), MODEL_ROLES)
    return told


def _add(told: Told, options: Mapping[str, Any], roles: Mapping[str, Role]) -> None:
    """Put the options of a class where they belong; those without a role say what is learnt."""
    for key, value in options.items():
        role = roles.get(".".join(key.split(".")[1:2]), Role.TASK)
        told[role.value][key] = value


def model_options(model: "L.LightningModule", optimizers: Mapping[str, Any]) -> dict[str, Any]:
    """What a model was made with, as far as it can be told.

    Args:
        model: The module: its class tells, or it has saved its hyper-parameters.
        optimizers: What it trains with, see `bhfl.engine.client.optim.check_optimizers`.
    """
    made_with = getattr(model, "_made_with", model.hparams)
    return spelled(type(model), {**made_with, **optimizers})


def note_backends(told: Told, groups: Iterable[Devices]) -> None:
    """Take down which layers have another backend than ``fake``, by group, for the run folder and
    for whoever goes on; nothing where all are ``fake``, or nothing is told.
    """
    chosen = {devices.key: devices.backends for devices in groups}
    if told and any(chosen.values()):
        told[Role.NUMERICS.value][BACKENDS] = chosen


def noted_backends(told: Mapping[str, Any], group: str) -> Any:
    """The backends that were taken down for a group, by its `Devices.key`, as they stand there."""
    found = told_of(told, [Role.NUMERICS]).get(BACKENDS, {})
    return found.get(group, {}) if isinstance(found, Mapping) else found
