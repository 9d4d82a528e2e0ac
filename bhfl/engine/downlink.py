"""What clients are sent at fewer bits than float32, where ``trainer.downlink`` says so.

Weights (floating tensors of two or more dimensions) travel as codes, rounded to nearest with one
scale for each output channel; biases, norms and all that is not the model's stay as they are.

Or their differences do, to what the client was sent last as it has it: to r_v, what it made of
version v of the model. It is sent Q(w_t - r_v) and has r_t = r_v + Q(w_t - r_v). As w_t - r_v is
(w_t - w_v) + (w_v - r_v), what rounding left out of version v is in the next difference: this is
error feedback (Seide et al., Interspeech 2014, for gradients), with no other memory than r_v. A
client that has no r_v, or one that is too old, is sent w_t as float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bhfl.downlink import DownBits
from bhfl.downlink import Downlink as Downlink
from bhfl.engine.devices import Devices
from bhfl.engine.roster import one_of_each
from bhfl.engine.types import Client, Params, ServerState
from bhfl.quant import BitSpec, QuantizedTensor, quantize
from bhfl.quant.signs import signs
from bhfl.quant.sparse import left_out
from bhfl.quant.spec import FLOAT_BITS

_BY_RULE: Mapping[str, int] = {}
_FEWEST = 8
"""Bits that a client is sent at least where it is sent its own: with fewer, what it has learned of
a weight within a round would be lost on the way back to it.
"""


def bits_down(rule: DownBits, spec: BitSpec) -> int:
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
    return spec.storage if spec.storage < FLOAT_BITS else max(_FEWEST, spec.weights)


def on_its_way(name: str, weight: Tensor, devices: Devices) -> Tensor | QuantizedTensor:
    """A tensor of the model as a client is sent it.

    Args:
        name: What the tensor is called in the model's state.
        weight: Any tensor of the model.
        devices: The client's.
    """
    bits = _bits(name, weight, devices)
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
    return {
        name: on_its_way(name, tensor, devices) if name in model else tensor
        for name, tensor in tensors.items()
    }


def _bits(name: str, tensor: Any, devices: Devices) -> int:
    """Bits at which a tensor of the model travels; 32 for what is no weight, or codes already."""
    if not isinstance(tensor, Tensor) or tensor.dim() < 2 or not tensor.is_floating_point():
        return FLOAT_BITS
    return bits_down(devices.downlink.bits, devices.spec_of(name))


# ---- differences ---------------------------------------------------------------------------------


def has_reference(client: Client, server: ServerState) -> bool:
    """Whether a client is sent differences in this round, as far as the rounds tell: it has been
    there, and not too long ago.
    """
    rule = client.devices.downlink
    version = server.accepted.get(client.id, 0)
    return rule.send == "differences" and version > 0 and server.round - version < rule.keep


def as_sent(tensors: Mapping[str, Any], client: Client, server: ServerState) -> dict[str, Any]:
    """A message of the size that a client is sent in this round: its own values stand for the
    differences.

    Args:
        tensors: The message: tensors by name.
        client: Who is sent it.
        server: The state of the round.
    """
    whole = client.devices.downlink.send == "differences" and not has_reference(client, server)
    return dict(tensors) if whole else lowered(tensors, client.devices, server.params)


def an_example(cohort: Sequence[Client], clients: Sequence[Client]) -> Client:
    """A client whose message stands for those of all: the first one, or with differences the first
    that is there, as those that are not may have nothing to take differences to.

    Args:
        cohort: The clients of a round.
        clients: The fleet.
    """
    first = clients[0]
    return cohort[0] if cohort and first.devices.downlink.send == "differences" else first


@dataclass(frozen=True)
class Sent:
    """A message, and what of it a client keeps.

    Attributes:
        message: Tensors by name: weights as codes, or codes of their differences, or float32.
        weights: The weights that later differences are to, as the client has them once it has
            received it.
        whole: Whether such weights are sent themselves, as float32.
    """

    message: dict[str, Any]
    weights: Params
    whole: bool


def kept_of(
    tensors: Mapping[str, Any], devices: Devices | None, model: Mapping[str, Any]
) -> Params:
    """The weights of a message that differences are sent of, where they are sent to the client.

    Args:
        tensors: The message: tensors by name.
        devices: The client's; None where all is sent as it is.
        model: It has the names of the model's tensors.
    """
    if devices is None or devices.downlink.send == "weights":
        return {}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in model and _bits(name, tensor, devices) < FLOAT_BITS
    }


def moves_to(weights: Params, before: Params) -> Params:
    """The differences of weights to those that a client was sent last; nothing where these are not
    the same weights, so that no differences are sent.
    """
    if weights.keys() != before.keys():
        return {}
    return {name: tensor - before[name] for name, tensor in weights.items()}


def coded_move(move: Tensor, bits: int) -> QuantizedTensor:
    """A difference as it is sent: codes, signs, or nothing, with a scale for each output channel.

    Args:
        move: [C, ...], float32.
        bits: 2..16; 1 for signs, 0 for nothing.
    """
    if not bits:
        return left_out(move)
    return signs(move, "channel") if bits == 1 else quantize(move, bits, granularity="channel")


def sent_as(
    tensors: Mapping[str, Any],
    devices: Devices | None,
    model: Mapping[str, Any],
    before: Params,
    bits: Mapping[str, int] = _BY_RULE,
) -> Sent:
    """A message as a client is sent it.

    Args:
        tensors: The message: tensors by name.
        devices: The client's; None where all is sent as it is.
        model: It has the names of the model's tensors.
        before: The weights that it was sent last, as it has them. Unless they are the ones that
            this message has at fewer bits than float32, no differences are sent.
        bits: Bits of the differences that do not go by the client's rule, by name.
    """
    message = dict(tensors)
    if devices is not None and devices.downlink.send == "weights":
        return Sent(lowered(tensors, devices, model), {}, whole=False)
    weights = kept_of(tensors, devices, model)
    moves = moves_to(weights, before)
    if devices is None or not moves:
        return Sent(message, weights, whole=bool(weights))
    for name, move in moves.items():
        width = bits.get(name, _bits(name, weights[name], devices))
        message[name] = codes = coded_move(move, width)
        weights[name] = before[name] + codes.dequantize()
    return Sent(message, weights, whole=False)


# ---- what methods ask ----------------------------------------------------------------------------


def is_coarse(devices: Devices) -> bool:
    """Whether any weights travel to these devices at fewer bits than float32."""
    return any(bits_down(devices.downlink.bits, spec) < FLOAT_BITS for spec in devices.specs)


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
        if is_coarse(client.devices):
            raise ValueError(
                f"{method} reckons from the weights that clients receive: trainer.downlink must be "
                f"float32, got {client.devices.downlink}"
            )


def as_received(name: str, weight: Tensor, devices: Devices) -> Tensor:
    """A tensor of the model as a client has it once it has received it, in float32."""
    sent = on_its_way(name, weight, devices)
    return sent.dequantize() if isinstance(sent, QuantizedTensor) else sent
