"""What clients are sent at fewer bits than float32, where ``trainer.downlink`` says so.

Weights (floating tensors of two or more dimensions) travel as codes, rounded to nearest with one
scale for each output channel; biases, norms and all that is not the model's stay as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bhfl.engine.devices import Devices
from bhfl.engine.roster import one_of_each
from bhfl.engine.types import Client
from bhfl.quant import BitSpec, QuantizedTensor, quantize
from bhfl.quant.spec import FLOAT_BITS
from bhfl.settings import Downlink

_FEWEST = 8
"""Bits that a client is sent at least where it is sent its own: with fewer, what it has learned of
a weight within a round would be lost on the way back to it.
"""


def bits_down(rule: Downlink, spec: BitSpec) -> int:
    """Bits of a weight on its way to a client.

    Args:
        rule: ``float32``; a number of bits; or ``client``: the bits of ``storage`` where these are
            below 32, else those of ``weights``, at least 8.
        spec: The bits of the layer on the client.

    >>> [bits_down("client", BitSpec.parse(bits)) for bits in ("ternary", 8, 16, 32, "wage2888")]
    [8, 8, 16, 32, 8]
    """
    if rule == "float32":
        return FLOAT_BITS
    if rule != "client":
        return rule
    if spec.storage < FLOAT_BITS:
        return spec.storage
    return max(_FEWEST, spec.weights)


def on_its_way(name: str, weight: Tensor, devices: Devices) -> Tensor | QuantizedTensor:
    """A tensor of the model as a client is sent it.

    Args:
        name: What the tensor is called in the model's state.
        weight: Any tensor of the model.
        devices: The client's.
    """
    if weight.dim() < 2 or not weight.is_floating_point():
        return weight
    bits = bits_down(devices.downlink, devices.spec_of(name))
    return weight if bits == FLOAT_BITS else quantize(weight, bits, granularity="channel")


def lowered(
    tensors: Mapping[str, Any], devices: Devices, model: Mapping[str, Any]
) -> dict[str, Any]:
    """A message with the weights of the model at the bits that a client is sent.

    Args:
        tensors: The message: tensors by name.
        devices: The client's.
        model: It has the names of the model's tensors.
    """
    found = dict(tensors)
    for name in tensors.keys() & model.keys():
        if isinstance(tensors[name], Tensor):
            found[name] = on_its_way(name, tensors[name], devices)
    return found


def check_whole(method: str, clients: Sequence[Client]) -> None:
    """Refuse a coarse downlink, for a method whose clients and server both reckon from the weights
    that a round begins with: the two would be other ones.

    Args:
        method: Its name.
        clients: The fleet.

    Raises:
        ValueError: Some clients are sent weights at fewer bits than float32.
    """
    for client in one_of_each(clients):
        rule = client.devices.downlink
        if any(bits_down(rule, spec) < FLOAT_BITS for spec in client.devices.specs):
            raise ValueError(
                f"{method} reckons from the weights that clients receive: trainer.downlink must be "
                f"float32, got {rule}"
            )


def as_received(name: str, weight: Tensor, devices: Devices) -> Tensor:
    """A tensor of the model as a client has it once it has received it, in float32."""
    sent = on_its_way(name, weight, devices)
    return sent.dequantize() if isinstance(sent, QuantizedTensor) else sent
