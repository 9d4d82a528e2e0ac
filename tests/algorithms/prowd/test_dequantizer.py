"""The chain of blocks: identity until trained, learns where there is something to learn, disturbs
nothing.
"""

import math
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from bhfl.algorithms.prowd.blocks import Arch, Block
from bhfl.algorithms.prowd.dequantizer import ProgressiveDequantizer
from bhfl.algorithms.prowd.pairs import WeightPairs
from bhfl.quant import BitSpec, QuantizedTensor, quantize

ARCHS: list[Arch] = ["conv1d", "pointwise", "mlp_chunk"]
LADDER = (2, 4, 8, 32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(bits: int) -> dict[str, Tensor | QuantizedTensor]:
    """Every shape that a model sends."""
    shapes = {
        "conv": (6, 3, 3, 3),
        "linear": (5, 70),
        "embedding": (9, 4),
        "depthwise": (7, 1, 3, 3),
        "odd": (1, 1),
    }
    rule = "mse" if bits <= 4 else "absmax"
    sent: dict[str, Tensor | QuantizedTensor] = {
        name: quantize(torch.randn(shape, generator=generator(i)), bits, range_rule=rule)  # type: ignore[arg-type]
        for i, (name, shape) in enumerate(shapes.items())
    }
    sent["channels"] = quantize(
        torch.randn(4, 5, 2, generator=generator()), bits, granularity="channel"
    )
    sent["zeros"] = quantize(torch.zeros(3, 4), bits)
    sent["bias"] = torch.randn(6, generator=generator())
    return sent


def disturb_(dequantizer: ProgressiveDequantizer, size: float = 1.0) -> ProgressiveDequantizer:
    """Large random weights instead of the identity."""
    for parameter in dequantizer.parameters():
        nn.init.normal_(parameter, std=size, generator=generator())
    return dequantizer


def autoregressive(rows: int, length: int, rho: float, seed: int) -> Tensor:
    noise = torch.randn(length, rows, generator=generator(seed))
    columns = [noise[0]]
    for i in range(1, length):
        columns.append(rho * columns[-1] + math.sqrt(1 - rho**2) * noise[i])
    return torch.stack(columns, 1)


def train_(dequantizer: ProgressiveDequantizer, pairs: WeightPairs) -> list[dict[str, Tensor]]:
    """The loop of an engine: no trainer, the metrics come back."""
    optimizer, history = dequantizer.configure_optimizers(), []
    for step, batch in enumerate(pairs.train_dataloader()):
        history.append(dequantizer.training_step(batch, step))
        optimizer.zero_grad()
        history[-1]["loss"].backward()
        optimizer.step()
    return history


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4 * 16, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.norm(self.conv(x)).relu().flatten(1))
        return out


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def sized(pairs: WeightPairs, num_elements: int, holdout: float = 0.1) -> WeightPairs:
    pairs.num_elements, pairs.holdout = num_elements, holdout
    return pairs


def network_pairs(
    net: nn.Module, bits: list[int], num_steps: int = 2, ladder: tuple[int, ...] = LADDER
) -> WeightPairs:
    specs = [BitSpec.parse(width) for width in bits]
    return sized(WeightPairs([snapshot(net)], specs, ladder, num_steps=num_steps), 1024)


# ---- raising ----


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("bits", LADDER[:-1])
def test_untrained_is_the_identity_to_the_bit(arch: Arch, bits: int) -> None:
    sent = tensors(bits)
    raised = ProgressiveDequantizer(LADDER, arch=arch)(sent)
    assert list(raised) == list(sent)
    for name, tensor in sent.items():
        if isinstance(tensor, QuantizedTensor):
            assert torch.equal(
                raised[name].view(torch.int32), tensor.dequantize().view(torch.int32)
            )
        else:
            assert raised[name] is tensor


@pytest.mark.parametrize("arch", ARCHS)
def test_shapes_and_row_batches(arch: Arch) -> None:
    sent = tensors(4)
    whole = disturb_(ProgressiveDequantizer(LADDER, arch=arch), 0.3)
    in_parts = disturb_(ProgressiveDequantizer(LADDER, arch=arch), 0.3)
    in_parts.max_elements = 80
    for name, tensor in whole(sent).items():
        original = sent[name]
        assert (
            tensor.shape
            == (original.codes if isinstance(original, QuantizedTensor) else original).shape
        )
        torch.testing.assert_close(in_parts(sent)[name], tensor, rtol=1e-5, atol=1e-6)
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("ladder", [(3, 8, 32), (5, 6, 7, 8), (8, 16, 32), (12, 32), (16, 32)])
def test_half_step_keeps_every_code(ladder: tuple[int, ...], arch: Arch) -> None:
    bits = ladder[0]
    dequantizer = disturb_(ProgressiveDequantizer(ladder, arch=arch, bound="half_step"), size=20.0)
    for name, tensor in tensors(bits).items():
        if isinstance(tensor, QuantizedTensor):
            raised = dequantizer({name: tensor})[name]
            assert torch.equal(quantize(raised, bits, scale=tensor.scale).codes, tensor.codes)
            moved = (raised - tensor.dequantize()).flatten(1) / tensor.scale.view(-1, 1)
            assert float(moved.abs().max()) < 0.5 or name == "zeros"


