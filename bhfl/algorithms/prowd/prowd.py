"""ProWD. Yoon, Park, Jeong, Hwang, ICML 2022, https://arxiv.org/abs/2202.11453."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bhfl.algorithms.differences import qsgd
from bhfl.algorithms.feedback import forget_error, keep_error, needs_differences, with_error
from bhfl.algorithms.grouped import by_precision
from bhfl.algorithms.prowd.aggregation import Selected, SelectiveMean
from bhfl.algorithms.prowd.moves import MoveReader
from bhfl.algorithms.prowd.options import Dequantizer, Mask
from bhfl.algorithms.rules import Rule
from bhfl.checks import checked, choice, options
from bhfl.comm import float_tensors
from bhfl.engine.algorithm import Algorithm, Context, LocalRun
from bhfl.engine.calls import defines_forward
from bhfl.engine.random import RandomKeys
from bhfl.engine.roster import at, changes, one_of_each
from bhfl.engine.types import Client, Params, ServerState, Tensors
from bhfl.quant import QuantizedTensor, quantized_state


class ProWD(Rule):
    """Progressive weight dequantisation and selective weight aggregation.

    A trainable dequantizer raises low-bit weights to float32 before they are averaged; a mask keeps
    of each low-bit client only the entries that agree with the move of the high-bit clients. With
    both switched off and ``delta_ref: broadcast`` it is FedAvg.

    Args:
        mask: How entries are chosen; null averages them all.
        dequantizer: How low-bit weights are raised; null dequantises them linearly.
        global_models: ``single``, or ``dual``: low-bit clients get the unmasked mean of
            reconstructed weights instead (one reading of the two float32 models that the paper's
            table counts on the downlink).
        payload: What low-bit clients send: their ``weights``, as in the paper; or how much these
            differ from the ones that they were sent (``delta``), rounded without bias at their own
            bits, one scale an output channel. The dequantizer learns from weights, so it has to be
            off with ``delta``.
        delta_ref: Where the move of a client that sends weights is measured from: what it makes of
            the broadcast weights at its bits, the move being added to them (``dequant_start``), so
            that rounding the broadcast is no part of the average; or the ``broadcast`` weights, its
            own weights being averaged as they are.
        client: Whose client half trains, see `bhfl.algorithms.rules.Rule`; null for FedAvg's. What
            it sends besides weights is averaged without masks.
        error_feedback: Whether a client adds to its ``delta`` what rounding, to the nearest codes,
            left out of its last one; what masks leave out is not carried. A high-bit client sends
            its weights, and has none.

    Raises:
        ValueError: An argument is out of its range; in `setup`, the fleet, the data or the model do
            not fit.
    """

    def __init__(  # noqa: PLR0913
        self,
        mask: Mask | None = Mask(),  # noqa: B008  # frozen
        dequantizer: Dequantizer | None = Dequantizer(),  # noqa: B008  # frozen
        global_models: Literal["single", "dual"] = "dual",
        payload: Literal["weights", "delta"] = "weights",
        delta_ref: Literal["broadcast", "dequant_start"] = "dequant_start",
        client: Algorithm | None = None,
        error_feedback: bool = False,
    ) -> None:
        super().__init__(client)
        self.is_composed = client is not None
        if client is not None and (global_models, payload) != ("single", "weights"):
            raise ValueError(
                "ProWD.client needs ProWD.global_models: single and ProWD.payload: weights, got "
                f"{global_models} and {payload}"
            )
        self.mask = checked("ProWD.mask", mask, options(Mask, optional=True))
        self.dequantizer = checked(
            "ProWD.dequantizer", dequantizer, options(Dequantizer, optional=True)
        )
        self.global_models = checked("ProWD.global_models", global_models, choice("single", "dual"))
        self.payload = checked("ProWD.payload", payload, choice("weights", "delta"))
        self.delta_ref = checked("ProWD.delta_ref", delta_ref, choice("broadcast", "dequant_start"))
        self.error_feedback = needs_differences("ProWD", error_feedback, payload)
        if dequantizer is not None and payload == "delta":
            raise ValueError(
                "ProWD.dequantizer learns from weights and must be null with ProWD.payload: delta"
            )

    # what rounding left out of one update is all that a client keeps
    begins_anew = True

    @property
    def client_half(self) -> Algorithm:
        """That of `client`, or its own, which may send moves."""
        return super().client_half if self.is_composed else self

    # ---- setting up ------------------------------------------------------------------------------

    def prepare(self, module: nn.Module, clients: Sequence[Client]) -> None:
        """Find the high-bit group, whose clients send weights."""
        super().prepare(module, clients)
        # of all rounds: what low bits become in later ones has to be raised too
        self.devices = {client.bits: client.devices for client in one_of_each(clients)}
        self.top = max(one_of_each(clients), key=by_precision).bits

    def setup(self, context: Context) -> None:
        """See whether there are high-bit clients to learn from, and what the dequantizer needs.

        Raises:
            ValueError: No high-bit group, or none in some round, a ladder that misses a width, or a
                buffer larger than the held-out data.
        """
        super().setup(context)
        for round in changes(context.clients):
            if all(one.bits != self.top for one in one_of_each(at(context.clients, round))):
                raise ValueError(
                    f"ProWD needs clients of the most bits in every round: the schedule of the "
                    f"fleet comes to {self.top}, and nobody has them in round {round + 1}"
                )
        top = self.devices[self.top].spec.sent_bits
        others = []
        for group, devices in self.devices.items():
            if group != self.top:
                others += devices.specs
        # float clients alone are let through: nothing is masked or raised, and it is FedAvg
        if not others and top < 32:
            raise ValueError(
                f"ProWD needs a high-bit group beside the low-bit ones, got only {self.top} clients"
            )
        # the server's alone: a client may have no Lightning
        from bhfl.algorithms.prowd.finetune import FineTuning

        self.tuning: FineTuning | None = None
        # a group that differs from the top in activations alone has nothing to raise
        low = [spec for spec in dict.fromkeys(others) if spec.sent_bits < top]
        if self.dequantizer is None or not low:
            return
        widths = sorted({spec.sent_bits for spec in low} | {top})
        ladder = self.dequantizer.ladder or doublings(widths)
        if missing := [width for width in widths if width not in ladder]:
            raise ValueError(
                f"ProWD.dequantizer.ladder must hold every width of the fleet, got {list(ladder)} "
                f"without {missing[0]}"
            )
        self.tuning = FineTuning(
            self.dequantizer,
            # the fleet's widest weights count as float, and no block leads beyond them
            ladder=[width for width in ladder if width <= top],
            specs=low,
            probe=self._probe(self.dequantizer, context),
            seed=context.settings.cohort.seed,
        )

    def _probe(self, wanted: Dequantizer, context: Context) -> tuple[nn.Module, Tensor] | None:
        """The network and the buffer of distillation, where it is wanted."""
        if not wanted.distill_weight:
            return None
        held_out = context.data.num_holdout()
        if held_out < wanted.buffer_size:
            raise ValueError(
                f"data.holdout must be at least ProWD.dequantizer.buffer_size={wanted.buffer_size},"
                f" got {held_out}; or set ProWD.dequantizer.distill_weight: 0"
            )
        # a copy, which training the clients does not touch
        network = copy.deepcopy(context.module).requires_grad_(False).cpu().eval()
        if not defines_forward(network):
            raise ValueError(
                "ProWD distils through the model's forward(inputs), which "
                f"{type(network).__name__} does not define; define it, or set "
                "ProWD.dequantizer.distill_weight: 0"
            )
        batches = [*context.data.holdout_batches(wanted.buffer_size)]
        try:
            inputs = torch.cat([inputs for inputs, _ in batches])
        except (TypeError, ValueError) as error:
            raise ValueError(
                "ProWD distils on batches (inputs, targets) whose inputs are one tensor, got a "
                f"{type(batches[0]).__name__}: {error}; set ProWD.dequantizer.distill_weight: 0"
            ) from error
        # what would fail in the first fine-tuning, rounds later
        logits = network(inputs[:1])
        if not isinstance(logits, Tensor) or logits.ndim < 2:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                "ProWD distils by logits: the model's forward(inputs) must return a tensor with a "
                f"row for each input, got {got}; or set ProWD.dequantizer.distill_weight: 0"
            )
        # of a data module that cannot choose all come, which may be sorted by class
        spread = torch.arange(wanted.buffer_size) * len(inputs) // wanted.buffer_size
        return network, inputs[spread]

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """No high-bit move yet; the identity for a dequantizer.

        Raises:
            ValueError: `client` leaves parameters with its clients, which the masks are made of.
        """
        extra = super().init_server(params, clients)
        expected = self.expected(ServerState(params, extra=extra))
        if own := [name for name in params if name not in expected]:
            raise ValueError(
                f"ProWD.client must send every parameter, got {type(self.client).__name__}, which "
                f"leaves {own[0]} with its clients"
            )
        return {
            **extra,
            "move": None,
            "low": params if self.global_models == "dual" else None,
            "pool": [],
            "dequantizer": self.tuning.initial() if self.tuning else None,
            "published_MB": 0.0,
        }

    # ---- rounds ----------------------------------------------------------------------------------

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """The client's global model."""
        params = self.group_params(server, client.bits)
        return super().downlink(replace(server, params=params), client)

    def group_params(self, server: ServerState, group: str) -> Params:
        """The selective aggregate, or with ``dual`` the plain one for low-bit groups."""
        low: Params | None = server.extra["low"]
        return server.params if low is None or group == self.top else low

    def uplink(self, run: LocalRun) -> Tensors | None:
        """Weights at the client's bits; with ``delta``, a low-bit client's differences ``w_t -
        w_i``.
        """
        update = quantized_state(run.module, sent=True)
        if self.payload == "weights" or run.client.bits == self.top:
            # of what fewer bits once left out, a schedule may lead back to equally many
            for name in update:
                forget_error(run, name)
            return update
        values = run.module.state_dict()
        generator = None if self.error_feedback else run.rng.torch("quant_up", device=run.device)
        for name, value in update.items():
            # frozen weights that the device rounds are no part of what was received, or is sent
            if isinstance(value, QuantizedTensor) and name in run.received:
                move = with_error(run, name, run.received[name] - values[name])
                sent = qsgd(move, value.bits, "linf", generator, by_row=True)
                if self.error_feedback:
                    keep_error(run, name, move, sent.dequantize())
                update[name] = sent
        return update

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Any:
        """High-bit weights in float32; low-bit tensors wait as they are."""
        return float_tensors(update) if client.bits == self.top else update

    def begin_round(
        self, server: ServerState, cohort: Sequence[Client], context: Context
    ) -> ServerState:
        """Fine-tune the dequantizer where that is due, on the weights of earlier rounds."""
        server = super().begin_round(server, cohort, context)
        if self.tuning is None or not (steps := self.tuning.num_steps(server.round)):
            return server
        statistics = server.buffers["statistics"]
        # distillation runs the pool's models, whose norms need the statistics that belong to them
        buffers = statistics.get(self.top, statistics.get("all", {})) | server.buffers["frozen"]
        # as long as no high-bit client came, the global model has to do
        models = server.extra["pool"] or [server.params]
        state, metrics = self.tuning.tune(
            context.fabric,
            server.extra["dequantizer"],
            states=[{**params, **buffers} for params in models],
            steps=steps,
            seed=RandomKeys(self.tuning.seed, server.round).integer("server"),
        )
        return replace(server.with_extra(dequantizer=state), metrics=metrics)

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> SelectiveMean:
        """Hold the round's updates until the high-bit move is known."""
        low: Params | None = server.extra["low"]
        chain = self.tuning.chain(server.extra["dequantizer"]) if self.tuning else None
        reader = MoveReader(
            server.params,
            low_start=server.params if low is None else low,
            two_models=low is not None,
            origin="sent" if self.payload == "delta" else self.delta_ref,
            raised=chain or float_tensors,
        )
        move = server.extra["move"]
        fresh = move and self.mask and server.round - move["round"] <= self.mask.high_max_age
        return SelectiveMean(
            reader,
            self.top,
            self.mask,
            past_move=move["params"] if fresh else None,
            pool_size=self.tuning.options.pool_size if self.tuning else 0,
            beside=self.client.aggregator(server, clients) if self._adds else None,
        )

    def server_update(
        self, server: ServerState, aggregate: Selected, rng: RandomKeys
    ) -> ServerState:
        """The new model or models, the high-bit move, and the dequantizer's pool."""
        extra = dict(server.extra)
        if aggregate.move is not None:
            extra["move"] = {"params": aggregate.move, "round": server.round}
        if aggregate.plain is not None:
            extra["low"] = aggregate.plain
        if aggregate.pool:
            assert self.tuning is not None
            pool = [*server.extra["pool"], *aggregate.pool]
            extra["pool"] = pool[-self.tuning.options.pool_size :]
        # the paper's table counts two float32 numbers a weight and client, and one for all else;
        # one is what is needed and what is sent, whose bytes are measured
        sizes = [4 * x.numel() * (2 if x.ndim >= 2 else 1) for x in server.params.values()]
        extra["published_MB"] += aggregate.num_clients * sum(sizes) / 1e6
        metrics = {**aggregate.metrics, **server.metrics}
        metrics["comm/downlink_published_MB"] = extra["published_MB"]
        state = replace(server, extra=extra, metrics=metrics)
        return self.client.server_update(state, {**aggregate.beside, **aggregate.params}, rng)


def doublings(widths: Sequence[int]) -> list[int]:
    """The widths, and between any two of them the doublings of the lower one that are widths.

    >>> doublings([2, 32]), doublings([6, 32]), doublings([6, 8, 12, 16])
    ([2, 4, 8, 16, 32], [6, 12, 32], [6, 8, 12, 16])
    """
    ladder = [widths[0]]
    for width in widths[1:]:
        while (double := ladder[-1] * 2) < width and double <= 16:
            ladder.append(double)
        ladder.append(width)
    return ladder
