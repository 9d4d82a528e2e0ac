"""What clients are sent of the model's weights, as an option says it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bhfl.checks import bits_or, choice, count

DownBits = Literal["float32", "client"] | int
"""Bits of the weights that clients are sent, see `bhfl.engine.downlink`."""
_BITS = bits_or("float32", "client")


@dataclass(frozen=True)
class Downlink:
    """What clients are sent of the model's weights, see `bhfl.engine.downlink`.

    Args:
        bits: Bits of a weight, with a scale for each output channel: 2..16; ``client``: what the
            client stores in, or computes with, at least 8; or ``float32`` (32).
        send: The ``weights``; or their ``differences`` to what the client was sent last, with what
            rounding left out of that.
        keep: How many versions old the weights may be that differences are to. A client that was
            sent its last ones longer ago is sent all of them, as float32.
    """

    bits: DownBits = "client"
    send: Literal["weights", "differences"] = "weights"
    keep: int = 5

    @classmethod
    def of(cls, value: "DownBits | Downlink | Mapping[str, Any]") -> "Downlink":
        """The rule that an option says.

        Args:
            value: The rule, its options by name, or bits alone, which mean weights of so many bits.

        Returns:
            The rule.
        """
        if isinstance(value, Mapping) and value.keys() <= cls.__annotations__.keys():
            return cls(**value)
        return value if isinstance(value, Downlink) else cls(value)  # type: ignore[arg-type]

    def short(self) -> "DownBits | Downlink":
        """The option in as few words as say it."""
        return self.bits if self.send == "weights" else self

    def __str__(self) -> str:
        """The option as a configuration says it."""
        if self.send == "weights":
            return str(self.bits)
        return f"{{bits: {self.bits}, send: differences, keep: {self.keep}}}"


def downlink(value: Any) -> str:
    """Problems of what clients are sent."""
    if not isinstance(value, Downlink):
        return _BITS(value)
    checks = {"bits": _BITS, "send": choice("weights", "differences"), "keep": count(1)}
    for key, check in checks.items():
        if problem := check(getattr(value, key)):
            return f"{key} {problem}"
    return ""