def test_every_code_of_sixteen_bits_is_kept() -> None:
    codes = torch.arange(-32767, 32768, dtype=torch.int16).view(5, -1)
    dequantizer = disturb_(ProgressiveDequantizer((16, 32)), size=20.0)
    for scale in torch.rand(20, generator=generator()):
        raised = dequantizer({"w": QuantizedTensor(codes, scale, 16)})["w"]
        assert torch.equal(quantize(raised, 16, scale=scale).codes, codes)


def test_unbounded_blocks_move_ternary_weights_further() -> None:
    tensor = quantize(torch.randn(8, 40, generator=generator()), 2, range_rule="mse")
    raised = disturb_(ProgressiveDequantizer((2, 32)), size=20.0)({"w": tensor})["w"]
    assert float((raised - tensor.dequantize()).abs().max() / tensor.scale) > 1


def test_top_of_the_ladder_and_empty_tensors_are_only_dequantised() -> None:
    dequantizer = disturb_(ProgressiveDequantizer((2, 8)))
    top = quantize(torch.randn(3, 4, generator=generator()), 8)
    empty = quantize(torch.zeros(0, 4), 2)
    raised = dequantizer({"top": top, "empty": empty})
    assert torch.equal(raised["top"], top.dequantize())
    assert raised["empty"].shape == (0, 4)


def test_width_off_the_ladder() -> None:
    with pytest.raises(
        ValueError, match=r"'conv' has 3 bits, which is not on the ladder \(2, 4, 8, 32\)"
    ):
        ProgressiveDequantizer(LADDER)(tensors(3))


# ---- learning ----

THREE = BitSpec(weights=3, range_rule="absmax")


@pytest.mark.parametrize("bound", ["half_step", "none"])
def test_learns_what_correlated_rows_say(bound: Any) -> None:
    weights = {"w": autoregressive(400, 128, rho=0.95, seed=1)}
    pairs = sized(WeightPairs([weights], [THREE], (3, 32), num_steps=40), 2048, 0.2)
    dequantizer = ProgressiveDequantizer((3, 32), lr=1e-2, bound=bound)
    history = train_(dequantizer, pairs)
    metrics = dequantizer.validation_step(next(iter(pairs.val_dataloader())), 0)
    assert metrics["dequantizer/val_recon"] < 0.75 * metrics["dequantizer/val_recon_identity"]
    assert dequantizer.is_better_than_identity(pairs.val_dataloader())
    assert torch.equal(history[0]["dequantizer/recon"], history[0]["dequantizer/recon_identity"])
    fresh = {"w": autoregressive(50, 128, rho=0.95, seed=2)}
    low = quantize(fresh["w"], 3)
    raised = dequantizer({"w": low})["w"]
    assert (raised - fresh["w"]).abs().mean() < 0.75 * (low.dequantize() - fresh["w"]).abs().mean()


def test_does_no_harm_where_nothing_can_be_learnt() -> None:
    weights = {"w": torch.randn(200, 128, generator=generator(3))}
    pairs = sized(WeightPairs([weights], [BitSpec(weights=8)], (8, 32), num_steps=60), 2048, 0.2)
    dequantizer = ProgressiveDequantizer((8, 32), lr=1e-2)
    train_(dequantizer, pairs)
    metrics = dequantizer.validation_step(next(iter(pairs.val_dataloader())), 0)
    assert metrics["dequantizer/val_recon"] < 1.01 * metrics["dequantizer/val_recon_identity"]


@pytest.mark.parametrize("arch", ["pointwise", "mlp_chunk"])
def test_other_architectures_learn(arch: Arch) -> None:
    weights = {"w": autoregressive(400, 128, rho=0.99, seed=1)}
    pairs = sized(WeightPairs([weights], [THREE], (3, 32), num_steps=60), 4096)
    dequantizer = ProgressiveDequantizer((3, 32), arch=arch, lr=1e-2)
    train_(dequantizer, pairs)
    metrics = dequantizer.validation_step(next(iter(pairs.val_dataloader())), 0)
    assert metrics["dequantizer/val_recon"] < 0.98 * metrics["dequantizer/val_recon_identity"]


