"""Pictures for TensorBoard: which labels each client has, the bits that each layer is sent with,
and what each client's model is worth.
"""

import math
from itertools import chain
from typing import Any

import numpy as np
from lightning.fabric.loggers import Logger, TensorBoardLogger

from bhfl.callbacks.heatmap import Pixels, heatmap
from bhfl.callbacks.scatter import scatter
from bhfl.engine.callback import Callback
from bhfl.tags import ACCURACIES

_MOST = 64
"""Rows and columns of a picture at most: the first clients, the last rounds."""
_BITS = "fedlq/bits_"


class Pictures(Callback):
    """Writes ``pictures/partition`` before the first round, where the data have labels, and after
    the last one ``pictures/bits_by_layer``, where the method gives each layer bits of its own, and
    ``pictures/clients``, where clients have test samples of their own: their accuracies (or the
    first metric of the test, of models without one) against their training samples.
    """

    def on_fit_start(self, trainer: Any) -> None:
        """Draw how many training samples of each class each client has."""
        count = getattr(trainer.session.data, "label_counts", None)
        counts = count(_MOST) if count and trainer.fabric.is_global_zero else None
        if counts is None or counts.shape[1] > _MOST:
            return
        clients = trainer.clients[:_MOST]
        title = f"training samples by client and class; {len(trainer.clients)} clients"
        names = [f"{client.id} {client.group}" for client in clients]
        classes = [str(label) for label in range(counts.shape[1])]
        _write(trainer, "partition", heatmap(counts.astype(float), names, classes, title))

    def on_round_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Draw the bits of all rounds, once the last one is done."""
        most = trainer.settings.stopping.max_rounds
        over = trainer.should_stop or trainer.run.out_of_patience
        if metrics["round"] < most and not over:
            return
        tags = [tag for tag in metrics if tag.startswith(_BITS)]
        if not tags:
            return
        history = trainer.run.history[-_MOST:]
        values = np.full((len(tags), len(history)), np.nan)
        for i, tag in enumerate(tags):
            for j, row in enumerate(history):
                # zero bits: no client sent the layer
                values[i, j] = row.get(tag) or np.nan
        names = [tag.removeprefix(_BITS) for tag in tags]
        rounds = [str(row["round"]) for row in history]
        title = "mean bits of a layer's weights, by round"
        _write(trainer, "bits_by_layer", heatmap(values, names, rounds, title))

    def on_test_end(self, trainer: Any, metrics: dict[str, float]) -> None:
        """Draw each client by its training samples and what its model is worth."""
        own = trainer.session.evaluator.own
        names = list(dict.fromkeys(chain.from_iterable(own.values())))
        if not names or not trainer.fabric.is_global_zero:
            return
        name = next((name for name in ACCURACIES if name in names), names[0])
        scale, words = (100, "accuracy in %") if name in ACCURACIES else (1, name)
        points: dict[str, tuple[list[float], list[float]]] = {}
        for id, measured in own.items():
            client = trainer.clients[id]
            samples, values = points.setdefault(client.group, ([], []))
            if math.isfinite(measured.get(name, math.nan)):
                samples.append(client.num_examples)
                values.append(scale * measured[name])
        drawn = sum(len(values) for _, values in points.values())
        if drawn:
            title = f"{words} on each client's own test samples; {drawn} clients"
            _write(trainer, "clients", scatter(points, title, "training samples of the client"))


def _write(trainer: Any, name: str, picture: Pixels) -> None:
    def write(logger: Logger) -> None:
        if isinstance(logger, TensorBoardLogger):
            round = trainer.server.round
            logger.experiment.add_image(f"pictures/{name}", picture, round, dataformats="HWC")

    trainer.run.loggers.each(write)
