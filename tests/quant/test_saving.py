"""What autograd saves, as integers: the same results, nearly the same gradients, a third of the
bytes.
"""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from bhfl.quant import quantize_, save_in_int8, seed_


class Block(nn.Module):
    """Convolutions with norms, ReLUs, pooling and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(inplace=True)
        )
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.pool(F.relu(x + self.inner(x))).flatten(2).mean(2))


class Tokens(nn.Module):
    """Two layers of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", True) for _ in range(2))
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.flatten(2).transpose(1, 2).reshape(len(x), -1, 32)).mean(1))


NETWORKS = {"convolutions": Block, "attention": Tokens}


def images(channels_last: bool = False) -> Tensor:
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def network(name: str, bits: int = 32, backend: str = "fake") -> nn.Module:
    torch.manual_seed(0)
    model = quantize_(NETWORKS[name](), bits, backend=backend)
    seed_(model, torch.Generator().manual_seed(0))
    return model


def trained(model: nn.Module, x: Tensor, lean: bool) -> tuple[Tensor, Tensor]:
    """The loss, and all gradients behind one another."""
    model.zero_grad()
    labels = torch.arange(len(x)) % 5
    if lean:
        with save_in_int8():
            loss = F.cross_entropy(model(x), labels)
    else:
        loss = F.cross_entropy(model(x), labels)
    loss.backward()
    return loss.detach(), torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )


def held(forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass holds until its backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = forward()
    assert result.requires_grad
    return sum(event.self_cpu_memory_usage for event in found.key_averages())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_is_the_same_and_gradients_are_close(
    name: str, bits: int, channels_last: bool
) -> None:
    model, x = network(name, bits), images(channels_last)
    loss, exact = trained(model, x, lean=False)
    found, gradients = trained(model, x, lean=True)
    assert torch.equal(found, loss)
    assert 0 < (gradients - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(("bits", "backend"), [(8, "integer"), (32, "fake")])
@pytest.mark.parametrize(("name", "share"), [("convolutions", 0.35), ("attention", 0.5)])
def test_a_forward_pass_holds_less_memory(name: str, share: float, bits: int, backend: str) -> None:
    x = images().repeat(4, 1, 1, 1)
    plain = network(name)
    whole = held(lambda: plain(x))
    model = network(name, bits, backend)

    def lean() -> Tensor:
        with save_in_int8():
            return model(x)

    assert held(lean) < share * whole


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": lambda x: nn.ReLU(inplace=True)(x * 1),
    "functional": F.relu,
    "functional in place": lambda x: F.relu(input=x * 1, inplace=True),
    "torch": torch.relu,
    "torch in place": lambda x: torch.relu_(x * 1),
    "method": lambda x: x.relu(),
    "method in place": lambda x: (x * 1).relu_(),
    "a view in place": lambda x: F.relu((x * 1).flatten(1)[:, 1:], inplace=True),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
@pytest.mark.parametrize("layout", ["rows", "channels_last", "transposed"])
def test_the_gradient_of_a_relu_is_exact(layout: str, relu: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 8, 16, 17)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    x = x.transpose(1, 3) if layout == "transposed" else x
    x[0, 0, 0, :6] = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-42])
    want, found = (x.clone().requires_grad_() for _ in range(2))
    result = relu(want)
    grad = torch.randn_like(result)
    grad[-1, -1] = math.inf
    result.backward(grad)
    with save_in_int8():
        lean = relu(found)
    lean.backward(grad)
    for one, other in ((lean, result), (cast(Tensor, found.grad), want.grad)):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@torch.library.custom_op("bhfl_tests::relu", mutates_args=())
def squared_relu(x: Tensor) -> Tensor:
    return x.clamp(0).square()


squared_relu.register_autograd(
    lambda ctx, g: 2 * g * ctx.saved_tensors[0].clamp(0),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)

SENSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "a loss": lambda x: F.cross_entropy(x * 20.0, torch.arange(200) % 40),
    "logarithm": lambda x: (x * 1.0).exp().log(),
    "division": lambda x: 1 / (x * 1.0).exp(),
    "square root": lambda x: (x * 1.0).exp().sqrt(),
    "norm": lambda x: F.normalize(x * 1.0),
    "linear weight": lambda x: F.linear(torch.ones(3, 40) * x[0], x * 1.0),
    "convolution weight": lambda x: F.conv2d(
        torch.ones(1, 4, 9, 9) * x[0, 0], (x * 1.0).view(200, 4, 5, 2)
    ),
    "parameter": lambda x: nn.Parameter(torch.ones(50, 200)) @ x,
    "data": lambda x: F.linear(torch.randn(300, 40, generator=torch.Generator().manual_seed(1)), x),
    "kinks": lambda x: F.elu(F.relu6(F.leaky_relu(F.hardtanh(F.selu(F.hardswish(x * 4.0))))), 2.0),
    "a function of one's own": lambda x: torch.ops.bhfl_tests.relu(x * 1.0),
    "torch.func": lambda x: torch.vmap(torch.exp)(x * 1.0),
}
"""Functions of a tensor of 200 rows of 40."""


