"""Networks by name: those of this package, or any classifier of torchvision."""

from importlib import import_module
from typing import Any, get_type_hints

import torch
from torch import nn

from bhfl.checks import suggestion
from bhfl.models.blocks import InputShape, Norm, check_arguments, norm2d
from bhfl.models.resnet import ResNet8, ResNet18, ResNet20
from bhfl.models.small import CNN, MLP, LeNet
from bhfl.models.vgg import VGG7

NETWORKS: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "lenet": LeNet,
    "cnn": CNN,
    "resnet8": ResNet8,
    "resnet18": ResNet18,
    "resnet20": ResNet20,
    "vgg7": VGG7,
}
"""The networks of this package, by name."""
TORCHVISION = "torchvision.models"
PREFIX = "torchvision/"
"""What may stand before the name of a network of torchvision."""


def network(
    net: str | nn.Module,
    num_classes: int,
    input_shape: InputShape,
    net_kwargs: dict[str, Any] | None,
    norm: Norm | None,
) -> nn.Module:
    """The network that a model is made with, given by its name or as it is; see
    `bhfl.models.Classifier`.

    Raises:
        ValueError: An argument breaks its rule, or is for named networks alone.
    """
    options = net_kwargs or {}
    if reserved := sorted({"name", "num_classes", "input_shape", "norm"} & options.keys()):
        raise ValueError(
            f"net_kwargs must leave {', '.join(reserved)} to the arguments outside it, got "
            f"{net_kwargs}"
        )
    if not isinstance(net, nn.Module):
        return build(net, num_classes, input_shape, norm, **options)
    if options or norm:
        raise ValueError(
            f"net_kwargs and norm are for a net given by name, got {net_kwargs} and {norm!r}"
        )
    return net


def build(
    name: str, num_classes: int, input_shape: InputShape, norm: Norm | None = None, **options: Any
) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator; nothing is ever
    downloaded.

    Args:
        name: One of `NETWORKS`, or a classifier of ``torchvision.models``, such as
            "torchvision/resnet18", or "mobilenet_v3_small" where `NETWORKS` has no such name. Upper
            and lower case are the same.
        num_classes: K.
        input_shape: (C, H, W); torchvision's classifiers take C = 3.
        norm: "group", "batch" or "none"; unset keeps what the network has. In torchvision's
            networks it replaces the batch normalisation.
        **options: More arguments of the network, such as ``width`` of vgg7 or ``image_size`` of
            torchvision/vit_b_16, which is that of the input by default.

    Returns:
        A module that takes ``[n, *input_shape]`` to logits ``[n, num_classes]``.

    Raises:
        ValueError: The name, an option or a size is wrong.
    """
    if not isinstance(name, str):
        raise ValueError(f"net must be the name of a network, got {name!r}")
    key = name.lower()
    if key in NETWORKS:
        return _build_ours(key, num_classes, input_shape, norm, options)
    known = _torchvision_names(name)
    bare = key.removeprefix(PREFIX)
    if bare in known:
        return _build_torchvision(bare, num_classes, input_shape, norm, options)
    candidates = [*NETWORKS, *known, *(PREFIX + network for network in known)]
    raise ValueError(
        f"net must be one of {', '.join(NETWORKS)} or a torchvision classifier, got {name!r}"
        f"{suggestion(name, candidates, others=False, most=3)}"
    )


def _build_ours(
    name: str, num_classes: int, input_shape: InputShape, norm: Norm | None, options: dict[str, Any]
) -> nn.Module:
    network = NETWORKS[name]
    if norm is not None:
        options = {"norm": norm, **options}
    hints = get_type_hints(network.__init__)
    accepted = sorted(hints.keys() - {"num_classes", "input_shape", "return"})
    if unknown := sorted(options.keys() - set(accepted)):
        raise ValueError(f"{name} has the options {', '.join(accepted)}, got {', '.join(unknown)}")
    for key, value in options.items():
        if hints[key] is int and type(value) is not int:
            raise ValueError(f"net_kwargs.{key} of {name} must be an integer, got {value!r}")
    try:
        return network(num_classes, input_shape, **options)
    except TypeError as error:
        raise ValueError(f"net_kwargs: {name} refuses {options}: {error}") from error


def _build_torchvision(
    name: str, num_classes: int, input_shape: InputShape, norm: Norm | None, options: dict[str, Any]
) -> nn.Module:
    check_arguments(num_classes, input_shape)
    if input_shape[0] != 3:
        raise ValueError(f"input_shape must have 3 channels for {PREFIX}{name}, got {input_shape}")
    # their auxiliary heads would make several tensors of logits in training, and without
    # init_weights they warn
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True, **options}
    if name.startswith("vit_"):
        options = {"image_size": input_shape[1], **options}
    try:
        network: nn.Module = import_module(TORCHVISION).get_model(
            name, weights=None, num_classes=num_classes, **options
        )
    except TypeError as error:
        raise ValueError(f"{PREFIX}{name} refuses the options {options}: {error}") from error
    if norm is not None:
        _replace_batch_norm_(network, norm, name)
    try:
        # in training, one image may be too few for BatchNorm, and running statistics would move
        with torch.no_grad():
            network.eval()(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{PREFIX}{name} cannot take input_shape {input_shape}: {error}"
        ) from error
    return network.train()


def _replace_batch_norm_(network: nn.Module, norm: Norm, name: str) -> None:
    """Put `norm` in the place of all batch normalisations; ValueError if there are none."""
    found = False
    for parent in network.modules():
        for key, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                found = True
                # those that are there may have an eps of their own
                if norm != "batch":
                    setattr(parent, key, norm2d(norm, child.num_features))
    if not found:
        raise ValueError(
            f"norm must be unset for {PREFIX}{name}, which has no batch normalisation, got {norm!r}"
        )


def _torchvision_names(asked: str) -> list[str]:
    # imported when first asked for: it takes seconds, and the networks of this package do without
    try:
        models = import_module(TORCHVISION)
    except ImportError as error:
        raise ImportError(
            f"net must be one of {', '.join(NETWORKS)} where torchvision cannot be imported, got "
            f"{asked!r}: {error}"
        ) from error
    # those of this very module are classifiers; others are detectors and quantised copies
    return list(models.list_models(module=models))
