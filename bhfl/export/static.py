"""ONNX graphs whose ranges of activations are constants, found on samples: onnxruntime computes
them with integer kernels, norms folded into the layers before them.

onnxruntime's own tool places the nodes and finds the ranges (the lowest and highest value of each
tensor on all samples). Weights get a scale for each output channel, which holds the codes that the
layer computes with as finely as one for the tensor does.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from bhfl.export.extras import needed
from bhfl.files import replacing, user_path


def quantize_file(program: Any, samples: Iterable[Any], path: str | Path) -> int:
    """Write an exported float program as a graph with fixed ranges.

    Args:
        program: What ``torch.onnx.export`` gives.
        samples: What ``forward`` is called with, batch by batch: a tensor, or a tuple of all
            positional arguments.
        path: Written whole or not at all.

    Returns:
        Bytes of the file.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    tool = needed("onnxruntime.quantization", "onnx")
    prepare = needed("onnxruntime.quantization.shape_inference", "onnx").quant_pre_process
    reader = _Reader([value.name for value in program.model.graph.inputs], samples)
    with tempfile.TemporaryDirectory() as folder, _quiet(), replacing(path) as temporary:
        plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
        program.save(plain, external_data=False)
        # by its own shapes: a symbolic pass would need one more package
        prepare(plain, prepared, skip_symbolic_shape=True)
        tool.quantize_static(
            prepared,
            temporary,
            reader,
            quant_format=tool.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
        )
    return user_path(path).stat().st_size


class _Reader:
    """Gives the tool one batch after the other."""

    def __init__(self, names: list[str], samples: Iterable[Any]) -> None:
        self.names = names
        self.samples = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        """The inputs of the graph by name; None after the last batch."""
        batch = next(self.samples, None)
        if batch is None:
            return None
        arrays = []
        for leaf in tree_leaves(batch):
            if isinstance(leaf, Tensor):
                x = leaf.float() if leaf.is_floating_point() else leaf
                arrays.append(x.detach().cpu().numpy())
        if len(arrays) != len(self.names):
            raise ValueError(
                f"batches of calibration must hold what forward takes, {len(self.names)} tensors "
                f"as the example does, got {len(arrays)}: leave labels out"
            )
        return dict(zip(self.names, arrays, strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the tool advises its own users."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before)
