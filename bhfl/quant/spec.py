"""BitSpec: how many bits each tensor of a layer has, and how the range of its weights is found."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from bhfl.quant.quantizers import known_rules

RangeRule = str
"""absmax, mse, lsq, pow2, wage, or a name given to :func:`bhfl.quant.register_quantizer`; ``auto``
in a BitSpec.
"""
Granularity = Literal["tensor", "channel"]
Sends = Literal["computed", "stored"]

FLOAT_BITS = 32
LONGEST_NAME = 100
"""The most bytes of a name in UTF-8: names of files are made of it."""
_WIDTHS = ("weights", "activations", "errors", "gradients", "storage")
"""The fields of a BitSpec that are widths."""


@dataclass(frozen=True, kw_only=True)
class BitSpec:
    """Bits of everything that a layer computes with; 32 means float32, untouched.

    Attributes:
        weights: Bits of the weights in the forward pass, 2..16 or 32.
        activations: Bits of the input of each layer, 2..16 or 32.
        errors: Bits of the back-propagated error at the output of each layer, 2..16 or 32.
        gradients: Bits of the gradient of each weight, 2..16 or 32.
        storage: Bits of the weights kept between optimiser steps, at least ``weights``. 32 keeps
            float32 shadow weights; with fewer, strict storage, the weights are values of a grid
            after each step (:func:`bhfl.quant.store_`).
        range_rule: How the scale of the weights is found; see :func:`bhfl.quant.weight_scale`.
            ``auto`` becomes ``mse`` for weights of 2 to 5 bits with shadow weights, most of which
            ``absmax`` would round to zero, and ``absmax`` for all others: in strict storage, a rule
            that clips would do so again at each step.
        granularity: One scale for the tensor, or one for each output channel (dimension 0).
        sends: Which weights a client sends: the codes that it has ``computed`` with, or its
            ``stored`` ones at the bits of ``storage``.
        send_bits: Bits to which float32 shadow weights are rounded, to nearest, when they are sent,
            ``weights``..16; ``sends`` is ``stored`` where it is given.
        name: What metrics call this spec; not part of its identity.

    Raises:
        ValueError: A width is not 2..16 or 32, a rule is unknown, or the parts contradict each
            other.
    """

    weights: int = FLOAT_BITS
    activations: int = FLOAT_BITS
    errors: int = FLOAT_BITS
    gradients: int = FLOAT_BITS
    storage: int = FLOAT_BITS
    range_rule: RangeRule = "auto"
    granularity: Granularity = "tensor"
    sends: Sends = "computed"
    send_bits: int | None = None
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for key in _WIDTHS:
            _check_bits(f"BitSpec.{key}", getattr(self, key))
        check_choice("BitSpec.range_rule", self.range_rule, ("auto", *known_rules()))
        # equal specs are written in one way
        if self.range_rule == "auto":
            clips = self.weights < 6 and self.storage == FLOAT_BITS
            object.__setattr__(self, "range_rule", "mse" if clips else "absmax")
        check_choice("BitSpec.granularity", self.granularity, get_args(Granularity))
        check_choice("BitSpec.sends", self.sends, get_args(Sends))
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.-]*", self.name):
            raise ValueError(
                f"BitSpec.name must be letters, digits, '_', '-' or '.', got {self.name!r}"
            )
        if len(self.name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"BitSpec.name must have at most {LONGEST_NAME} bytes, got {self.name[:20]!r} ..."
            )
        self._check_combination()

    def _check_combination(self) -> None:
        rules = (self.range_rule, self.granularity)
        if self.weights == FLOAT_BITS and rules != ("absmax", "tensor"):
            raise ValueError(
                "BitSpec.range_rule and granularity must be left out with weights=32 (nothing to "
                f"scale), got {rules}"
            )
        if self.storage < self.weights:
            raise ValueError(
                f"BitSpec.storage must be at least weights={self.weights}, got {self.storage}"
            )
        if self.storage < FLOAT_BITS and self.range_rule == "lsq":
            raise ValueError(
                "BitSpec.storage must be 32 with range_rule='lsq' (its grid moves in the round), "
                f"got {self.storage}"
            )
        if self.granularity == "channel" and self.range_rule == "wage":
            raise ValueError(
                "BitSpec.granularity must be 'tensor' with range_rule='wage', got 'channel'"
            )
        self._check_sending()

    def _check_sending(self) -> None:
        shadows = self.storage == FLOAT_BITS
        if self.send_bits is None:
            if self.sends == "stored" and shadows:
                raise ValueError(
                    "BitSpec.sends must be 'computed' with storage=32 and without send_bits ("
                    "stored weights are float32 then: send_bits says to how many bits they are "
                    "rounded), got 'stored'"
                )
            return
        _check_bits("BitSpec.send_bits", self.send_bits)
        if not shadows or self.weights == FLOAT_BITS:
            raise ValueError(
                "BitSpec.send_bits must be left out unless weights below 32 bits have shadow "
                f"weights of 32, got {self.send_bits} with weights={self.weights} and "
                f"storage={self.storage}"
            )
        if not self.weights <= self.send_bits < FLOAT_BITS:
            raise ValueError(
                f"BitSpec.send_bits must be weights={self.weights} to 16, got {self.send_bits}"
            )
        object.__setattr__(self, "sends", "stored")

    @property
    def is_float(self) -> bool:
        """Whether nothing at all is quantised."""
        return all(getattr(self, key) == FLOAT_BITS for key in _WIDTHS)

    @property
    def sent_bits(self) -> int:
        """Bits of the weights that a client sends; 32 for float32 values."""
        if self.sends == "computed":
            return self.weights
        return self.storage if self.send_bits is None else self.send_bits

    @property
    def precision(self) -> tuple[int, int, int]:
        """What sorts specs from the fewest bits to the most: the weights' first, then the rest."""
        return self.weights, self.activations, min(self.errors, self.gradients, self.storage)

    @property
    def label(self) -> str:
        """A tag for metrics: the name, or the preset that this spec equals, or the widths; distinct
        specs without a name have distinct tags.

        >>> BitSpec(weights=4, activations=8, granularity="channel").label
        'w4a8-channel'
        """
        if self.name:
            return self.name
        if self.sends == "stored" and self != PRESETS["wage2888-stored"]:
            return f"{replace(self, sends='computed', send_bits=None).label}-s{self.sent_bits}"
        for preset in (*PRESETS.values(), *map(_integer, range(2, 17))):
            if self == preset:
                return preset.name
        label = f"w{self.weights}a{self.activations}"
        for key in ("errors", "gradients", "storage"):
            if (bits := getattr(self, key)) < FLOAT_BITS:
                label += f"{key[0]}{bits}"
        if self != replace(self, range_rule="auto"):
            label += f"-{self.range_rule}"
        return label if self.granularity == "tensor" else f"{label}-channel"

    def to_config(self) -> str | dict[str, Any]:
        """The shortest value that :meth:`parse` reads back to this spec: its label, or the fields
        that differ from their defaults.
        """
        try:
            # not every spec has a label that reads back to it
            if BitSpec.parse(self.label) == self:
                return self.label
        except ValueError:
            pass
        default = vars(BitSpec())
        # a reader need not know what `auto` is at few bits
        return {
            name: value
            for name, value in vars(self).items()
            if value != default[name] or (name == "range_rule" and self.weights < 6)
        }

    def __repr__(self) -> str:
        """The call that makes this spec, in few words.

        >>> BitSpec(weights=8, activations=8)
        BitSpec.parse('int8')
        """
        return f"BitSpec.parse({self.to_config()!r})"

    @classmethod
    def parse(cls, value: "BitSpec | int | str | Mapping[str, Any]") -> "BitSpec":
        """Read a spec as a configuration file may write it.

        Args:
            value: A spec; a width (``8``, ``"8"``); the name of a preset (``"ternary"``) or
                ``"int<bits>"``; or a mapping of the fields of this class.

        Returns:
            The spec; `value` itself if it is one.

        Raises:
            ValueError: The value does not describe a spec; the message names the nearest that does.
        """
        if isinstance(value, BitSpec):
            return value
        if isinstance(value, Mapping):
            known = [f.name for f in fields(cls)]
            for key in value:
                if key not in known:
                    raise ValueError(
                        f"BitSpec has no key {key!r}{_hint(key, known)}; keys: {', '.join(known)}"
                    )
            # the constructor cannot tell what was said from what `replace` repeats
            if value.get("sends") == "computed" and value.get("send_bits"):
                raise ValueError(
                    "BitSpec.sends must be 'stored', or left out, with send_bits (which says to "
                    f"how many bits stored weights are rounded), got 'computed' with "
                    f"{value['send_bits']!r}"
                )
            return cls(**value)
        return _from_name(value) if isinstance(value, str) else _from_bits(value)