@pytest.mark.parametrize("function", SENSITIVE.values(), ids=SENSITIVE)
def test_what_small_errors_would_ruin_is_exact(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(200, 40, generator=torch.Generator().manual_seed(3), requires_grad=True)
    (want,) = torch.autograd.grad(function(x).square().sum(), x)
    with save_in_int8():
        result = function(x)
    (found,) = torch.autograd.grad(result.square().sum(), x)
    assert torch.equal(found, want)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_rows_of_very_different_range(offset: float) -> None:
    ranges = torch.logspace(-3, 3, 50).unsqueeze(1)
    x = (torch.randn(50, 512) * ranges + offset * ranges).requires_grad_()
    weight = torch.randn(512, requires_grad=True)

    def found() -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            F.layer_norm(x, (512,), weight, eps=1e-12).square().sum(), (x, weight)
        )

    want = found()
    with save_in_int8():
        y = F.layer_norm(x, (512,), weight, eps=1e-12)
    for one, other in zip(torch.autograd.grad(y.square().sum(), (x, weight)), want, strict=True):
        rows = (one - other).view(-1, 512).norm(dim=1) / other.view(-1, 512).norm(dim=1)
        assert (rows < 0.03).all()


@pytest.mark.parametrize("size", [4096, 4097, 5000, (1 << 18) + 77])
@pytest.mark.parametrize("value", [0.0, 3.25, -1e30, 3e38, 1e-40])
def test_constants_and_sizes(size: int, value: float) -> None:
    x = torch.full((size,), value, requires_grad=True)
    with save_in_int8():
        y = x * (x * 1.0)
    (found,) = torch.autograd.grad(y, x, torch.full((size,), 0.5))
    torch.testing.assert_close(found, torch.full((size,), value), rtol=1e-5, atol=1e-37)


def test_ranges_near_the_end_of_float32() -> None:
    x = torch.tensor([-3e38, 3e38, 0.0, 1.0]).repeat(2000).requires_grad_()
    with save_in_int8():
        y = x * (x * 1.0)
    (found,) = torch.autograd.grad(y, x, torch.full((8000,), 0.5))
    assert (found / 2 - x.detach() / 2).abs().max() <= 3e38 / 510 * 1.01


def test_a_relu_holds_a_bit_an_element() -> None:
    x = torch.randn(64, 1000, requires_grad=True)

    def lean() -> Tensor:
        with save_in_int8():
            return (x * 2.0).relu().sum()

    assert held(lean) < 64 * 1000 / 8 + 1000


def test_parameters_are_not_copied() -> None:
    layer, x = nn.Linear(1000, 1000), torch.randn(2, 1000)

    def lean() -> Tensor:
        with save_in_int8():
            return layer(x).sum()

    assert held(lean) < 20_000