@pytest.mark.parametrize("teacher_forcing", [0.0, 0.5])
def test_without_teacher_forcing_the_blocks_see_each_other(teacher_forcing: float) -> None:
    pairs = network_pairs(SmallNet(), [2])
    batch = next(iter(pairs.train_dataloader()))
    forced = disturb_(ProgressiveDequantizer(LADDER), 0.1)
    free = disturb_(ProgressiveDequantizer(LADDER, teacher_forcing=teacher_forcing), 0.1)
    recon = [m.training_step(batch, 1)["dequantizer/recon"] for m in (forced, free, free)]
    assert not torch.equal(recon[0], recon[1])
    assert torch.equal(recon[1], recon[2])


def test_loss_is_what_the_formula_says() -> None:
    batch = next(iter(network_pairs(SmallNet(), [8]).train_dataloader()))
    for loss in ("mean_norm", "sum"):
        dequantizer = disturb_(ProgressiveDequantizer(LADDER, loss=loss), 0.1)  # type: ignore[arg-type]
        block = dequantizer.blocks[2]
        errors = [
            (rows["levels"][1] - rows["levels"][0] - block(rows["levels"][0])).abs()
            * (rows["ranges"] if loss == "sum" else 127.0)
            for rows in batch["rows"]
        ]
        flat = torch.cat([error.flatten() for error in errors])
        expected = flat.sum() if loss == "sum" else flat.mean()
        torch.testing.assert_close(dequantizer.training_step(batch, 1)["loss"], expected)


# ---- distillation ----


@pytest.mark.parametrize("distill_elements", [1 << 18, 100])
def test_distillation_reaches_every_block_and_touches_nothing_else(distill_elements: int) -> None:
    net = SmallNet().train()
    net.norm.eval()
    inputs, before = torch.randn(6, 1, 6, 6, generator=generator()), snapshot(net)
    pairs = network_pairs(net, [2])
    dequantizer = ProgressiveDequantizer(LADDER)
    dequantizer.distill_elements, dequantizer.distill_every = distill_elements, 1
    dequantizer.set_probe(net, inputs)
    train_(dequantizer, pairs)  # the last layer of a new block is zero, and only it has a gradient
    batch = next(iter(pairs.train_dataloader()))
    weights = {name: tensor.clone() for name, tensor in batch["weights"].items()}
    dequantizer.zero_grad()
    dequantizer._distillation(net, inputs, batch, generator()).backward()  # type: ignore[no-untyped-call]
    for block in dequantizer.blocks:
        gradients = [parameter.grad for parameter in block.parameters()]
        assert all(
            gradient is not None and gradient.isfinite().all() and gradient.any()
            for gradient in gradients
        )
    assert same(snapshot(net), before)
    assert same(dict(batch["weights"]), weights)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    assert not net.norm.training
    assert not any("conv" in name for name in dequantizer.state_dict())


def test_distillation_is_minus_the_cosine_of_the_logits() -> None:
    net, inputs = SmallNet().eval(), torch.randn(6, 1, 6, 6, generator=generator())
    pairs = network_pairs(net, [4])
    dequantizer = ProgressiveDequantizer(LADDER, distill_weight=0.5)
    dequantizer.set_probe(net, inputs)
    first, second = (
        dequantizer.training_step(next(iter(pairs.train_dataloader())), step) for step in (0, 1)
    )
    student = SmallNet().eval()
    spec = BitSpec.parse(4)
    with torch.no_grad():
        student.conv.weight.copy_(
            quantize(net.conv.weight, 4, range_rule=spec.range_rule).dequantize()
        )
        student.linear.weight.copy_(
            quantize(net.linear.weight, 4, range_rule=spec.range_rule).dequantize()
        )
        expected = -torch.cosine_similarity(student(inputs), net(inputs), dim=1).mean()
    torch.testing.assert_close(first["dequantizer/distill"], expected)
    torch.testing.assert_close(first["loss"], first["dequantizer/recon"] + 0.5 * expected)
    assert "dequantizer/distill" not in second


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_rows_without_a_gradient_are_raised_too(granularity: Any, share: float) -> None:
    dequantizer = disturb_(ProgressiveDequantizer(LADDER), 0.3)
    weights = torch.randn(10, 4, 3, 3, generator=generator())
    tensor = quantize(weights, 4, granularity=granularity)
    raised = dequantizer._raise_in_part(tensor, share, generator())
    torch.testing.assert_close(raised, dequantizer({"w": tensor})["w"].view_as(raised))
    (gradient,) = torch.autograd.grad(raised[9].sum(), dequantizer.blocks[1].body.last.bias)  # type: ignore[union-attr,arg-type]
    last = int(torch.randperm(10, generator=generator()).argmax())
    assert bool(gradient.any()) == (last < math.ceil(10 * share))


