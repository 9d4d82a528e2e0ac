"""Networks for images, and the ready-made client `Classifier`.

Shapes in this package: ``B`` images of a batch, ``C`` channels, ``H`` x ``W`` pixels, ``K``
classes. Every network maps float ``[B, C, H, W]`` to logits ``[B, K]``.
"""

from typing import TYPE_CHECKING

from bhfl import lazily
from bhfl.models.adapters import LowRank
from bhfl.models.blocks import Norm
from bhfl.models.factory import NETWORKS, build
from bhfl.models.resnet import ResNet, ResNet8, ResNet18, ResNet20
from bhfl.models.small import CNN, MLP, LeNet
from bhfl.models.supervised import Supervised
from bhfl.models.vgg import VGG7

# type checkers and editors do not follow __getattr__
if TYPE_CHECKING:
    from bhfl.models.classifier import Classifier

__all__ = [
    "CNN",
    "MLP",
    "NETWORKS",
    "VGG7",
    "Classifier",
    "LeNet",
    "LowRank",
    "Norm",
    "ResNet",
    "ResNet8",
    "ResNet18",
    "ResNet20",
    "Supervised",
    "build",
]

__getattr__ = lazily(__name__, {"Classifier": "classifier"})
"""`Classifier` is imported when it is first asked for: the networks alone need no Lightning, which
takes seconds to import.
"""
