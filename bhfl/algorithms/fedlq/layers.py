"""Which tensors of a model are layers, whose bits are chosen, and which are not."""

from torch import nn

from bhfl.quant import layer_weights


def trained_parts(module: nn.Module) -> tuple[list[str], list[str]]:
    """The names of the weights that are trained and can be quantised, and of all else that is
    trained.

    Args:
        module: The user's module.

    Raises:
        ValueError: There are no such weights.
    """
    found = {id(module.get_parameter(name)) for name in layer_weights(module)}
    # tied weights travel once, under the first of their names
    first: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.numel() and tensor.requires_grad:
            first.setdefault(id(tensor), name)
    layers = [name for key, name in first.items() if key in found]
    if not layers:
        raise ValueError("FedLQ needs layers with weights: all are empty or frozen")
    return layers, [name for key, name in first.items() if key not in found]
