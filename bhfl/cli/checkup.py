"""The part of ``bhfl doctor`` that needs torch: devices, backends, and the self-test."""

import logging
import math
import tempfile
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from bhfl.checks import labelled
from bhfl.comm import decode, encode
from bhfl.data import FakeImages
from bhfl.engine import FederatedTrainer
from bhfl.models import Classifier
from bhfl.quant import QuantizedTensor, fake_quantize, quantize, quantize_
from bhfl.quant.backends import BACKENDS
from bhfl.quant.backends.auto import FAST
from bhfl.quant.backends.machine import product_instructions, table_of


def examine() -> int:
    """Print devices and backends, run the self-test, and return the exit code."""
    _print_devices()
    _print_backends()
    print("\nself-test")
    begun = time.perf_counter()
    failed = 0
    for name, test in TESTS.items():
        # a test that fails by whatever error is a finding, and the others are still to run
        try:
            print(labelled(name, f"ok: {test()}"))
        except Exception as error:
            failed += 1
            print(labelled(name, f"FAILED: {type(error).__name__}: {error}"))
    outcome = f"not all is well: {failed} of {len(TESTS)} tests failed" if failed else "all is well"
    print(f"\n{outcome} ({time.perf_counter() - begun:.1f} s)")
    return 1 if failed else 0


def _print_devices() -> None:
    print("\ndevices")
    print(labelled("cpu", f"{torch.get_num_threads()} threads of torch"))
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        print(
            labelled(
                f"cuda:{number}",
                f"{found.name}, {found.total_memory / 2**30:.0f} GiB, capability "
                f"{found.major}.{found.minor}",
            )
        )
    if not torch.cuda.is_available():
        print(labelled("cuda", f"none that torch {torch.__version__} finds"))


def _print_backends() -> None:
    """What each backend can do here, and from which size of a layer on ``auto`` takes it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"\nbackends on {device}")
    if device == "cpu":
        names = product_instructions()
        told = "the processor does not tell: measured"
        if names is not None:
            told = f"instructions: {', '.join(names) or 'none'}"
        print(labelled("products", told))
    # it tells at its import what it lacks for products that bhfl does not ask it for
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for name, backend in BACKENDS.items():
        if name in FAST:
            print(labelled(name, _auto(device, FAST[name])))
            continue
        # what it needs may be missing, or broken in any way
        try:
            backend.require()
            print(labelled(name, "can be used"))
        except Exception as error:
            print(labelled(name, f"cannot be used: {error}"))


def _auto(device: str, fast: str) -> str:
    """What a backend ``auto...`` takes, in words."""
    table = table_of(device)
    sizes = [
        f"{words} from {table[fast, kind]} channels"
        for kind, words in (("linear", "linear layers"), ("conv", "convolutions"))
        if (fast, kind) in table
    ]
    return f"{fast} for {' and '.join(sizes)}, else fake" if sizes else "fake for all layers"


# ---- the self-test -------------------------------------------------------------------------------


def _codes() -> str:
    """Quantise, pack, encode and decode a weight at each width."""
    weight = torch.randn(64, 33, generator=torch.Generator().manual_seed(0))
    for bits in range(2, 17):
        payload = encode({"weight": quantize(weight, bits)})
        received = decode(payload)["weight"]
        assert isinstance(received, QuantizedTensor)
        if not torch.equal(received.dequantize(), fake_quantize(weight, bits)):
            raise ArithmeticError(f"what is received is not what was computed with at {bits} bits")
    return "codes of 2 to 16 bits arrive as they were sent"


def _step() -> str:
    """One step of a quantised layer, by the backends that ``auto`` takes here."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4))
    quantize_(model, 8, backend="auto")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    images = torch.randn(64, 256)
    labels = torch.arange(64) % 4
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise ArithmeticError(f"the loss does not fall: {losses[0]:.3g} to {losses[-1]:.3g}")
    return f"the loss falls from {losses[0]:.2f} to {losses[-1]:.2f} in 8 steps at 8 bits"


def _round() -> str:
    """One round of four clients, with its aggregation and its files."""
    data = FakeImages(num_train=64, num_test=16, shape=(1, 8, 8), num_classes=4)
    model = Classifier("mlp", num_classes=4, input_shape=(1, 8, 8))
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            clients={"ternary": 1, 8: 1, 32: 2}, max_rounds=1, logger=False, default_root_dir=folder
        )
        trainer.fit(model, data)
        assert trainer.run is not None
        row = trainer.run.history[-1]
    if row["clients/ok"] != 4 or not math.isfinite(row["val/loss_avg"]):
        raise ArithmeticError(f"{row['clients/ok']:.0f} of 4 clients have usable updates")
    return "four clients of three widths train, send and are averaged"


TESTS: dict[str, Callable[[], str]] = {"codes": _codes, "step": _step, "round": _round}
"""The tests by name; each returns what it found, and raises what is wrong."""
