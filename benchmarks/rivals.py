"""Our layers against those of torchao, brevitas, bitsandbytes and torch itself: a training step of
the same network.

All have 8-bit weights and activations. torchao takes a range for each row of activations and
brevitas a learned one, torch a moving average and we that of the batch; each is what its package
offers for training, in its steady state. A rival is measured on the networks all of whose layers it
has.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.contest import contest, ratio
from benchmarks.quant import WideMLP

LEAD = 1.3
"""How many times faster `auto` should be than torchao and brevitas; its gradients are float32
products, as theirs are.
"""


class Attention(nn.Module):
    """Self-attention of plain linear layers: the module of torch hides its own from who swaps
    layers.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, 2)]
        return self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers, each after a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(x)
        return x + self.think(x)


class ViT(nn.Module):
    """Width 192 and depth 6 on patches of 4x4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(48, 192)
        self.blocks = nn.Sequential(*(Block(192, 3) for _ in range(6)))
        self.head = nn.Linear(192, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(F.unfold(x, 4, stride=4).transpose(1, 2))
        return self.head(self.blocks(patches).mean(1))


BATCH = {"mlp-1024": 512, "vit": 32, "cnn": 128, "resnet8": 128}
"""Images of 32x32 pixels a step, by network."""


def network(name: str) -> nn.Module:
    from bhfl.models import build

    own = {"mlp-1024": WideMLP, "vit": ViT}
    return own[name]() if name in own else build(name, 10, (3, 32, 32))


Swap = Callable[[nn.Module], None]


def swapped(
    model: nn.Module, twins: dict[type[nn.Module], Callable[[nn.Module], nn.Module]]
) -> None:
    """Put a twin in the place of each layer of a class."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in twins:
                setattr(parent, name, twins[type(child)](child))


def geometry(conv: nn.Module) -> tuple[object, ...]:
    """The arguments of a convolution after its channels."""
    assert isinstance(conv, nn.Conv2d)
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups


def torchao(model: nn.Module) -> None:
    """Asymmetric activations by row, symmetric weights by channel."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    activations = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weights = IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
    quantize_(
        model, QATConfig(activation_config=activations, weight_config=weights, step="prepare")
    )


def brevitas(model: nn.Module) -> None:
    """Its defaults for 8 bits; the scales of activations are learned, after two steps of statistics
    instead of 300.
    """
    from brevitas.nn import QuantConv2d, QuantLinear
    from brevitas.quant import Int8ActPerTensorFloat

    options = {"input_quant": Int8ActPerTensorFloat, "input_collect_stats_steps": 2}
    swapped(
        model,
        {
            nn.Linear: lambda m: QuantLinear(
                m.in_features, m.out_features, m.bias is not None, **options
            ),
            nn.Conv2d: lambda m: QuantConv2d(
                m.in_channels, m.out_channels, *geometry(m), bias=m.bias is not None, **options
            ),
        },
    )


def bitsandbytes(model: nn.Module) -> None:
    """``Linear8bitLt`` as it is for training."""
    from bitsandbytes.nn import Linear8bitLt

    swapped(
        model,
        {nn.Linear: lambda m: Linear8bitLt(m.in_features, m.out_features, m.bias is not None)},
    )


def fake_quantize(model: nn.Module) -> None:
    """The modules of torch.ao, with a fake quantiser for the input before each."""
    from torch.ao.nn import qat
    from torch.ao.quantization import get_default_qat_qconfig

    config = get_default_qat_qconfig("x86")

    def before(layer: nn.Module) -> nn.Module:
        return nn.Sequential(config.activation(), layer)

    swapped(
        model,
        {
            nn.Linear: lambda m: before(
                qat.Linear(m.in_features, m.out_features, m.bias is not None, config)
            ),
            nn.Conv2d: lambda m: before(
                qat.Conv2d(
                    m.in_channels, m.out_channels, *geometry(m), m.bias is not None, qconfig=config
                )
            ),
        },
    )


RIVALS: dict[str, tuple[Swap, str, tuple[str, ...]]] = {
    "torchao": (torchao, "torchao", ("mlp-1024", "vit")),
    "brevitas": (brevitas, "brevitas", ("mlp-1024", "vit", "cnn", "resnet8")),
    "bitsandbytes": (bitsandbytes, "bitsandbytes", ("mlp-1024",)),
    "torch.ao": (fake_quantize, "torch", ("mlp-1024", "vit", "cnn", "resnet8")),
}
"""How to swap the layers, the package that this needs, and the networks. bitsandbytes fails on
sequences on a CPU.
"""


def step(name: str, which: str) -> Callable[[], None]:
    """Training steps of a network by a rival, or by a backend of ours."""
    from bhfl.engine.system import keep_freed_memory
    from bhfl.quant import quantize_, seed_

    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    model = network(name)
    if which in RIVALS:
        RIVALS[which][0](model)
    elif which != "float32":
        quantize_(model, 8, backend=which)
        seed_(model, torch.Generator().manual_seed(0))
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(BATCH[name], 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (len(x),))

    def turn() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    # the rivals collect statistics of activations in their first steps
    for _ in range(3):
        turn()
    return turn


def run(turns: int = 9) -> None:
    """Measure each rival that is installed, as a multiple of our time."""
    missing = [rival for rival, (_, package, _) in RIVALS.items() if find_spec(package) is None]
    for rival in missing:
        print(f"{rival}: skipped, pip install {RIVALS[rival][1]}")
    for name in BATCH:
        able = [rival for rival, (_, _, names) in RIVALS.items() if name in names]
        rivals = [rival for rival in able if rival not in missing]
        ours = ("fake", "int8", "auto", "auto-bfloat16", "auto-integer")
        contestants = {which: (step, (name, which)) for which in ("float32", *ours, *rivals)}
        seconds = contest(contestants, turns)
        for which in (*ours, *rivals):
            ratio(f"{name}: {which} / float32 step", seconds[which], seconds["float32"], None)
        for rival in rivals:
            bound = 1 / LEAD if rival in ("torchao", "brevitas") else None
            ratio(f"{name}: auto / {rival}", seconds["auto"], seconds[rival], bound)