def _check_bits(key: str, bits: object) -> None:
    """Refuse what is not a width; a bool or 8.0 is a slip of the configuration, not a width."""
    if type(bits) is not int or not (2 <= bits <= 16 or bits == FLOAT_BITS):
        raise ValueError(f"{key} must be 2..16 or 32, got {bits!r}")


def check_choice(key: str, value: object, known: Collection[str]) -> None:
    """ValueError, with the nearest of them, for a value that is not one of some words."""
    if value not in known:
        raise ValueError(
            f"{key} must be one of {', '.join(known)}, got {value!r}{_hint(value, known)}"
        )


def _hint(value: object, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(str(value).lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def _integer(bits: int) -> BitSpec:
    """The spec of training at one width."""
    return BitSpec(
        weights=bits,
        activations=bits if bits >= 6 else 8,
        name="ternary" if bits == 2 else f"int{bits}",
    )


# Wu et al. 2018, "Training and inference with integers in deep neural networks"
_WAGE = BitSpec(
    weights=2, activations=8, errors=8, gradients=8, storage=8, range_rule="wage", name="wage2888"
)

PRESETS: dict[str, BitSpec] = {
    spec.name: spec
    for spec in (
        BitSpec(name="float32"),
        *map(_integer, (16, 12, 8, 6, 4, 3, 2)),
        _WAGE,
        replace(_WAGE, sends="stored", name="wage2888-stored"),
        BitSpec(weights=8, activations=8, errors=8, gradients=8, storage=8, name="strict8"),
    )
}
"""The bit specifications that have a name."""


def _from_bits(bits: object) -> BitSpec:
    _check_bits("bits", bits)
    return PRESETS["float32"] if bits == FLOAT_BITS else _integer(bits)  # type: ignore[arg-type]


def _from_name(name: str) -> BitSpec:
    if name in PRESETS:
        return PRESETS[name]
    if match := re.fullmatch(r"[0-9]+|int(?:[2-9]|1[0-6])", name):
        return _from_bits(int(match[0].removeprefix("int")))
    raise ValueError(
        f"unknown preset {name!r}{_hint(name, PRESETS)}; presets: {', '.join(PRESETS)}"
    )
