"""A module that is one client after the other, trained by torch alone, as a small device does."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils._pytree import tree_leaves, tree_map_only

from bhfl.engine.algorithm import Algorithm, LocalRun
from bhfl.engine.availability import part_of
from bhfl.engine.calls import call_step
from bhfl.engine.client.layout import Layout
from bhfl.engine.client.registered import Registered
from bhfl.engine.correct import TOLD, as_text, told_by
from bhfl.engine.devices import FLOAT, Devices
from bhfl.engine.exchange import Stage, Task
from bhfl.engine.random import seed_globals
from bhfl.engine.types import FederatedData, Metrics, Params, ServerState, without
from bhfl.quant import BitSpec, begin_round_, quant_layers, quantize_, save_in_int8, store_
from bhfl.quant.convert import layers_by_weight
from bhfl.quant.quant_layer import takes_low_bits
from bhfl.quant.spec import FLOAT_BITS
from bhfl.settings import LocalTraining

STEPS: Mapping[Stage, str] = {"val": "validation_step", "test": "test_step"}


class PlainWorker:
    """The one module of this process, and what it takes to train and measure it as any client.

    Args:
        module: Its ``training_step(batch, batch_idx)`` returns the loss of a batch, its
            ``configure_optimizers()`` an optimiser, and its ``validation_step`` and ``test_step``,
            where a client is to be measured, numbers by name. Its layers are swapped for quantised
            ones in place, parameters shared.
        device: Where it computes.
    """

    def __init__(self, module: Any, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        # at 32 bits nothing changes; each client's widths are then set without another swap
        self.module: Any = quantize_(module, BitSpec(), lambda _, layer: takes_low_bits(layer))
        self.module.to(self.device)
        self.layers = dict(quant_layers(self.module))
        """The layers that can take low bits, by name: what each client's load would walk for."""
        self.layout = Layout(self.module)
        self.frozen: list[nn.Module] = []
        """Layers that its owner handed over in evaluation mode."""
        # one that is handed over in evaluation mode as a whole says nothing of its layers
        if module.training:
            self.frozen = [layer for layer in module.modules() if not layer.training]
        self.registered = Registered(module, self.device)
        self.untrained: Params = {}
        """Frozen parameters, on the device: they are part of every model that is loaded."""
        saved = self.module.state_dict()
        self.transient = {
            name: buffer.cpu().clone()
            for name, buffer in module.named_buffers()
            if name not in saved
        }
        """Buffers that are never saved."""
        # without keep_vars each name would have a tensor of its own, and no two the same id
        named = self.module.state_dict(keep_vars=True)
        # reversed, since the last name of an id stays in a dict
        first = {id(tensor): name for name, tensor in reversed(named.items())}
        self.tied = named.keys() - first.values()
        """The other names of tensors that have several."""
        self.correct = ""
        """Whether the model was right about each sample of the last evaluation, a digit each, 1 for
        right; empty where its step does not say.
        """

    def state(self) -> dict[str, Tensor]:
        """The module's state by name, tied tensors once."""
        return without(self.module.state_dict(), self.tied)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], devices: Devices) -> None:
        """Make the module a client on such devices with these weights; buffers that are never
        saved begin anew.

        Whatever a client before it did to parameters and buffers is undone, so that nothing goes
        from one to the next.
        """
        devices.set_(self.module, self.layers)
        self.registered.train_as_lent()
        for name, value in {**self.untrained, **tensors, **self.transient}.items():
            self.registered.put(name, value)
        self.registered.drop_new()
        if devices.fixes_ranges:
            begin_round_(self.module)

    def check_frozen(self) -> None:
        """Refuse what training has made of tensors that were frozen when the module was set up.

        Raises:
            ValueError: One has another value, naming it.
        """
        if not self.untrained:
            return
        state = self.module.state_dict()
        layers = layers_by_weight(self.module)
        # on the grid that they are stored on
        stored = {name for name, layer in layers.items() if layer.spec.storage < FLOAT_BITS}
        for name, value in self.untrained.items():
            if name not in stored and not torch.equal(state[name], value):
                raise ValueError(
                    f"{name} was frozen when the model was set up, and training has changed it: "
                    "let it require gradients in __init__ or setup, or make it a buffer, which is "
                    "averaged"
                )

    def load_global(self, tensors: Mapping[str, Tensor], devices: Devices = FLOAT) -> None:
        """Make the module the global model on such devices, as it is evaluated and handed on."""
        self.load(tensors, devices)

    def begin(self, at: Task | ServerState) -> None:
        """Stand before or after the clients of a round, as its state or a task of it says."""
        self.layout.take_(at.channels_last)

    def to_device(self, value: Any) -> Any:
        """A nest of containers with its tensors where the module computes."""
        return tree_map_only(Tensor, lambda tensor: tensor.to(self.device), value)

    def on_device(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches where the module computes, images in the memory format asked for."""
        for batch in batches:
            yield self.layout.batch(self.to_device(batch))

    def train_mode(self) -> None:
        """Put the module in training mode, but for the layers that are frozen."""
        self.module.train()
        for layer in self.frozen:
            # not by eval(), which would reach layers inside it that do train
            layer.training = False

    def seed(self, run: LocalRun) -> torch.Generator:
        """Seed what draws while a client trains; the generator of layers stored at low bits."""
        # dropout takes no generator: it draws from the global one
        seed_globals(run.rng.integer("dropout"), self.device)
        generator = run.rng.torch("quant_train", device=self.device)
        for layer in self.layers.values():
            layer.generator = generator
        return generator

    def train(self, algorithm: Algorithm, run: LocalRun, data: FederatedData) -> None:
        """Train as `run.client` from `run.received`; `run.metrics` holds the mean of the loss.

        Raises:
            RuntimeError: The client makes no step.
        """
        devices = run.client.devices
        self.load(run.own or run.received, devices)
        self.train_mode()
        generator = self.seed(run)
        optimizer = devices.optimizer(self.module.configure_optimizers())
        num_batches = data.num_batches(run.client.id)
        planned = part_of(run.training.planned_steps(num_batches), run.part)
        limit = algorithm.num_steps(run, planned)
        epochs = epochs_of(run.training, limit, num_batches)
        total = 0.0
        for epoch in epochs:
            batches = data.client_batches(run.client.id, run.rng, epoch)
            before = run.num_steps
            for index, batch in enumerate(self.on_device(islice(batches, limit - before))):
                size = num_samples(batch)
                total += size * self._step(algorithm, run, optimizer, batch, index)
                run.num_examples += size
                if devices.stores_low_bits:
                    store_(self.module, generator)
            # an epoch without a step would be followed by others without end
            if run.num_steps in (before, limit):
                break
        if not run.num_steps:
            raise RuntimeError("dropped out: it made no step")
        run.metrics["train/loss"] = total / run.num_examples
        self.module.zero_grad()

    def _step(
        self,
        algorithm: Algorithm,
        run: LocalRun,
        optimizer: torch.optim.Optimizer,
        batch: Any,
        index: int,
    ) -> float:
        """One step of the optimiser; the loss before it."""
        with save_in_int8() if run.saves_in_int8 else nullcontext():
            loss = algorithm.client_loss(run, batch, index)
        optimizer.zero_grad()
        loss.backward()
        algorithm.client_gradients_(run)
        if run.training.gradient_clip_val is not None:
            clip_grad_norm_(self.module.parameters(), run.training.gradient_clip_val)
        # the rates of this very step: FedCOMGATE divides by the sums of them
        run.add_rates(optimizer)
        run.num_steps += 1
        optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], stage: Stage) -> Metrics:
        """Means over `batches` of the numbers that the module's validation or test step returns, as
        the module stands; none where there is no batch.
        """
        # models are compared: what draws must draw alike for each
        seed_globals(0, self.device)
        self.module.eval()
        sums: dict[str, float] = {}
        measured = 0
        correct = []
        for index, batch in enumerate(self.on_device(batches)):
            size = num_samples(batch)
            measured += size
            if not callable(step := getattr(self.module, STEPS[stage], None)):
                raise ValueError(
                    f"model must have the method {STEPS[stage]} where clients are measured, and "
                    f"{type(self.module).__name__} has none"
                )
            found = call_step(step, batch, index)
            found = {"loss": found} if isinstance(found, Tensor) else found
            if not isinstance(found, Mapping):
                raise ValueError(f"{STEPS[stage]} must return numbers by name, got {found!r}")
            if (told := told_by(found)) is not None:
                correct.append(told)
                found = without(found, [TOLD])
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + size * float(value)
        self.correct = as_text(correct)
        self.train_mode()
        return {name: total / measured for name, total in sums.items()}


def epochs_of(training: LocalTraining, limit: int, num_batches: int) -> Iterator[int]:
    """The epochs in which a client makes `limit` steps; by steps, it may go over its data again and
    again.
    """
    if training.local_steps is not None:
        return count()
    return iter(range(math.ceil(limit / max(1, num_batches))))


def num_samples(batch: Any) -> int:
    """Samples in a batch: the rows of its first tensor, however deep in lists and mappings."""
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    return len(tensors[0])
