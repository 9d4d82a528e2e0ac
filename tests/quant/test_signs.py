"""One bit a weight."""

import pytest
import torch

from bhfl.quant.signs import signs


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_no_other_scale_has_less_error(granularity):
    x = torch.randn(5, 31, generator=torch.Generator().manual_seed(0))
    x *= torch.arange(1.0, 6).view(-1, 1)
    sent = signs(x, granularity)
    assert torch.equal(sent.codes, x.sign().to(torch.int8))
    assert sent.scale.shape == ((5,) if granularity == "channel" else ())

    def error(scale):
        grid = scale.view(-1, 1) if scale.ndim else scale
        return float((x - sent.codes * grid).double().square().sum())

    least = error(sent.scale)
    assert least < float(x.double().square().sum())
    for factor in (0.99, 1.01):
        assert error(sent.scale * factor) > least
    assert torch.equal(sent.dequantize(), sent.codes * sent.scale.view(-1, *[1] * sent.scale.ndim))


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0), ()])
def test_zeros_and_nothing_have_scales_that_can_be_sent(shape):
    for granularity in ("tensor", "channel")[: 1 + bool(shape)]:
        sent = signs(torch.zeros(shape), granularity)
        assert (sent.codes == 1).all()
        assert (sent.scale == torch.finfo(torch.float32).tiny).all()
