"""The data set for first steps and tests, which comes with scikit-learn."""

import numpy as np
import torch

from bhfl.data.datamodule import FederatedDataModule
from bhfl.data.partition import stratified_sample
from bhfl.data.source import TensorSource

NUM_TEST = 360


class Digits(FederatedDataModule):
    """Handwritten digits: 1,437 + 360 grey pictures of 8x8 in 10 classes; nothing is downloaded.

    The test split has the label mix of all digits, and is the same whatever the seed of the run.
    """

    num_classes, input_shape = 10, (1, 8, 8)

    def load(self, train: bool) -> TensorSource:
        """See `FederatedDataModule.load`."""
        from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

        pixels, labels = load_digits(return_X_y=True)
        # 0 and not the run's seed: every run is measured on the same digits
        test = stratified_sample(labels, NUM_TEST, np.random.default_rng(0))
        chosen = np.delete(np.arange(len(labels)), test) if train else test
        # its pixels are counts from 0 to 16
        images = torch.tensor(pixels[chosen] / 16, dtype=torch.float32).view(-1, *self.input_shape)
        # the mean and the deviation of all pixels of the set
        return TensorSource(images, torch.tensor(labels[chosen]), mean=(0.3053,), std=(0.3761,))
