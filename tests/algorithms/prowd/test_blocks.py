"""One block: where it starts, how far it reaches, which rows it looks at."""

from typing import Any

import pytest
import torch

from bhfl.algorithms.prowd.blocks import CHUNK, Arch, Block, _row_statistics
from bhfl.quant import quantize
from bhfl.quant.rounding import levels

ARCHS: list[Arch] = ["conv1d", "pointwise", "mlp_chunk"]


def trained(bits: int, arch: Arch = "conv1d", bound: str = "half_step", size: float = 3.0) -> Block:
    """A block with large random weights everywhere."""
    block = Block(bits, arch=arch, bound=bound)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(bits)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=size, generator=generator)
    return block


def rows(bits: int, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return quantize(w, bits).codes / levels(bits)


@pytest.mark.parametrize("arch", ARCHS)
def test_new_block_returns_exactly_zero_and_draws_nothing_globally(arch: Arch) -> None:
    before = torch.get_rng_state()
    block = Block(3, arch=arch)
    block.reset_(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert not block(rows(3, (5, 100))).any()


@pytest.mark.parametrize("arch", ARCHS)
def test_reset_is_a_function_of_the_generator(arch: Arch) -> None:
    first, second = trained(3, arch), Block(3, arch=arch)
    for block in (first, second):
        block.reset_(torch.Generator().manual_seed(1))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("arch", ARCHS)
def test_half_step_stays_within_half_a_step(arch: Arch, bits: int) -> None:
    residual = trained(bits, arch, size=30.0)(rows(bits, (20, 70)))
    assert 0.4 < float(residual.detach().abs().max()) * levels(bits) < 0.5


def test_half_step_holds_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        residual = trained(8, size=30.0)(rows(8, (20, 70)))
    assert float(residual.detach().abs().max()) * levels(8) < 0.4995


def test_auto_bound_leaves_only_ternary_weights_free() -> None:
    assert [Block(bits).reach < 0.5 for bits in (2, 3, 4, 8, 16)] == [False, True, True, True, True]
    free = trained(2, bound="none", size=30.0)
    assert float(free(rows(2, (20, 70))).detach().abs().max()) > 1


@pytest.mark.parametrize("length", [1, 5, CHUNK, CHUNK + 1, 200])
@pytest.mark.parametrize("arch", ARCHS)
def test_rows_do_not_mix(arch: Arch, length: int) -> None:
    block, z = trained(4, arch, size=1.0), rows(4, (6, length))
    whole = block(z)
    assert whole.shape == z.shape
    torch.testing.assert_close(torch.cat([block(z[:1]), block(z[1:])]), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_rows_of_zeros_stay_finite(arch: Arch) -> None:
    assert trained(8, arch)(torch.zeros(2, 9)).isfinite().all()


@pytest.mark.parametrize("length", [1, 5, 200])
def test_convolutions_are_those_of_their_layers(length: int) -> None:
    block = trained(4, bound="none", size=0.3).double()
    body: Any = block.body
    z = rows(4, (6, length)).double().requires_grad_()
    unit, statistics = _row_statistics(z)
    x = body.first(unit.unsqueeze(1)) + body.statistics(statistics).unsqueeze(2)
    x = body.second(torch.nn.functional.silu(x))
    expected = body.last(torch.nn.functional.silu(x)).squeeze(1) * block.step
    torch.testing.assert_close(block(z), expected)
    leaves = [z, *block.parameters()]
    gradients = torch.autograd.grad(block(z).square().sum(), leaves)
    references = torch.autograd.grad(expected.square().sum(), leaves)
    for found, own in zip(gradients, references, strict=True):
        torch.testing.assert_close(found, own)


def test_pointwise_takes_the_nearest_code() -> None:
    block = trained(3, "pointwise", bound="none")
    z = torch.tensor([[-1.0, 0.0, 0.34, 1 / 3, 1.7]])
    table = block.body.weight / levels(3)  # type: ignore[operator]
    torch.testing.assert_close(block(z), table[torch.tensor([[0, 3, 4, 4, 6]])])  # type: ignore[index]
