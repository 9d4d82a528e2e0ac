"""What people do with layers of torch, done with quantised ones, by each backend."""

import copy
import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from bhfl.quant import (
    BackendWarning,
    QuantConvTranspose2d,
    QuantLinear,
    backend_choices,
    dequantize_,
    fake_quantize,
    fake_quantize_activations,
    quantize_,
    quantized_state,
    reestimate_batchnorm_,
    seed_,
    set_backend_,
    set_spec_,
    store_,
)
from bhfl.quant.backends import auto
from bhfl.quant.backends.linear import int_mm_fault
from tests.processes import METHOD

BACKENDS = ("fake", "int8", "integer")


def model(backend: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))
    seed_(quantize_(net, 8, backend=backend), torch.Generator().manual_seed(1))
    return net


def x() -> Tensor:
    return torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def gradients(net: nn.Module, forward: Any) -> list[Tensor]:
    net.zero_grad()
    seed_(net, torch.Generator().manual_seed(2))
    forward(x()).square().sum().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile(backend: str) -> None:
    net = model(backend)
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(compiled(x()), net(x()))
    for a, b in zip(gradients(net, compiled), gradients(net, net), strict=True):
        assert torch.equal(a, b)


def exports() -> list[Any]:
    """Each backend, and the strict way for one of them; the others strictly as slow ones."""
    found = []
    for backend, strict in product(BACKENDS, [False, True]):
        slow = strict and backend != BACKENDS[0]
        found.append(pytest.param(backend, strict, marks=pytest.mark.slow if slow else ()))
    return found


@pytest.mark.parametrize(("backend", "strict"), exports())
def test_export_computes_with_the_same_codes(backend: str, strict: bool) -> None:
    net = model(backend).eval()
    program = torch.export.export(net, (x(),), strict=strict)
    torch.testing.assert_close(program.module()(x()), net(x()))
    assert torch.equal(program.module()(x()), set_backend_(net, "fake")(x()))


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_auto_in_a_process_that_has_computed_nothing(
    strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a machine whose processor has products of int8 codes, whatever this one has
    monkeypatch.setattr(auto, "TABLES", {"cpu": {("int8", "linear"): 192}})
    layer = quantize_(nn.Sequential(nn.Linear(256, 256)), 8, backend="auto")
    int_mm_fault.cache_clear()
    torch.export.export(layer, (torch.randn(2, 256),), strict=strict)
    assert backend_choices(layer) == {"0": "int8"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_to_bfloat16(backend: str) -> None:
    net = model(backend)
    exact = gradients(net, net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x()).dtype == torch.bfloat16
        for a, b in zip(gradients(net, lambda t: net(t).float()), exact, strict=True):
            assert (a - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_weights_get_the_sum_of_their_gradients(backend: str) -> None:
    torch.manual_seed(0)
    tied, apart = (
        nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)) for _ in range(2)
    )
    tied[1].weight = tied[0].weight
    for layer in apart:
        layer.load_state_dict({"weight": tied[0].weight.detach()})
    found = []
    for net in (tied, apart):
        seed_(quantize_(net, 8, backend=backend), torch.Generator().manual_seed(1))
        net(torch.randn(5, 8, generator=torch.Generator().manual_seed(3))).square().sum().backward()
        found.append(sum(p.grad for p in net.parameters()))  # type: ignore[misc]
    assert tied[0].weight is tied[1].weight
    torch.testing.assert_close(found[0], found[1])


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("quantized_first", [True, False])
def test_parametrizations(backend: str, quantized_first: bool) -> None:
    torch.manual_seed(0)
    layer: nn.Module = nn.Linear(6, 4)
    original = layer.weight
    if quantized_first:
        quantize_(layer, 8)
    parametrize.register_parametrization(layer, "weight", Doubled())
    keys = list(layer.state_dict())
    seed_(quantize_(layer, 8, backend=backend), torch.Generator())
    assert isinstance(layer, QuantLinear)
    assert list(layer.state_dict()) == list(quantized_state(layer)) == keys
    data = torch.randn(3, 6)
    expected = nn.functional.linear(
        fake_quantize_activations(data, 8), fake_quantize(2 * original.detach(), 8), layer.bias
    )
    torch.testing.assert_close(layer(data), expected)
    layer(data).sum().backward()
    assert original.grad is not None
    torch.testing.assert_close(copy.deepcopy(layer)(data), layer(data))
    for action in (dequantize_, lambda net: store_(_strict(net), torch.Generator())):
        with pytest.raises(
            ValueError, match="must set the weight, but it is parametrized: call remove_param"
        ):
            action(layer)
    dequantize_(set_spec_(layer, 32))
    assert type(layer).__mro__[1] is nn.Linear
    assert torch.equal(layer(data), nn.functional.linear(data, 2 * original, layer.bias))


def _strict(net: nn.Module) -> nn.Module:
    set_spec_(net, "strict8")
    net.storage_scale = torch.ones(())
    return net


def test_transposed_convolutions() -> None:
    torch.manual_seed(0)
    plain = nn.ConvTranspose2d(3, 4, 3, stride=2)
    layer = quantize_(copy.deepcopy(plain), 16)
    assert isinstance(layer, QuantConvTranspose2d)
    data = torch.randn(2, 3, 4, 5)
    for size in (None, [10, 12]):
        torch.testing.assert_close(layer(data, size), plain(data, size), rtol=1e-3, atol=1e-3)
        assert torch.equal(set_spec_(copy.deepcopy(layer), 32)(data, size), plain(data, size))
    assert quantized_state(quantize_(layer, {"weights": 8, "granularity": "channel"}))[
        "weight"
    ].scale.shape == (3,)  # type: ignore[union-attr]
    with pytest.warns(
        BackendWarning,
        match="'int8' cannot compute a QuantConvTranspose2d: it has no integer product",
    ):
        quantize_(layer, 8, backend="int8")(data)


def test_batchnorm_statistics_of_another_width() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4, momentum=0.3)
    )
    quantize_(net, 2).train()
    net[2].eval()
    batches = [torch.randn(8, 3, 6, 6) for _ in range(3)]
    keys, modes = list(net.state_dict()), [m.training for m in net.modules()]
    weights = [p.detach().clone() for p in net.parameters()]
    assert reestimate_batchnorm_(net, (b for b in batches)) is net
    seen = [net[0](b) for b in batches]
    mean = torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0)
    var = torch.stack([y.transpose(0, 1).flatten(1).var(1) for y in seen]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, var)
    assert modes == [m.training for m in net.modules()]
    assert keys == list(net.state_dict())
    assert [net[1].momentum, net[3].momentum] == [0.1, 0.3]
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    reestimate_batchnorm_(net, [(batches[0], torch.zeros(8))])  # with its labels
    assert net[1].num_batches_tracked == 1
    before = net[1].running_mean.clone()
    with pytest.raises(
        ValueError, match="reestimate_batchnorm_ needs at least one batch, got none"
    ):
        reestimate_batchnorm_(net, [])
    assert torch.equal(net[1].running_mean, before)
    reestimate_batchnorm_(nn.Linear(2, 2), [])