def test_indices_are_exact() -> None:
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    rows = torch.randn(50_000, 4, requires_grad=True)
    near, far = torch.randint(-3000, 3000, (2, 5000)), torch.randint(0, 50_000, (5000,))

    def picked() -> Tensor:
        return F.max_pool2d(x, 2).sum() + rows[near].square().sum() + rows[far].sum()

    with save_in_int8():
        y = picked()
    found = torch.autograd.grad(y, (x, rows))
    want = torch.autograd.grad(picked(), (x, rows))
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_come_back_within_half_a_step(dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 12, 5000, requires_grad=True).to(dtype)
    with save_in_int8():
        y = x * x.flip(0)
    (found,) = torch.autograd.grad(y.sum(), x)
    assert found.dtype == dtype
    assert (found.float() - 2 * x.detach().flip(0).float()).abs().max() <= 2 * (
        15 / 510 + 12 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_saved_as_it_is(value: float) -> None:
    x = torch.randn(5000)
    x[7] = value
    x.requires_grad_()
    with save_in_int8():
        y = (x * x.flip(0)).sum()
    y.backward()
    torch.testing.assert_close(x.grad, 2 * x.detach().flip(0), rtol=0, atol=0, equal_nan=True)


def test_masked_attention_has_finite_gradients() -> None:
    layer, x = nn.MultiheadAttention(64, 1, batch_first=True), torch.randn(1, 64, 64)
    mask = torch.full((64, 64), -math.inf).triu(1)
    want = torch.autograd.grad(
        layer(x, x, x, attn_mask=mask, need_weights=False)[0].square().sum(), layer.out_proj.weight
    )
    with save_in_int8():
        y = layer(x, x, x, attn_mask=mask, need_weights=False)[0].square().sum()
    found = torch.autograd.grad(y, layer.out_proj.weight)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


def test_float64_is_saved_as_it_is() -> None:
    def leaning(x: Tensor) -> Tensor:
        with save_in_int8():
            return F.layer_norm(x * 1.0, (60,)).relu().square()

    large, small = (torch.randn(n, 60, dtype=torch.float64, requires_grad=True) for n in (100, 4))
    (want,) = torch.autograd.grad(F.layer_norm(large, (60,)).relu().square().sum(), large)
    assert torch.equal(torch.autograd.grad(leaning(large).sum(), large)[0], want)
    assert torch.autograd.gradcheck(leaning, (small,))
    assert torch.autograd.gradgradcheck(leaning, (small,))


def test_gradients_of_gradients() -> None:
    def penalty(lean: bool) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1)
        )
        x = torch.randn(100, 64, requires_grad=True)
        with save_in_int8() if lean else nullcontext():
            (inner,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
            loss = (inner.norm(dim=1) - 1).square().mean()
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(net.parameters())[::2])]
        )

    want, found = penalty(False), penalty(True)
    assert 0 < (found - want).norm() < 0.02 * want.norm()


def test_rows_and_columns_of_a_norm_have_their_own_ranges() -> None:
    torch.manual_seed(0)
    scales = torch.randn(500, 1).mul(2).exp()
    data = (torch.randn(500, 32) * scales).requires_grad_()
    columns = (torch.randn(500, 16) * torch.logspace(-3, 5, 16)).requires_grad_()
    pixels = (torch.randn(8, 16, 8, 8) * torch.logspace(-3, 3, 16).view(-1, 1, 1)).requires_grad_()
    batch_norm, image_norm = nn.BatchNorm1d(16, 1e-12), nn.BatchNorm2d(16, 1e-12)

    def norms() -> list[Tensor]:
        last = (pixels * 1.0).to(memory_format=torch.channels_last)
        return [
            F.rms_norm(data * 1.0, (32,), torch.ones(32)),
            batch_norm(columns * 1.0),
            image_norm(pixels * 1.0),
            image_norm(last),
        ]

    with save_in_int8():
        lean = norms()
    for one, other, x in zip(lean, norms(), (data, columns, pixels, pixels), strict=True):
        weight = torch.randn_like(one)
        found, want = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (one, other))
        found, want = (
            grad if x is data else grad.transpose(0, 1).flatten(1) for grad in (found, want)
        )
        assert ((found - want).norm(dim=1) < 0.03 * want.norm(dim=1)).all()


