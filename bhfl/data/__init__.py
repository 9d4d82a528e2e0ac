"""Data sets, and how they are split among clients.

Shapes: n samples, K clients; pictures are ``[n, C, H, W]``, uint8 in memory and float32 in batches.
"""

from typing import TYPE_CHECKING

from bhfl import lazily

# type checkers and editors do not follow __getattr__
if TYPE_CHECKING:
    from bhfl.data.arrays import Arrays
    from bhfl.data.datamodule import FederatedDataModule
    from bhfl.data.digits import Digits
    from bhfl.data.fake import FakeImages
    from bhfl.data.given import FromDatasets
    from bhfl.data.hugging_face import HuggingFace
    from bhfl.data.leaf import LEAF
    from bhfl.data.natural import ByColumn
    from bhfl.data.partition import IID, Dirichlet, Partitioner, QuantitySkew, Shards
    from bhfl.data.pictures import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST, ImageFolder
    from bhfl.data.tensors import TensorSource

_HOMES = {
    "Arrays": "arrays",
    "ByColumn": "natural",
    "CIFAR10": "pictures",
    "CIFAR100": "pictures",
    "Digits": "digits",
    "Dirichlet": "partition",
    "FakeImages": "fake",
    "FashionMNIST": "pictures",
    "FederatedDataModule": "datamodule",
    "FromDatasets": "given",
    "HuggingFace": "hugging_face",
    "IID": "partition",
    "ImageFolder": "pictures",
    "LEAF": "leaf",
    "MNIST": "pictures",
    "Partitioner": "partition",
    "QuantitySkew": "partition",
    "Shards": "partition",
    "SVHN": "pictures",
    "TensorSource": "tensors",
}
__all__ = [
    "CIFAR10",
    "CIFAR100",
    "IID",
    "LEAF",
    "MNIST",
    "SVHN",
    "Arrays",
    "ByColumn",
    "Digits",
    "Dirichlet",
    "FakeImages",
    "FashionMNIST",
    "FederatedDataModule",
    "FromDatasets",
    "HuggingFace",
    "ImageFolder",
    "Partitioner",
    "QuantitySkew",
    "Shards",
    "TensorSource",
]

__getattr__ = lazily(__name__, _HOMES)
"""The names above, loaded when asked for: a device that has arrays needs no Lightning."""
