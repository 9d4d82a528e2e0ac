"""The QSGD quantiser and what travels."""

import pytest
import torch

from bhfl.algorithms import FedCOM, FedPAQ
from bhfl.algorithms.differences import REST, buckets, qsgd
from bhfl.engine.types import ServerState
from tests.federation import fit


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_variance(x, bits, norm):
    """``(M/s)^2 sum f (1 - f)``."""
    s = 2 ** (bits - 1) - 1
    m = x.abs().max() if norm == "linf" else x.norm()
    f = (x.abs() * s / m).frac()
    return float((m / s) ** 2 * (f * (1 - f)).sum())


@pytest.mark.parametrize(
    ("bits", "norm"),
    [
        (2, "linf"),
        (8, "l2"),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in ((2, "l2"), (8, "linf"))),
        *(pytest.param(4, norm, marks=pytest.mark.slow) for norm in ("linf", "l2")),
    ],
)
def test_unbiased_with_the_closed_form_variance(norm, bits):
    x = torch.randn(200, dtype=torch.float32, generator=generator(1))
    x[::10] = 0
    g, draws = generator(2), 4000
    drawn = torch.stack([qsgd(x, bits, norm, g).dequantize() for _ in range(draws)]).double()
    spread = drawn.std(0) / draws**0.5
    moving = spread > 0
    z = (drawn.mean(0) - x.double())[moving] / spread[moving]
    assert z.abs().max() < 5
    assert torch.equal(drawn[:, x == 0], torch.zeros_like(drawn[:, x == 0]))
    variance = float((drawn - x.double()).square().sum(1).mean())
    expected = exact_variance(x.double(), bits, norm)
    assert variance == pytest.approx(expected, rel=0.03)
    s = 2 ** (bits - 1) - 1
    if norm == "l2":
        bound = min(x.numel() / s**2, x.numel() ** 0.5 / s) * float(x.double().square().sum())
    else:
        bound = x.numel() * float(x.abs().max()) ** 2 / (4 * s**2)
    assert expected <= bound


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_values_on_the_grid_are_kept(bits):
    s = 2 ** (bits - 1) - 1
    x = torch.arange(-s, s + 1).float() / s * 0.75
    q = qsgd(x, bits, "linf", generator())
    assert torch.equal(q.codes.int(), torch.arange(-s, s + 1).int())
    assert torch.equal(q.dequantize().sign(), x.sign())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_homogeneous_and_odd(norm):
    x = torch.randn(100, generator=generator(3))
    q = qsgd(x, 4, norm, generator(5)).dequantize()
    assert torch.allclose(qsgd(3.0 * x, 4, norm, generator(5)).dequantize(), 3.0 * q, rtol=1e-5)


def test_zero_stays_zero():
    for norm in ("linf", "l2"):
        assert not qsgd(torch.zeros(3, 4), 4, norm, generator()).dequantize().any()


@pytest.mark.parametrize("size", [1, 3, 7, 60, 61])
def test_buckets_hold_every_entry_once(size):
    x = torch.arange(60.0).view(5, 12)
    parts = buckets("w", x, size)
    assert torch.equal(torch.cat([part.reshape(-1) for part in parts.values()]), x.reshape(-1))
    assert set(parts) <= {"w", "w" + REST}
    back = FedPAQ(8, bucket_size=size).reconstruct(parts, None, ServerState({"w": x}))
    assert torch.equal(back["w"], x)


def test_one_scale_a_bucket():
    x = torch.stack([torch.ones(8), 100 * torch.ones(8)])
    q = qsgd(x, 4, "l2", generator(), by_row=True)
    assert torch.allclose(q.scale * 7, torch.tensor([8**0.5, 100 * 8**0.5]))


@pytest.mark.parametrize(
    ("bucket", "bits"), [(None, 4), (None, 8), (7, 3), (80, 4)]
)  # a row of net.3 has 80
def test_uplink_bytes_are_the_formula(tmp_path, bucket, bits):
    run = fit(tmp_path, FedPAQ(bits, bucket_size=bucket), {8: 1, 32: 2}, max_rounds=1)
    content = 0
    for name, tensor in run.server.params.items():
        if tensor.ndim < 2:
            content += 4 * tensor.numel()
            continue
        parts = buckets(name, tensor, bucket).values()
        scales = -(-tensor.numel() // bucket) if bucket else 1
        content += sum(-(-part.numel() * bits // 8) for part in parts) + 4 * scales
    ledger = run.run.ledger
    down = 3 * 4 * sum(tensor.numel() for tensor in run.server.params.values())
    assert (
        ledger.total("uplink_bytes") + ledger.total("downlink_bytes") - ledger.total("header_bytes")
        == 3 * content + down
    )


def test_a_server_step_of_a_half_goes_half_the_way(tmp_path):
    whole, half = (
        fit(tmp_path, FedCOM(32, server_lr=lr), max_rounds=1, weights="uniform")
        for lr in (1.0, 0.5)
    )
    start = fit(tmp_path, FedCOM(32, server_lr=1e-30), max_rounds=1).server.params
    for name, value in whole.server.params.items():
        assert torch.allclose(half.server.params[name], (value + start[name]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedPAQ(bits=1), "FedPAQ.bits must be 2..16 or 32, got 1"),
        (lambda: FedPAQ(bits=True), "FedPAQ.bits must be 2..16 or 32, got True"),
        (lambda: FedPAQ(norm="l1"), "FedPAQ.norm must be one of linf, l2, got 'l1'"),
        (lambda: FedPAQ(bucket_size=0), "FedPAQ.bucket_size must be an integer from 1 to"),
        (lambda: FedCOM(server_lr=0), "FedCOM.server_lr must be positive and finite, got 0"),
        (
            lambda: FedCOM(server_lr=float("inf")),
            "FedCOM.server_lr must be positive and finite, got inf",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
