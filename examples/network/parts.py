"""Write the samples of each client of network.yaml as arrays, as a device has its own:
``parts/client-0.npz`` and so on. Clients of `bhfl-client` read them: see small.yaml.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from bhfl.data import Digits

NUM_CLIENTS = 3
SEED = 0


def main(folder: Path, holdout: int = 0) -> None:
    """Write the files, without the samples that the server keeps."""
    # the data of network.yaml, which the server splits in the same way
    data = Digits(batch_size=16, holdout=holdout)
    data.setup("fit")
    data.federate(NUM_CLIENTS, SEED)
    source = data.load(train=True)
    folder.mkdir(exist_ok=True)
    for client in range(NUM_CLIENTS):
        members = data.split.clients[client]
        # all in one batch, in their order, normalised
        ((inputs, targets),) = source.batches(members, len(members), torch.Generator())
        arrays = {"train_inputs": inputs.numpy(), "train_targets": targets.numpy()}
        np.savez(folder / f"client-{client}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "parts"))
