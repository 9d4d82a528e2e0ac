"""ONNX files of torchvision's ResNet-18 under onnxruntime: int8 with ranges that are fixed, and
found anew for each input, against float32.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torchvision.models import resnet18

from benchmarks.contest import cpu
from bhfl.export import export_onnx
from bhfl.quant import quantize_

TURNS = 15
BOUND = 0.6
"""What int8 with fixed ranges should take of float32's time at most, where the CPU has instructions
for products of int8 codes.
"""


def run() -> None:
    """Print the CPU time of one picture, 3 x 224 x 224, on one thread, as ratios."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    torch.manual_seed(0)
    model = resnet18().eval()
    pictures = torch.randn(8, 3, 224, 224)
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, calibration in {
            "fixed": pictures.split(2),
            "dynamic": None,
            "float": None,
        }.items():
            # at 32 bits a file holds the model as it is
            quantized = quantize_(resnet18(), 32 if name == "float" else 8).eval()
            quantized.load_state_dict(model.state_dict())
            path = Path(folder) / f"{name}.onnx"
            size = export_onnx(quantized, pictures[:2], path, calibration=calibration)
            print(f"  {name:<8} {size / 1e6:.1f} MB")
            sessions[name] = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
    feed = {sessions["float"].get_inputs()[0].name: pictures[:1].numpy()}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(TURNS):
        for name, session in sessions.items():
            start = time.process_time()
            session.run(None, feed)
            seconds[name].append(time.process_time() - start)
    # the first turn warms up
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    print(f"ONNX, ResNet-18, 3 x 224 x 224, batch 1, one thread; {cpu()}")
    print(f"  float32 {1e3 * medians['float']:.1f} ms")
    for name in ("fixed", "dynamic"):
        bound = f" (at most {BOUND})" if name == "fixed" else ""
        print(f"  int8, {name} ranges: {medians[name] / medians['float']:.2f} of float32{bound}")
