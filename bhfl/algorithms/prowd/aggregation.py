"""Selective weight aggregation: high-bit clients whole, low-bit clients through their masks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor

from bhfl.algorithms.prowd.selection import certified_select
from bhfl.comm import decode, encode
from bhfl.engine.aggregate import ExactSum, Flattener, WeightedMean, all_reduce_sum
from bhfl.engine.records import gather
from bhfl.engine.types import Client, Params, Tensors
from bhfl.quant import BitSpec, QuantizedTensor, quantize

Fill = Literal["renorm", "delta", "high", "literal"]
Scope = Literal["layer", "model"]
_MEMORY = 1 << 26
"""Bytes of waiting payloads that stay in memory; more go to a temporary file."""


@dataclass(frozen=True)
class MaskOptions:
    """How entries of low-bit clients are chosen; `enabled` False keeps them all."""

    enabled: bool = True
    tau: float | int = 0.5
    scope: Scope = "layer"
    per: Literal["client", "group"] = "client"
    fill: Fill = "renorm"


@dataclass
class Selected:
    """What a round's updates came to."""

    params: Params
    """The masked aggregate."""
    plain: Params | None
    """The unmasked mean of all reconstructed updates, where asked for."""
    high: Params | None
    """Mean of the highest group's weights; None without such a client in the round."""
    pool: list[Params]
    """Weights of a few clients of the highest group, by id."""
    dequantizer: Any
    """Its state after this round."""
    num_clients: int
    """Clients whose updates came in, over all processes."""
    metrics: dict[str, float] = field(default_factory=dict)