@pytest.mark.parametrize(
    "memory", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 2, 1, 3), (2, 3, 0, 1), (1, 0, 2, 3)]
)
def test_samples_of_a_norm_have_their_own_ranges(memory: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    scales = torch.logspace(-3, 3, 64).view(-1, 1, 1, 1)
    x = (torch.randn(64, 16, 8, 8) * scales).permute(memory).contiguous()
    x = x.permute([memory.index(i) for i in range(4)]).requires_grad_()

    def norms() -> list[Tensor]:
        return [
            F.group_norm(x * 1.0, 4, eps=1e-12),
            F.instance_norm(x * 1.0, eps=1e-12),
            F.layer_norm((x * 1.0).permute(0, 2, 3, 1), (16,), eps=1e-12),
        ]

    with save_in_int8():
        lean = norms()
    for one, other in zip(lean, norms(), strict=True):
        weight = torch.randn_like(one)
        found, want = (
            torch.autograd.grad((y * weight).sum(), x)[0].flatten(1) for y in (one, other)
        )
        assert ((found - want).norm(dim=1) < 0.03 * want.norm(dim=1)).all()


def test_what_was_changed_in_place_is_saved_anew() -> None:
    x = torch.randn(100, 100, requires_grad=True)
    with save_in_int8():
        y = x * 1.0
        first = (y * y).sum()
        with torch.no_grad():
            y.mul_(10)
        second = (y * y).sum()
    for result, factor in ((first, 2.0), (second, 20.0)):
        (found,) = torch.autograd.grad(result, x, retain_graph=True)
        torch.testing.assert_close(found, factor * x.detach(), rtol=0, atol=factor * 0.02)


def test_given_indices_are_not_copied() -> None:
    rows, far = torch.randn(100, 1, requires_grad=True), torch.randint(0, 100, (10_000,))

    def lean() -> Tensor:
        with save_in_int8():
            return rows[far].sum()

    assert held(lean) < 1000


def test_sparse_products() -> None:
    sparse = torch.eye(100).to_sparse().requires_grad_()
    x = torch.randn(100, 100, requires_grad=True)
    with save_in_int8():
        y = torch.sparse.mm(sparse, x * 1.0).square().sum()
    torch.testing.assert_close(torch.autograd.grad(y, x)[0], 2 * x.detach(), rtol=0, atol=0)


def test_losses_of_probabilities() -> None:
    logits, hits = (torch.randn(100, 50) * 6).requires_grad_(), torch.rand(100, 50).round()
    losses: list[Callable[[], Tensor]] = [
        lambda: F.binary_cross_entropy((logits * 1.0).sigmoid(), hits),
        lambda: F.nll_loss(((logits * 1.0).softmax(1) + 1e-8).log(), torch.arange(100) % 50),
    ]
    for loss in losses:
        with save_in_int8():
            lean = loss()
        (found,), (want,) = torch.autograd.grad(lean, logits), torch.autograd.grad(loss(), logits)
        assert torch.equal(found, want)


def test_what_many_save_is_held_once() -> None:
    x, layers = torch.randn(100, 1000, requires_grad=True), [nn.Linear(1000, 4) for _ in range(8)]

    def lean() -> Tensor:
        with save_in_int8():
            y = x * 2.0
            return torch.stack([layer(y).sum() for layer in layers]).sum()

    assert held(lean) < 1.1 * 100_000


def test_a_graph_that_is_dropped_frees_all() -> None:
    x = torch.randn(100, 1000, requires_grad=True)

    def dropped() -> None:
        with save_in_int8():
            (x.exp().sqrt().log_softmax(1) * x.relu()).softmax(1)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        dropped()
    assert sum(event.self_cpu_memory_usage for event in found.key_averages()) < 1000


def test_changes_in_place_of_what_is_saved_as_it_is_are_refused() -> None:
    x = torch.randn(100, requires_grad=True)
    with save_in_int8():
        y = x.exp()
        z = (y * 1).sum()
    with torch.no_grad():
        y.mul_(100)
    with pytest.raises(RuntimeError, match=r"a tensor of shape \[100\] .* was changed in place"):
        z.backward()


def test_views_of_one_element_are_saved_as_they_are() -> None:
    x, y = torch.randn(1, 1000, requires_grad=True), torch.randn(500, 1, requires_grad=True)

    def lean() -> Tensor:
        with save_in_int8():
            return (x.expand(500, 1000) * (y.expand(500, 1000) + 1.0)).sum()

    assert held(lean) < 1.3 * 500_000


def test_it_ends_with_its_block() -> None:
    x = torch.randn(100, 100, requires_grad=True)
    with pytest.raises(RuntimeError, match="on purpose"), save_in_int8():
        raise RuntimeError("on purpose")
    (x * x).sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())  # type: ignore[arg-type]
    with save_in_int8(), save_in_int8():
        y = x.relu()
    y.sum().backward()
    with save_in_int8(), torch.no_grad():
        assert not x.relu().requires_grad


def test_within_autocast_and_around_checkpoints() -> None:
    model, x = network("convolutions"), images()
    with torch.autocast("cpu", torch.bfloat16):
        _, want = trained(model, x, lean=False)
        _, found = trained(model, x, lean=True)
    assert (found - want).norm() < 0.03 * want.norm()
    again = copy.deepcopy(model)
    inner = again.inner.forward
    again.inner.forward = lambda x: checkpoint(inner, x, use_reentrant=False)  # type: ignore[method-assign]
    _, exact = trained(model, x, lean=False)
    _, found = trained(again, x, lean=True)
    assert (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.slow
def test_compiled_models_are_whole_and_exact() -> None:
    model, x = network("convolutions"), images()
    _, exact = trained(model, x, lean=False)
    compiled = torch.compile(model, fullgraph=True)
    labels = torch.arange(16) % 5
    model.zero_grad()
    with save_in_int8():
        loss = F.cross_entropy(compiled(x), labels)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5)