def _replica(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for backend in BACKENDS:
        net = nn.parallel.DistributedDataParallel(model(backend))
        net(x()[rank::2]).sum().backward()
        if rank == 0:
            torch.save([p.grad for p in net.parameters()], Path(folder) / backend)
    dist.barrier()  # gloo aborts a process whose peer leaves before it
    dist.destroy_process_group()
    os._exit(0)  # it now and then aborts, too, where threads of gloo outlive the interpreter


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path: Path) -> None:
    mp.start_processes(_replica, (str(tmp_path),), nprocs=2, start_method=METHOD)
    for backend in BACKENDS:
        net = model(backend)
        (sum(net(x()[rank::2]).sum() for rank in range(2)) / 2).backward()
        found = torch.load(tmp_path / backend, weights_only=True)
        for a, p in zip(found, net.parameters(), strict=True):
            if backend == "integer":  # each process rounds errors by draws of its own
                assert (a - p.grad).norm() < 0.05 * p.grad.norm()
            else:
                torch.testing.assert_close(a, p.grad)


def test_pruned_weights_cannot_be_set() -> None:
    layer = quantize_(nn.Linear(8, 8), "ternary")
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="dequantize_ must set the weight, but a hook computes it"):
        dequantize_(layer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_learned_step_in_half_precision(dtype: torch.dtype) -> None:
    layer = quantize_(nn.Linear(8, 8), {"weights": 4, "activations": 8, "range_rule": "lsq"})
    y = layer.to(dtype)(torch.ones(2, 8, dtype=dtype))
    y.sum().backward()
    assert y.dtype == dtype
    assert layer.weight_step.grad.isfinite()