class SelectiveMean:
    """Holds high-bit updates as sums and low-bit ones as the payloads they were, until the high-bit mean is known.

    Args:
        start: The weights that were broadcast, ``w_t``.
        is_high: Whether a client is of the highest group.
        prepare: Called once by `reduce` on every process; gives what raises a low-bit update to float32, and the
            dequantizer's state and metrics to hand on.
        past_move: The high-bit move of an earlier round, for a round without a high-bit client; or None.
        mask: See `MaskOptions`.
        pool_size: High-bit clients whose weights are handed back.
        keep_plain: Also average without masks.
        low_start: The weights that low-bit clients were sent; `start`, but for dual global models.
        local_start: Take of a low-bit client its move alone: ``w_t + raised(q_i) - raised(Q(w_t))``. With dual models
            every client's move counts from the model that it was sent.
    """

    def __init__(
        self,
        start: Params,
        is_high: Callable[[Client], bool],
        prepare: Callable[[], tuple[Callable[[Tensors], Params], Any, dict[str, float]]],
        past_move: Params | None,
        mask: MaskOptions,
        pool_size: int,
        keep_plain: bool,
        low_start: Params,
        local_start: bool,
    ) -> None:
        self.start, self.is_high, self.prepare, self.past_move = start, is_high, prepare, past_move
        self.mask, self.pool_size, self.keep_plain = mask, pool_size, keep_plain
        self.low_start, self.local_start = low_start, local_start
        self.high, self.num_high = WeightedMean(start), 0
        self.waiting: list[tuple[Client, int]] = []
        self.file = tempfile.SpooledTemporaryFile(max_size=_MEMORY)  # noqa: SIM115  # closed with the aggregator
        self.pool: list[tuple[int, Params]] = []

    def add(self, update: Any, client: Client) -> None:
        """A high-bit client's weights, or a low-bit client's tensors as decoded."""
        if not self.is_high(client):
            payload = encode(update)
            self.file.write(payload)
            self.waiting.append((client, len(payload)))
            return
        self.num_high += 1
        self.high.add(update, client)
        self.pool = sorted([*self.pool, (client.id, update)], key=lambda entry: entry[0])[: self.pool_size]

    def reduce(self, fabric: Fabric) -> Selected:
        """Two collectives: the high-bit mean, then the sums of what passed the masks."""
        sums = _Sums(self.start, self.keep_plain)
        sums.add_high(self.high)
        high = self.high.reduce(fabric)
        move = self.past_move if high is None else {n: high[n] - self.start[n] for n in high}
        self.raised, state, tuned = self.prepare()
        found = []
        if self.mask.enabled and move is not None and self.mask.per == "group":
            found = self._by_group(fabric, sums, move)
        else:
            for client, params, plain_params in self._low():
                chosen, statistics = self._choose(params, move)
                sums.add(params, plain_params, client.weight, chosen)
                found += [(client.id, *row) for row in statistics]
        self.file.close()
        sums.reduce(fabric)
        pool = sorted(gather(fabric, self.pool), key=lambda entry: entry[0])[: self.pool_size]
        metrics = _mean_by_tag(sorted(gather(fabric, found)))
        plain = sums.plain_mean(self.low_start if self.local_start else self.start) if self.keep_plain else None
        params = sums.filled(self.mask.fill, high)
        num_clients = sum(gather(fabric, [self.num_high + len(self.waiting)]))
        return Selected(params, plain, high, [entry for _, entry in pool], state, num_clients, {**metrics, **tuned})

    def _low(self) -> Iterator[tuple[Client, Params, Params]]:
        """Each waiting client, with its weights for the masked and for the plain average."""
        self.file.seek(0)
        origins: dict[str, Params] = {}
        for client, size in self.waiting:
            update = decode(self.file.read(size))
            weights = self.raised(update)
            if not self.local_start:
                yield client, weights, weights
                continue
            if client.group not in origins:
                whole = self.low_start if self.keep_plain else {}  # of one model, what is not quantised is its own move
                origins[client.group] = {**whole, **self.raised(_as_client(self.low_start, update, client.spec))}
            move = {name: weights[name] - origin for name, origin in origins[client.group].items()}
            yield client, _added(self.start, move, weights), _added(self.low_start, move, weights)

    def _choose(self, params: Params, move: Params | None) -> tuple[dict[str, Tensor], list[tuple[str, float]]]:
        """Masks by name of weight tensors, and what they were like; no mask for what is kept whole."""
        if not self.mask.enabled or move is None:
            return {}, []
        names = [name for name, tensor in params.items() if tensor.ndim >= 2]
        low = {name: params[name] - self.start[name] for name in names}
        if self.mask.scope == "layer":
            chosen = {name: certified_select(low[name], move[name], cap=self.mask.tau) for name in names}
            statistics = [row for name in names for row in _tags(f"_{name}", chosen[name])]
            masks = {name: selection.mask for name, selection in chosen.items()}
        else:
            flattener = Flattener({name: low[name] for name in names})
            whole = certified_select(flattener.flatten(low), flattener.flatten(move), cap=self.mask.tau)
            statistics, masks = _tags("", whole), {n: m.bool() for n, m in flattener.unflatten(whole.mask).items()}
        if self.mask.scope == "layer" and names:
            kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
            cosine = sum(selection.cosine for selection in chosen.values()) / len(names)
            statistics += [("prowd/mask_keep", kept), ("prowd/cosine", cosine)]
        return masks, statistics

    def _by_group(self, fabric: Fabric, sums: _Sums, move: Params) -> list[tuple[int, str, float]]:
        """One mask a bit group, from the mean of its reconstructed updates; the same on every process."""
        groups: dict[str, tuple[Client, _Sums]] = {}
        for client, params, plain_params in self._low():
            _, group = groups.setdefault(client.group, (client, _Sums(self.start, self.keep_plain)))
            group.add(params, plain_params, client.weight, {})
        labels = sorted({label for labels in gather(fabric, [list(groups)]) for label in labels})
        first = dict(
            entry for part in gather(fabric, [{g: c for g, (c, _) in groups.items()}]) for entry in part.items()
        )
        found = []
        for label in labels:
            own = groups[label][1] if label in groups else _Sums(self.start, self.keep_plain)
            own.reduce(fabric)
            masks, statistics = self._choose(own.filled("renorm", None), move)
            if fabric.is_global_zero:  # the group's sum is already that of all processes
                sums.merge(own, masks)
                found += [(first[label].id, *row) for row in statistics]
        return found


