"""Networks of which a part is trained: named parameters, or low-rank adapters of linear layers."""

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from bhfl.checks import checked, count, or_none, suggestion


class LowRank(nn.Module):
    """A linear layer and a product of two thin matrices that is added to what it computes (LoRA;
    Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685). At first the product is zero.

    Args:
        base: The layer, ``[..., m]`` to ``[..., n]``; it is frozen.
        rank: Inner size of the product, r: it has ``r * (m + n)`` weights.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[..., m]`` to ``[..., n]``."""
        return self.base(inputs) + self.up(self.down(inputs))  # type: ignore[no-any-return]


def freeze_(net: nn.Module, trained: Sequence[str] | None, rank: int | None) -> None:
    """Freeze a network but for some parameters, in place, and give its frozen linear layers
    adapters; nothing is frozen where neither is asked for.

    Args:
        net: Any network.
        trained: Names of parameters that stay trained, or patterns of them such as ``head.*``; None
            for all, or for the adapters alone.
        rank: The rank of the adapters; None for none.

    Raises:
        ValueError: A pattern matches nothing, or nothing would be trained.
    """
    checked("adapters", rank, or_none(count(1)))
    if isinstance(trained, str):
        raise ValueError(f"trained must be a list of names or patterns, got {trained!r}")
    if rank is None and trained is None:
        return
    trained = trained or []
    named = dict(net.named_parameters())
    for pattern in trained:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ValueError(
                "trained must hold names of the network's parameters or patterns of them, got "
                f"{pattern!r}{suggestion(pattern, named)}"
            )
    for name, parameter in named.items():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in trained))
    if rank is not None:
        _adapt_(net, rank)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        kind = type(net).__name__
        raise ValueError(
            f"trained must leave something of {kind} to be trained, got {list(trained)}"
            + (f", and adapters need linear layers, which {kind} does not have" if rank else "")
        )


def _adapt_(net: nn.Module, rank: int) -> None:
    """Put an adapter around each linear layer whose weight is frozen; warn of those that save
    nothing.
    """
    for path, parent in list(net.named_modules()):
        for name, child in parent.named_children():
            # not their subclasses, such as a projection that attention reads and never calls
            if type(child) is nn.Linear and not child.weight.requires_grad:
                if rank >= min(child.weight.shape):
                    layer = f"{path}.{name}".lstrip(".")
                    warnings.warn(
                        f"adapters: rank {rank} is as large as a side of layer {layer!r}, "
                        f"{list(child.weight.shape)}: its adapter has more weights than the layer "
                        "itself",
                        stacklevel=2,
                    )
                setattr(parent, name, LowRank(child, rank))
