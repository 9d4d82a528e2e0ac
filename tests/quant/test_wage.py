"""The wage rule with strict storage and plain SGD is WAGE, in units of what the layer multiplies
with.
"""

import copy

import torch
from torch import Tensor, nn

from bhfl.quant import (
    BitSpec,
    QuantizedTensor,
    begin_round_,
    quantize_,
    quantized_state,
    seed_,
    store_,
    wage_alpha,
)

ALPHA = wage_alpha(600, 2)
STEP = 2.0**-7


def power_of_two_near(x: Tensor) -> Tensor:
    return 2 ** x.abs().max().log2().round()


def test_training_follows_the_published_update_rule() -> None:
    """Weights w in [-1 + 2**-7, 1 - 2**-7], forward q(w) / alpha, w -= 2**-7 * SR(lr * g /
    shift(g)), then clipped.
    """
    assert ALPHA > 1
    torch.manual_seed(0)
    spec = BitSpec(weights=2, gradients=8, storage=8, range_rule="wage")
    layer = quantize_(nn.Linear(600, 5, bias=False), spec)
    # the whole range, so that some weights are clipped
    nn.init.uniform_(layer.weight, -1 / ALPHA, 1 / ALPHA)
    begin_round_(layer)
    seed_(layer, torch.Generator())
    published = layer.weight.detach() * ALPHA
    rate = 8
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate * STEP)
    for step in range(5):
        x, target = torch.randn(16, 600), torch.randn(16, 5)
        optimizer.zero_grad()
        (layer(x) - target).square().sum().backward()
        optimizer.step()
        store_(layer, torch.Generator().manual_seed(step))

        forward = ((published / 0.5).round().clamp(-1, 1) * 0.5 / ALPHA).requires_grad_()
        (nn.functional.linear(x, forward) - target).square().sum().backward()
        assert forward.grad is not None
        grad = forward.grad / ALPHA  # straight through, also where two bits saturate
        # in steps
        exact = (published / STEP - rate * grad / power_of_two_near(grad)).clamp(-127, 127)
        published = layer.weight.detach() * ALPHA
        stored = published / STEP
        assert torch.equal(stored, stored.round())
        assert (stored - exact).abs().max() < 1
        assert (stored - exact).sum().abs() < 5 * (0.25 * exact.numel()) ** 0.5
    assert published.abs().max() == 1 - STEP
    codes = quantized_state(layer)["weight"]
    assert isinstance(codes, QuantizedTensor)
    assert codes.scale == 0.5 / ALPHA
    assert torch.equal(codes.codes.float(), (published / 0.5).round().clamp(-1, 1))


def test_gradients_are_normalised_by_the_shift_and_alpha() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(600, 5)
    layer = quantize_(copy.deepcopy(plain), "wage2888")
    begin_round_(layer)
    seed_(layer, torch.Generator())
    layer(torch.randn(7, 600)).square().sum().backward()
    assert layer.weight.grad is not None
    largest = layer.weight.grad.abs().max() * ALPHA
    assert 2**-0.5 <= largest <= 2**0.5


def test_errors_lie_on_the_fixed_grid_times_their_shift() -> None:
    layer = quantize_(nn.Linear(4, 3), "wage2888")
    seed_(layer, torch.Generator())
    seen: list[Tensor] = []
    y = layer(torch.randn(7, 4))
    y.register_hook(seen.append)
    error = torch.randn(7, 3)
    y.backward(error)
    codes = seen[0] / (power_of_two_near(error) * STEP)
    assert torch.equal(codes, codes.round())
    assert ((codes - (error / (power_of_two_near(error) * STEP)).clamp(-127, 127)).abs() < 1).all()


def test_strict_grid_is_a_constant_of_the_architecture() -> None:
    scales = []
    for seed in range(2):
        torch.manual_seed(seed)
        layer = quantize_(nn.Linear(600, 5), "wage2888")
        begin_round_(layer)
        scales.append((float(layer.storage_scale), float(layer.fixed_scale)))  # type: ignore[arg-type]
    assert scales[0] == scales[1] == (STEP / ALPHA, 0.5 / ALPHA)