class _Sums:
    """``sum n c w`` and ``sum n c`` by entry, exact, and ``sum n``."""

    def __init__(self, start: Params, keep_plain: bool) -> None:
        self.start, self.flattener = start, Flattener(start)
        self.values = ExactSum(self.flattener.numel)
        self.weights = torch.zeros(self.flattener.numel, dtype=torch.float64)
        self.plain = ExactSum(self.flattener.numel) if keep_plain else None
        self.total, self.high_total = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def add_high(self, mean: WeightedMean) -> None:
        """Take over the unreduced sums of the high-bit clients."""
        self.values.parts += mean.sum.parts
        self.weights += mean.weight
        self.total += mean.weight
        self.high_total += mean.weight
        if self.plain is not None:
            self.plain.parts += mean.sum.parts

    def add(self, params: Params, plain_params: Params, weight: float, masks: dict[str, Tensor]) -> None:
        factors = self._factors(masks).mul_(weight)
        self.values.add(self.flattener.flatten(params), factors)
        self.weights += factors
        self.total += weight
        if self.plain is not None:
            self.plain.add(self.flattener.flatten(plain_params), weight)

    def merge(self, other: _Sums, masks: dict[str, Tensor]) -> None:
        """Add another's sums through masks, which keeps them exact."""
        factors = self._factors(masks)
        self.values.parts += other.values.parts * factors
        self.weights += other.weights * factors
        self.total += other.total
        if self.plain is not None and other.plain is not None:
            self.plain.parts += other.plain.parts

    def _factors(self, masks: dict[str, Tensor]) -> Tensor:
        whole = {
            name: masks[name] if name in masks else torch.ones(shape) for name, shape in self.flattener.shapes.items()
        }
        return self.flattener.flatten({name: mask.to(torch.float64) for name, mask in whole.items()})

    def reduce(self, fabric: Fabric) -> None:
        self.values.reduce(fabric)
        self.weights, self.total = all_reduce_sum(fabric, self.weights), all_reduce_sum(fabric, self.total)
        self.high_total = all_reduce_sum(fabric, self.high_total)
        if self.plain is not None:
            self.plain.reduce(fabric)

    def filled(self, fill: Fill, high: Params | None) -> Params:
        """The aggregate, entries that no or not every client voted for filled as `fill` says."""
        values, start = self.values.value(), self._start()
        if fill == "renorm":
            mean = torch.where(self.weights > 0, values / self.weights, start)
        elif fill == "literal":
            mean = values / self.total
        elif fill == "delta":
            mean = start + (values - self.weights * start) / self.total
        else:
            other = start if high is None else self.flattener.flatten(high).double()
            mean = (values + (self.total - self.weights) * other) / self.total
        return self.flattener.unflatten(mean)

    def plain_mean(self, start: Params) -> Params:
        """The mean without masks; high-bit clients count by their moves, as if they too had begun at `start`."""
        assert self.plain is not None
        mean = self.plain.value() / self.total
        if start is not self.start:  # two models
            mean += self.high_total / self.total * (self.flattener.flatten(start).double() - self._start())
        return self.flattener.unflatten(mean)

    def _start(self) -> Tensor:
        return self.flattener.flatten(self.start).double()


def _as_client(params: Params, update: Tensors, spec: BitSpec) -> Tensors:
    """The tensors that `update` holds as codes, as a client of `spec` quantises `params`."""
    return {
        name: quantize(params[name], spec.weights, range_rule=spec.range_rule, granularity=spec.granularity)
        for name, value in update.items()
        if isinstance(value, QuantizedTensor)
    }


def _added(start: Params, move: Params, weights: Params) -> Params:
    """``start + move`` where there is a move, else the weights as they are."""
    return {name: start[name] + move[name] if name in move else value for name, value in weights.items()}


def _tags(suffix: str, selection: Any) -> list[tuple[str, float]]:
    keep = float(selection.mask.float().mean()) if selection.mask.numel() else 0.0
    return [(f"prowd/mask_keep{suffix}", keep), (f"prowd/cosine{suffix}", selection.cosine)]


def _mean_by_tag(rows: list[tuple[int, str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for _, tag, value in rows:
        values.setdefault(tag, []).append(value)
    return {tag: sum(found) / len(found) for tag, found in values.items()}
