"""What the devices of a group of clients are: their bits and backends, and how they train."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from bhfl.checks import suggestion
from bhfl.downlink import DownBits, Downlink
from bhfl.engine.optimizers import Replaced
from bhfl.quant import BitSpec, QuantLayer, backend_choices, quant_layers, set_backend_, set_spec_
from bhfl.quant.backends import BACKENDS, get_backend
from bhfl.settings import LocalTraining


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of the fleet as its user writes it; see `bhfl.engine.fleet.Fleet`."""

    bits: BitSpec
    count: int | None = None
    fraction: float | None = None
    name: str = ""
    """What metrics call its clients; the label of the bits where it is empty."""
    backend: str = "fake"
    """How the layers compute; see `bhfl.quant.set_backend_`."""
    layers: Mapping[str, BitSpec] = field(default_factory=dict)
    """The bits of some layers, by patterns of their names; the first that matches counts."""
    frozen: Literal["keep", "quantize"] = "keep"
    """Whether layers whose weight is frozen compute in float32, or at the bits like all others."""
    local_epochs: int | None = None
    """Its epochs in a round; the trainer's where neither they nor steps are given."""
    local_steps: int | None = None
    """Its steps in a round."""
    optimizer: Mapping[str, Any] | None = None
    """What takes the steps, as ``class_path`` and ``init_args``; the module's own by default."""
    profile: str | None = None
    """One of the profiles of ``trainer.network``, in place of a drawn one."""
    schedule: Mapping[int, BitSpec] = field(default_factory=dict)
    """The bits that take the place of `bits`, each by the rounds that are done by then."""

    @property
    def label(self) -> str:
        """What metrics call its clients."""
        return self.name or self.bits.label

    def stages(self) -> "dict[int, Group]":
        """The group by what it computes with: from the start, and from each change of its bits on,
        by the rounds that are done by then.
        """
        found = {0: replace(self, schedule={})}
        for round, bits in self.schedule.items():
            # float32 is what every backend is left out for
            backend = "fake" if bits.is_float else self.backend
            found[round] = replace(self, bits=bits, backend=backend, schedule={})
        return found


