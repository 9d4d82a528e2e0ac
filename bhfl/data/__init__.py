"""Data sets, and how they are split among clients.

Shapes: n samples, K clients; pictures are ``[n, C, H, W]``, uint8 in memory and float32 in batches.
"""

from bhfl.data.datamodule import FederatedDataModule
from bhfl.data.digits import Digits
from bhfl.data.fake import FakeImages
from bhfl.data.given import FromDatasets
from bhfl.data.hugging_face import HuggingFace
from bhfl.data.leaf import LEAF
from bhfl.data.natural import ByColumn
from bhfl.data.partition import IID, Dirichlet, Partitioner, QuantitySkew, Shards
from bhfl.data.pictures import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST, ImageFolder
from bhfl.data.source import TensorSource

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "IID",
    "LEAF",
    "MNIST",
    "SVHN",
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