def test_the_teacher_runs_once_for_each_state_and_probe() -> None:
    net, inputs = SmallNet().eval(), torch.randn(6, 1, 6, 6, generator=generator())
    runs = []
    net.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    dequantizer = ProgressiveDequantizer(LADDER)
    for states in ([snapshot(net)], [snapshot(SmallNet()), snapshot(net)]):
        pairs = WeightPairs(states, [BitSpec.parse(4)], LADDER, num_steps=9)
        dequantizer.set_probe(net, inputs)
        runs.clear()
        for batch in pairs.train_dataloader():
            dequantizer.training_step(batch, 0)
        assert runs.count(True) == 9
        assert runs.count(False) == len(states)
    dequantizer.set_probe(net, 2 * inputs)
    first = dequantizer.training_step(batch, 0)["dequantizer/distill"]
    other = ProgressiveDequantizer(LADDER)
    other.set_probe(net, 2 * inputs)
    assert torch.equal(first, other.training_step(batch, 0)["dequantizer/distill"])


# ---- the guard ----


def test_guard_refuses_what_is_worse_than_the_identity() -> None:
    pairs = network_pairs(SmallNet(), [2, 8])
    dequantizer = ProgressiveDequantizer(LADDER)
    assert dequantizer.is_better_than_identity(pairs.val_dataloader())
    disturb_(dequantizer, 5.0)
    assert not dequantizer.is_better_than_identity(pairs.val_dataloader())
    with torch.no_grad():
        next(dequantizer.parameters()).fill_(math.nan)
    assert not dequantizer.is_better_than_identity(pairs.val_dataloader())
    dequantizer.reset_(0)
    assert dequantizer.is_better_than_identity(pairs.val_dataloader())
    assert same(dequantizer.state_dict(), ProgressiveDequantizer(LADDER).state_dict())


# ---- under a trainer ----


def trainer(path: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=path, enable_checkpointing=False, **quiet
    )


def test_trains_unchanged_under_a_trainer(tmp_path: Any) -> None:
    net = SmallNet()
    pairs = network_pairs(net, [2, 8], num_steps=6)
    by_hand, by_trainer = ProgressiveDequantizer(LADDER), ProgressiveDequantizer(LADDER)
    for dequantizer in (by_hand, by_trainer):
        dequantizer.set_probe(net, torch.randn(6, 1, 6, 6, generator=generator()))
    last = train_(by_hand, pairs)[-1]
    fit = trainer(tmp_path)
    fit.fit(by_trainer, datamodule=pairs)
    assert same(by_trainer.state_dict(), by_hand.state_dict())
    assert fit.callback_metrics["dequantizer/recon"] == last["dequantizer/recon"]
    names = {"recon", "recon_identity", "distill", "val_recon", "val_recon_identity"}
    assert names <= {key.removeprefix("dequantizer/") for key in fit.callback_metrics}


def test_checkpoint_brings_the_arguments(tmp_path: Any) -> None:
    dequantizer = ProgressiveDequantizer((3, 32), arch="pointwise")
    fit = trainer(tmp_path)
    fit.fit(dequantizer, network_pairs(SmallNet(), [3], num_steps=1, ladder=(3, 32)))
    fit.save_checkpoint(tmp_path / "d.ckpt")
    loaded = ProgressiveDequantizer.load_from_checkpoint(tmp_path / "d.ckpt")
    assert loaded.bits == (3, 32)
    assert same(loaded.state_dict(), dequantizer.state_dict())


# ---- what it refuses ----


@pytest.mark.parametrize(
    "bits", [(8,), (), (8, 2), (2, 2, 8), (1, 8), (8, 17), (8, 64), (2.0, 8), (True, 8)]
)
def test_ladder_errors(bits: Any) -> None:
    with pytest.raises(
        ValueError, match=r"bits must be at least two ascending widths of 2\.\.16 or 32, got \("
    ):
        ProgressiveDequantizer(bits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"lr must be positive and finite, got 0\.0"),
        ({"lr": math.inf}, "lr must be positive and finite, got inf"),
        ({"teacher_forcing": 1.5}, r"teacher_forcing must be in \[0, 1\], got 1\.5"),
        ({"distill_weight": -1.0}, r"distill_weight must be finite and at least 0, got -1\.0"),
        ({"distill_weight": math.nan}, "distill_weight must be finite and at least 0, got nan"),
        ({"loss": "l2"}, "loss must be one of mean_norm, sum, got 'l2'"),
        ({"arch": "mlp"}, "arch must be one of conv1d, pointwise, mlp_chunk, got 'mlp'"),
    ],
)
def test_argument_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgressiveDequantizer(LADDER, **options)


def test_blocks_are_one_for_each_step() -> None:
    blocks = list(ProgressiveDequantizer((2, 8, 12, 32)).blocks)
    assert all(isinstance(block, Block) for block in blocks)
    assert [round(1 / block.step) for block in blocks] == [1, 127, 2047]  # type: ignore[union-attr,arg-type]
