"""`trainer.reestimate_norm`: BatchNorm statistics of the global model at each width, from samples
of the server.
"""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
from torch.nn.modules.batchnorm import _BatchNorm

from bhfl.engine.algorithm import Algorithm
from bhfl.engine.calls import call_step
from bhfl.engine.client.module_hooks import overrides
from bhfl.engine.client.plain import STEPS
from bhfl.engine.client.recorder import recording, size_of
from bhfl.engine.client.worker import Worker
from bhfl.engine.random import seed_globals
from bhfl.engine.types import FederatedData, server_data
from bhfl.quant import reestimate_batchnorm_


def reestimation(
    module: L.LightningModule, data: FederatedData, algorithm: Algorithm, norm: str
) -> Callable[[Worker], None]:
    """What gives a worker's model the statistics of its own activations on ``data.holdout``.

    A function of the weights, the width and the samples alone: whoever evaluates, tests or exports
    a model comes to the same statistics. What clients train with is left alone.

    Args:
        module: The model.
        data: Already split.
        algorithm: Tells whether there is a global model.
        norm: ``trainer.norm``.

    Raises:
        ValueError: There are no such samples, layers, evaluation steps, or no global statistics.
    """
    where = "trainer.reestimate_norm: true"
    name = type(module).__name__
    if not any(
        isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in module.modules()
    ):
        raise ValueError(
            f"{where} needs BatchNorm layers with running statistics, and {name} has none: leave "
            "it out"
        )
    if not algorithm.communicates:
        raise ValueError(
            f"{where} needs a global model, and {type(algorithm).__name__} keeps none: leave it out"
        )
    if norm == "local":
        raise ValueError(
            f"{where} needs statistics of the server's, and with trainer.norm: local each client "
            "has its own"
        )
    batches = server_data(data).holdout_batches
    if next(iter(batches()), None) is None:
        raise ValueError(f"{where} needs samples that no client has: set data.holdout, e.g. to 256")
    steps = [step for step in STEPS.values() if overrides(module, step, L.LightningModule)]
    if not steps:
        raise ValueError(
            f"{where} evaluates on data.holdout by validation_step, which {name} must define"
        )

    def reestimate_(worker: Worker) -> None:
        def step(batch: Any) -> None:
            with worker.fabric.autocast():
                call_step(getattr(worker.module, steps[0]), batch, 0)

        # a forward that draws must draw alike for whoever measures the model
        seed_globals(0, worker.fabric.device)
        with recording(worker.module):
            reestimate_batchnorm_(worker.module, worker.on_device(_of_several(batches)), step)

    return reestimate_


def _of_several(batches: Callable[[], Any]) -> Iterator[Any]:
    """All batches but a last one of one sample, which BatchNorm cannot take, unless it is the only
    batch.
    """
    for index, batch in enumerate(batches()):
        if index == 0 or size_of(batch) > 1:
            yield batch
