"""The progressive dequantizer of ProWD: learned blocks from low-bit to float weights (Yoon et al.,
ICML 2022).

A tensor of `b`-bit codes enters the ladder at its own width and climbs it block by block; see
`blocks` for one step. Training pairs cost nothing: high-bit weights are quantised to every width
(see `pairs`). The loss is

    sum_j || q_{j+1} - (q_j + rho_j(q_j)) ||_1  -  distill_weight * SIM(f(u; w), f(u; raised(q)))

with the reconstruction in steps of each width and averaged over elements, or summed as in the
paper; SIM is the mean cosine similarity of the logits of a network `f` on a small buffer `u`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bhfl.algorithms.prowd.blocks import Arch, Block, Bound
from bhfl.algorithms.prowd.options import CHECKS, Loss, ladder_problem
from bhfl.algorithms.prowd.pairs import RowPairs, WeightBatch
from bhfl.checks import checked
from bhfl.comm import Tensors
from bhfl.quant import QuantizedTensor, quantize
from bhfl.quant.norms import evaluating
from bhfl.quant.rounding import levels

_SLACK = 1.01
"""A chain is no worse than the identity where its error is at most so many times that of it."""


class ProgressiveDequantizer(L.LightningModule):
    """Raises quantised weights to the top of a ladder of widths; the exact identity until it is
    trained.

    Args:
        bits: The ladder, ascending: every width that a client may send, 2..16, and its top, 32
            (float32) or the largest width there is, which then counts as float. Steps of similar
            size learn best.
        arch: Architecture of the blocks, see :class:`Block`.
        bound: How far a block may move a weight, see :class:`Block`.
        lr: Learning rate of Adam.
        loss: Reconstruction as `mean_norm`, the mean over elements in steps of the width, which
            makes learning rate and `distill_weight` independent of the model; or as `sum`, the
            literal L1 norm of the sampled rows.
        teacher_forcing: Probability that a block is trained on true weights of its width; else on
            what the block below it returned. 1 is the paper's.
        distill_weight: Factor of the distillation loss; 0 leaves it out.
        seed: The seed of the hidden weights at the start.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    distill_every = 2
    """Distil at every such step."""
    distill_elements = 1 << 18
    """Weights through which the distillation gradient flows, a random share of each layer's rows;
    bounds memory at about 200 bytes times the steps climbed for each.
    """
    max_elements = 1 << 14
    """Weights raised at a time; this many keep a CPU in its cache. Does not change the result."""

    def __init__(  # noqa: PLR0913
        self,
        bits: Sequence[int] = (2, 8, 32),
        *,
        arch: Arch = "conv1d",
        bound: Bound = "auto",
        lr: float = 1e-3,
        loss: Loss = "mean_norm",
        teacher_forcing: float = 1.0,
        distill_weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        checked("bits", bits, ladder_problem)
        for key, check in CHECKS.items():
            checked(key, self.hparams[key], check)
        self.bits = tuple(bits)
        self.lr = lr
        self.loss = loss
        self.teacher_forcing = teacher_forcing
        self.distill_weight = distill_weight
        self.blocks = nn.ModuleList()
        for width in self.bits[:-1]:
            self.blocks.append(Block(width, arch=arch, bound=bound))
        self.reset_(seed)
        # in a tuple the network is no submodule: it is neither trained nor saved with the blocks
        self._probe: tuple[nn.Module, Tensor] | None = None
        self._teachers: dict[int, Tensor] = {}

    def reset_(self, seed: int) -> None:
        """Become the identity again, with new hidden weights: what to do when training diverged."""
        generator = torch.Generator().manual_seed(seed)
        for block in self._blocks(0):
            block.reset_(generator)

    def set_probe(self, model: nn.Module, inputs: Tensor) -> None:
        """Distil on this network and buffer from now on.

        Args:
            model: A float32 network whose state has the names of all weights; it is run in eval
                mode with the weights of each batch and is left as it was, parameters, buffers and
                mode.
            inputs: `u`, a batch of its inputs, on its device. No labels are needed.
        """
        self._probe = (model, inputs)
        self._teachers = {}

    @torch.no_grad()
    def forward(self, tensors: Tensors) -> dict[str, Tensor]:
        """Float weights for each quantised tensor; what is float already is passed on as the same
        object.

        Args:
            tensors: A client's tensors as decoded. A row of a quantised tensor is a slice of
                dimension 0.

        Raises:
            ValueError: A tensor has a width that is not on the ladder.
        """
        raised = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor):
                raised[name] = tensor
            elif tensor.bits in self.bits:
                raised[name] = self._raise(tensor)
            else:
                raise ValueError(
                    f"{name!r} has {tensor.bits} bits, which is not on the ladder {self.bits}"
                )
        return raised

    def training_step(self, batch: WeightBatch, batch_idx: int) -> dict[str, Tensor]:
        """The loss on one batch of :class:`WeightPairs`, beside its parts and that of the
        identity.
        """
        generator = torch.Generator().manual_seed(batch["seed"])
        recon, identity = self._reconstruction(batch["rows"], generator)
        metrics = {"dequantizer/recon": recon, "dequantizer/recon_identity": identity}
        loss = recon
        if self._probe is not None and self.distill_weight and batch_idx % self.distill_every == 0:
            distill = self._distillation(*self._probe, batch, generator)
            loss = loss + self.distill_weight * distill
            metrics["dequantizer/distill"] = distill
        metrics = {key: value.detach() for key, value in metrics.items()}
        self._log(metrics)
        return {"loss": loss, **metrics}

    def validation_step(self, batch: WeightBatch, batch_idx: int) -> dict[str, Tensor]:
        """Mean error of the whole chain on held-out rows, in steps of the width that comes in, and
        of the identity.
        """
        chain, identity = self._chain_error(batch["rows"])
        metrics = {"dequantizer/val_recon": chain, "dequantizer/val_recon_identity": identity}
        self._log(metrics)
        return metrics

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.lr)

    @torch.no_grad()
    def is_better_than_identity(self, batches: Iterable[WeightBatch]) -> bool:
        """Whether the chain may be used: on no held-out batch is its error above that of the
        identity.

        Args:
            batches: Held-out rows, such as `WeightPairs.val_dataloader()`: one batch for each width
                that comes in.
        """
        errors = [self._chain_error(batch["rows"]) for batch in batches]
        # every comparison with NaN is false, so a diverged chain fails
        return all(bool(chain <= _SLACK * identity) for chain, identity in errors)

    def _blocks(self, entry: int) -> Iterator[Block]:
        for block in self.blocks[entry:]:
            assert isinstance(block, Block)
            yield block

    def _climb(self, z: Tensor, entry: int) -> Tensor:
        """Normalised rows to their residual at the top; within the bound of the block at which they
        come in.
        """
        first, *others = self._blocks(entry)
        residual: Tensor = first(z)
        for block in others:
            residual = residual + block(z + residual)
        return residual.clamp(-first.reach * first.step, first.reach * first.step)

    def _raise(self, tensor: QuantizedTensor) -> Tensor:
        """`q + A * residual`: where the residual is zero, `q` to the bit."""
        values = tensor.dequantize()
        codes = tensor.codes
        if tensor.bits == self.bits[-1] or codes.numel() == 0:
            return values
        largest = levels(tensor.bits)
        rows = codes.reshape(len(codes) if codes.dim() else 1, -1)
        parts = torch.split(rows, max(1, self.max_elements // rows.shape[1]))
        entry = self.bits.index(tensor.bits)
        residual = torch.cat([self._climb(part / largest, entry) for part in parts])
        return values + (residual * (tensor.scale * largest).view(-1, 1)).view_as(values)

    def _raise_in_part(
        self, tensor: QuantizedTensor, share: float, generator: torch.Generator
    ) -> Tensor:
        """The same as `_raise`, with a gradient through a random share of the rows only."""
        if share >= 1:
            return self._raise(tensor)
        num_rows = len(tensor.codes)
        order = torch.randperm(num_rows, generator=generator).to(tensor.codes.device)
        picked, others = order.tensor_split([math.ceil(share * num_rows)])
        part = self._raise(_rows(tensor, picked))
        with torch.no_grad():
            rest = self._raise(_rows(tensor, others))
        return torch.cat([part, rest])[order.argsort()]

    def _reconstruction(
        self, rows: Sequence[RowPairs], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The loss of every block on its own step, summed over the steps; and that of blocks which
        do nothing.
        """
        learned: list[list[Tensor]] = [[] for _ in self.blocks]
        idle: list[list[Tensor]] = [[] for _ in self.blocks]
        for pairs in rows:
            entry = pairs["entry"]
            estimate = pairs["levels"][0]
            steps = zip(self._blocks(entry), pairwise(pairs["levels"]), strict=True)
            for j, (block, (true, target)) in enumerate(steps, entry):
                forced = torch.rand((), generator=generator) < self.teacher_forcing
                z = true if forced else estimate
                estimate = z + block(z)
                unit = pairs["ranges"] if self.loss == "sum" else 1 / block.step
                learned[j].append(((target - estimate).abs() * unit).flatten())
                idle[j].append(((target - true).abs() * unit).flatten())
        return self._summed(learned), self._summed(idle)

    def _summed(self, errors: list[list[Tensor]]) -> Tensor:
        """The errors of each step as one number, summed over the steps that have any."""
        reduce = torch.sum if self.loss == "sum" else torch.mean
        return torch.as_tensor(sum(reduce(torch.cat(parts)) for parts in errors if parts))

    def _distillation(
        self, model: nn.Module, inputs: Tensor, batch: WeightBatch, generator: torch.Generator
    ) -> Tensor:
        """Minus the mean cosine similarity of the logits with true and with raised weights."""
        weights = batch["weights"]
        scales = batch["scales"]
        total = sum(weights[name].numel() for name in scales)
        share = self.distill_elements / max(total, 1)
        raised = {}
        for name, scale in scales.items():
            codes = quantize(weights[name], batch["bits"], scale=scale)
            raised[name] = self._raise_in_part(codes, share, generator)
        with evaluating(model):
            # the logits with true weights are computed once for each state
            number = batch["number"]
            if number not in self._teachers:
                with torch.no_grad():
                    self._teachers[number] = functional_call(model, dict(weights), (inputs,))
            teacher = self._teachers[number]
            # what is not raised is the teacher's, so that only the raised weights tell the two
            # apart
            student = functional_call(model, {**weights, **raised}, (inputs,))
        return -F.cosine_similarity(student.flatten(1), teacher.flatten(1)).mean()

    def _chain_error(self, rows: Sequence[RowPairs]) -> tuple[Tensor, Tensor]:
        """Mean distance to the top, in steps of the width at which the rows come in: of the chain,
        of the identity.
        """
        chain = []
        identity = []
        for pairs in rows:
            z = pairs["levels"][0]
            target = pairs["levels"][-1]
            entry = pairs["entry"]
            largest = levels(self.bits[entry])
            chain.append((target - z - self._climb(z, entry)).abs().flatten() * largest)
            identity.append((target - z).abs().flatten() * largest)
        return torch.cat(chain).mean(), torch.cat(identity).mean()

    def _log(self, metrics: Mapping[str, Tensor]) -> None:
        # under Fabric every point would be logged at step 0: the engine logs
        if self._trainer is not None:
            self.log_dict(dict(metrics), batch_size=1)


def _rows(tensor: QuantizedTensor, indices: Tensor) -> QuantizedTensor:
    """Some rows of a tensor, with their scales."""
    scale = tensor.scale[indices] if tensor.scale.dim() else tensor.scale
    return QuantizedTensor(tensor.codes[indices], scale, tensor.bits)
