"""Which tensors of a model are layers, whose bits are chosen."""

from torch import nn

from bhfl.quant import layer_weights


def trained_layers(module: nn.Module) -> list[str]:
    """The names of the weights that are trained and can be quantised.

    Args:
        module: The user's module.

    Raises:
        ValueError: There are none.
    """
    found = {id(module.get_parameter(name)) for name in layer_weights(module)}
    # tied weights travel once, under the first of their names
    first: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in found and tensor.numel() and tensor.requires_grad:
            first.setdefault(id(tensor), name)
    if not first:
        raise ValueError("FedLQ needs layers with weights: all are empty or frozen")
    return list(first.values())
