"""Who has which samples, before anything is trained."""

import numpy as np

from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import FederatedData
from bhfl.report.partition import Partition


def partition(trainer: FederatedTrainer, datamodule: FederatedData) -> Partition:
    """The clients as a fit with these options would have them; nothing is trained.

    Args:
        trainer: Whose fleet and seed are meant.
        datamodule: Data as for `fit`.

    Returns:
        The samples of each client, and its labels where the data have such; `bhfl.report.partition`
        makes a table, a CSV file and a picture of it.

    Raises:
        ValueError: The data cannot be split among the fleet.
    """
    fleet = trainer.fleet
    counts = fleet.counts(trainer.settings.fleet.num_clients)
    seed = trainer.settings.cohort.seed
    num_clients = sum(counts)
    datamodule.prepare_data()
    datamodule.setup("fit")
    samples = np.asarray(datamodule.federate(num_clients, seed), dtype=np.int64)
    held_sizes = getattr(datamodule, "held_sizes", lambda split: np.zeros(num_clients, np.int64))
    count_labels = getattr(datamodule, "label_counts", lambda num_clients: None)
    scheme = datamodule.partition_record().get("scheme", "")
    num_samples = samples.sum()
    return Partition(
        title=(
            f"{type(datamodule).__name__} by {scheme}, seed {seed}: {num_clients:,} clients, "
            f"{num_samples:,} training samples"
        ),
        groups=[group.label for group in fleet.groups],
        group_of=np.repeat(np.arange(len(counts)), counts),
        samples=samples,
        val=held_sizes("val"),
        test=held_sizes("test"),
        labels=count_labels(num_clients),
    )
