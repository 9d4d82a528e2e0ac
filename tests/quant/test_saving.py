"""What autograd saves, as integers: the same results, nearly the same gradients, a third of the bytes."""

import copy
import math
from collections.abc import Callable
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
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(inplace=True))
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.pool(F.relu(x + self.inner(x))).flatten(2).mean(2))


class Tokens(nn.Module):
    """Two layers of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", True) for _ in range(2)))
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
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def held(forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass holds until its backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = forward()
    assert result.requires_grad
    return sum(event.self_cpu_memory_usage for event in found.key_averages())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_is_the_same_and_gradients_are_close(name: str, bits: int, channels_last: bool) -> None:
    model, x = network(name, bits), images(channels_last)
    loss, exact = trained(model, x, lean=False)
    found, gradients = trained(model, x, lean=True)
    assert torch.equal(found, loss)
    assert 0 < (gradients - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    ("name", "bits", "backend"),
    [("convolutions", 8, "integer"), ("attention", 8, "int8"), ("convolutions", 32, "fake"), ("attention", 32, "fake")],
)
def test_a_forward_pass_holds_a_third_of_the_memory(name: str, bits: int, backend: str) -> None:
    x = images().repeat(4, 1, 1, 1)
    plain = network(name)
    whole = held(lambda: plain(x))
    model = network(name, bits, backend)

    def lean() -> Tensor:
        with save_in_int8():
            return model(x)

    assert held(lean) < 0.35 * whole


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


SENSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "a loss": lambda x: F.cross_entropy(x * 20.0, torch.arange(50) % 40),
    "logarithm": lambda x: (x * 1.0).exp().log(),
    "division": lambda x: 1 / (x * 1.0).exp(),
    "square root": lambda x: (x * 1.0).exp().sqrt(),
    "norm": lambda x: F.normalize(x * 1.0),
    "linear weight": lambda x: F.linear(torch.ones(3, 40), x * 1.0),
    "convolution weight": lambda x: F.conv2d(torch.ones(1, 4, 9, 9), (x * 1.0).view(50, 4, 5, 2)),
    "parameter": lambda x: torch.ones(60, 50) @ nn.Parameter(torch.ones(50, 50)) @ x,
}


@pytest.mark.parametrize("function", SENSITIVE.values(), ids=SENSITIVE)
def test_what_small_errors_would_ruin_is_exact(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(3), requires_grad=True)
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
        return torch.autograd.grad(F.layer_norm(x, (512,), weight, eps=1e-12).square().sum(), (x, weight))

    want = found()
    with save_in_int8():
        y = F.layer_norm(x, (512,), weight, eps=1e-12)
    for one, other in zip(torch.autograd.grad(y.square().sum(), (x, weight)), want, strict=True):
        rows = (one - other).view(-1, 512).norm(dim=1) / other.view(-1, 512).norm(dim=1)
        assert (rows < 0.03).all()


@pytest.mark.parametrize("size", [1024, 1025, 5000, (1 << 18) + 77])
@pytest.mark.parametrize("value", [0.0, 3.25, -1e30, 3e38, 1e-40])
def test_constants_and_sizes(size: int, value: float) -> None:
    x = torch.full((size,), value, requires_grad=True)
    with save_in_int8():
        y = x * torch.full((size,), value)
    (found,) = torch.autograd.grad(y, x, torch.ones(size))
    torch.testing.assert_close(found, torch.full((size,), value), rtol=1e-5, atol=1e-37)


def test_ranges_near_the_end_of_float32() -> None:
    x = torch.tensor([-3e38, 3e38, 0.0, 1.0]).repeat(500).requires_grad_()
    with save_in_int8():
        y = x * x.detach()
    (found,) = torch.autograd.grad(y, x, torch.ones(2000))
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
    x, rows = torch.randn(2, 3, 64, 64, requires_grad=True), torch.randn(50_000, 4, requires_grad=True)
    far = torch.randint(0, 50_000, (2000,))
    with save_in_int8():
        y = F.max_pool2d(x, 2).sum() + rows[far].sum()
    found = torch.autograd.grad(y, (x, rows))
    want = torch.autograd.grad(F.max_pool2d(x, 2).sum() + rows[far].sum(), (x, rows))
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_come_back_within_half_a_step(dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 12, 5000, requires_grad=True).to(dtype)
    with save_in_int8():
        y = x * x.flip(0)
    (found,) = torch.autograd.grad(y.sum(), x)
    assert found.dtype == dtype
    assert (found.float() - 2 * x.detach().flip(0).float()).abs().max() <= 2 * (15 / 510 + 12 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_visible(value: float) -> None:
    x = torch.ones(2000)
    x[7] = value
    x.requires_grad_()
    with save_in_int8():
        y = (x * x.flip(0)).sum()
    y.backward()
    assert not cast(Tensor, x.grad).isfinite().all()


def test_float64_is_saved_as_it_is() -> None:
    x = torch.randn(40, 60, dtype=torch.float64, requires_grad=True)

    def leaning(x: Tensor) -> Tensor:
        with save_in_int8():
            return F.layer_norm(x, (60,)).relu()

    assert torch.autograd.gradcheck(leaning, (x,))
    assert torch.autograd.gradgradcheck(leaning, (x,))


def test_views_of_one_element_are_saved_as_they_are() -> None:
    x, y = torch.randn(1, 1000, requires_grad=True), torch.randn(500, 1)

    def lean() -> Tensor:
        with save_in_int8():
            return (x.expand(500, 1000) * y.expand(500, 1000).exp()).sum()

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
def test_compiled_models() -> None:
    model, x = network("convolutions"), images()
    _, exact = trained(model, x, lean=False)
    compiled = torch.compile(model)
    labels = torch.arange(16) % 5
    model.zero_grad()
    with save_in_int8():
        loss = F.cross_entropy(compiled(x), labels)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (found - exact).norm() < 0.02 * exact.norm()
