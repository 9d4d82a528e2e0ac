"""Which test samples the models of a run were right about, read from ``correct.json``."""

import base64
import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bhfl.checks import is_integer
from bhfl.files import read_limited
from bhfl.plain import read_json
from bhfl.report.reading import Run
from bhfl.tags import CORRECT_JSON

if TYPE_CHECKING:
    import numpy as np

MAX_CORRECT_BYTES = 2**26
_MOST_MODELS = 2**30


def shares_right(run: Run) -> dict[str, "np.ndarray"]:
    """The share of a bit group's models that were right about each test sample, by group.

    `bhfl.engine.correct.packed` says what the file holds.

    Returns:
        An array ``[samples]`` for each group; nothing where the run has no such file, or it is
        damaged.
    """
    try:
        found = read_json(read_limited(run.folder / CORRECT_JSON, MAX_CORRECT_BYTES))
        samples = found["samples"]
        groups = found["groups"].items()
        return {str(group): _unpacked(one, samples) for group, one in groups}
    # the file may come from elsewhere: any part may be missing, or be something else
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _unpacked(group: Mapping[str, Any], samples: int) -> "np.ndarray":
    """The share of right models by sample.

    Raises:
        ValueError: The planes are not of so many samples.
    """
    import numpy as np

    models = group["models"]
    if not is_integer(models) or not 1 <= models <= _MOST_MODELS:
        raise ValueError("no number of models")
    right: np.ndarray = np.zeros(samples)
    for bit, text in enumerate(group["planes"]):
        try:
            plane = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
        except binascii.Error as error:
            raise ValueError("no base64") from error
        if len(plane) != -(-samples // 8) or bit >= models.bit_length():
            raise ValueError("planes of another size")
        right += np.unpackbits(plane, count=samples) * 2.0**bit
    right /= models
    return right
