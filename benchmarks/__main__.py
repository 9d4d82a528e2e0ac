"""``make bench``: figures as ratios of runs that took turns, each beside what it should be at
most. ``python -m benchmarks engine quant`` measures some parts alone; ``peers`` is measured where
it is named.
"""

import sys

from benchmarks import (
    data,
    engine,
    fleet,
    kept,
    layerwise,
    methods,
    onnx,
    peers,
    prowd,
    quant,
    rivals,
    sweep,
)

if __name__ == "__main__":
    parts = {
        "engine": engine.run,
        "kept": kept.run,
        "quant": quant.run,
        "rivals": rivals.run,
        "data": data.run,
        "methods": methods.run,
        "prowd": prowd.run,
        "fedlq": layerwise.run,
        "onnx": onnx.run,
        "sweep": sweep.run,
        "fleet": fleet.run,
    }
    named = parts | {"peers": peers.run}
    for name in sys.argv[1:] or parts:
        named[name]()