class Devices:
    """The devices of one group, with the same bits; all of its clients share this object.

    Args:
        group: What the user has written; of one whose bits change, a stage of it.
        downlink: How they are sent the model, see `bhfl.engine.downlink`.
        since: The rounds that are done when the group comes to these bits.

    Attributes:
        key: What the run folder calls them.
        layers: The bits of layers that have their own, by module name; `match_` finds them.
        backends: What computes a layer, by module name, where it is not ``fake``.
    """

    def __init__(
        self, group: Group, downlink: DownBits | Downlink = "float32", since: int = 0
    ) -> None:
        self.group = group
        self.key = f"{group.label}@{since}" if since else group.label
        self.downlink = Downlink.of(downlink)
        self.spec = group.bits
        self.layers: dict[str, BitSpec] = {}
        self.backends: dict[str, str] = {}
        self.bits = _bits(group)

    @classmethod
    def of(cls, spec: BitSpec) -> "Devices":
        """Devices of which nothing is known but their bits."""
        return cls(Group(bits=spec))

    # ---- layers ----------------------------------------------------------------------------------

    def match_(self, module: nn.Module, frozen: Collection[str]) -> None:
        """Find the layers that have bits of their own: those that a pattern matches, and float32
        where the weight is frozen, unless the group quantises those too.

        Args:
            module: Its layers that can take low bits are quantised ones, whatever their bits.
            frozen: Names of its frozen parameters.

        Raises:
            ValueError: A pattern matches none of them, or none is frozen where the group says what
                is to be done with them.
        """
        names = [name for name, _ in quant_layers(module)]
        fixed = _with_frozen_weights(module, frozen)
        if self.group.frozen == "quantize" and not fixed:
            raise ValueError(
                f"clients: frozen: quantize of group {self.group.label!r} needs layers with frozen "
                "weights, and the model has none: their weights must not require gradients"
            )
        if self.group.frozen == "keep" and not self.spec.is_float:
            self.layers |= dict.fromkeys(fixed, BitSpec())
        # from the last on, so that the first that matches has the last word
        for pattern, spec in reversed(list(self.group.layers.items())):
            matched = [name for name in names if fnmatchcase(name, pattern)]
            if not matched:
                raise ValueError(
                    f"clients: layers of group {self.group.label!r} must match a layer that can be "
                    f"quantised, got {pattern!r}{suggestion(pattern, names)}"
                )
            self.layers |= dict.fromkeys(matched, spec)

    def spec_of(self, weight: str) -> BitSpec:
        """The bits of the layer that a weight belongs to.

        Args:
            weight: The name of the weight in the model's state.
        """
        return self.layers.get(weight.rpartition(".")[0], self.spec)

    @property
    def specs(self) -> list[BitSpec]:
        """All bits that any layer may have."""
        return list(dict.fromkeys([self.spec, *self.group.layers.values(), *self.layers.values()]))

    @property
    def has_low_weights(self) -> bool:
        """Whether any weights have fewer bits than float32."""
        return any(spec.weights < 32 for spec in self.specs)

    @property
    def stores_low_bits(self) -> bool:
        """Whether weights stay on a grid between the steps of training."""
        return any(spec.storage < 32 for spec in self.specs)

    @property
    def fixes_ranges(self) -> bool:
        """Whether a round begins with ranges that stay as they are, or are learned from there."""
        return self.stores_low_bits or any(spec.range_rule == "lsq" for spec in self.specs)

    @property
    def most_activation_bits(self) -> int:
        """The bits of the widest activations."""
        return max(spec.activations for spec in self.specs)

    def set_(self, module: nn.Module, layers: Mapping[str, QuantLayer] | None = None) -> None:
        """Let a module whose layers are quantised ones compute as these devices do.

        Args:
            module: The module.
            layers: These layers by name, where they are known: to find them takes a walk.
        """
        layers = dict(quant_layers(module)) if layers is None else layers
        specs = {name: self.layers.get(name, self.spec) for name in layers}
        # to set specs anew walks the whole module several times, for each client
        if not layers or not all(layer.is_as_set(specs[name]) for name, layer in layers.items()):
            set_spec_(module, self.spec)
            for name in self.layers:
                layers[name].set_spec_(self.layers[name])
        for name, layer in layers.items():
            layer.backend = self.backends.get(name, "fake")

    def choose_(self, module: nn.Module) -> None:
        """Find out what computes each layer: the group's backend, or what that leaves it to.

        Args:
            module: It computes as these devices do, whatever by.

        Raises:
            ImportError: The backend needs a package that cannot be imported.
            ValueError: The backend serves no layer.
        """
        name = self.group.backend
        if name == "fake":
            return
        backend = get_backend(name)
        backend.require()
        refusals = [
            backend.refusal(layer) for _, layer in quant_layers(module) if not layer.spec.is_float
        ]
        if all(refusals):
            why = refusals[0] if refusals else "none computes with low bits"
            raise ValueError(
                f"clients: backend {name!r} of group {self.group.label!r} serves no layer of "
                f"{type(module).__name__}: {why}"
            )
        chosen = backend_choices(set_backend_(module, name))
        self.backends = {layer: by for layer, by in chosen.items() if by != "fake"}

    def caution(self, device: str) -> str:
        """What has to be known of their backend on a type of device; mostly nothing."""
        text = get_backend(self.group.backend).caution(device)
        return f"{self.group.label} clients: {text}" if text else ""

    def use_(self, module: nn.Module, backends: Any) -> None:
        """Take backends as they were chosen before.

        Args:
            module: Whose layers they are.
            backends: A backend by the name of each layer that has another one than ``fake``.

        Raises:
            ValueError: There is no such layer, or no such backend.
        """
        layers = dict(quant_layers(module))
        if not isinstance(backends, Mapping):
            raise ValueError(f"backends of a run must be a mapping, got {backends!r}")
        for layer, name in backends.items():
            if layer not in layers or name not in BACKENDS:
                raise ValueError(
                    f"the run has backend {name!r} for layer {layer!r}, which is not known here"
                )
        self.backends = dict(backends)

    # ---- training --------------------------------------------------------------------------------

    def training(self, general: LocalTraining) -> LocalTraining:
        """How long and in what manner they train: as the group says, or else as the trainer does.

        Args:
            general: The trainer's settings.
        """
        if self.group.local_steps is not None:
            return replace(general, local_steps=self.group.local_steps)
        if self.group.local_epochs is not None:
            return replace(general, local_epochs=self.group.local_epochs, local_steps=None)
        return general

    def optimizer(self, own: Optimizer) -> Optimizer:
        """What makes their steps: the group's optimiser, or else the module's own.

        Args:
            own: The module's, without a schedule.
        """
        if self.group.optimizer is None:
            return own
        return Replaced(own, self.group.optimizer).optimizer


def finest(groups: Iterable[Devices]) -> str:
    """The bits of the group that computes with the most, float32 above all. The float32 model has
    that group's running statistics, as it is trained by nobody where no group computes in float32.
    """
    return max(groups, key=lambda one: one.spec.precision).bits


def _bits(group: Group) -> str:
    """What tells the bits of a group from others: neither its name nor that of its bits."""
    label = replace(group.bits, name="").label
    own = [f"{pattern}={replace(spec, name='').label}" for pattern, spec in group.layers.items()]
    if group.frozen != "keep":
        own.append(f"frozen={group.frozen}")
    return f"{label}[{','.join(own)}]" if own else label


def _with_frozen_weights(module: nn.Module, frozen: Collection[str]) -> list[str]:
    """The layers that can be quantised and whose weight is frozen, with all that it is computed
    from.
    """
    # by identity: a tied weight has other names in other layers
    held = {id(module.get_parameter(name)) for name in frozen}
    found = []
    for name, layer in quant_layers(module) if held else ():
        key = layer.weight_key
        parts = [
            id(parameter)
            for part, parameter in layer.named_parameters()
            if part == key or part.startswith(f"parametrizations.{key}.")
        ]
        if parts and held.issuperset(parts):
            found.append(name)
    return found


FLOAT = Devices.of(BitSpec())
"""What the server's own model computes as."""
