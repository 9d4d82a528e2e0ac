"""A group id for each sample, from a .npy file."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_ids(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array in a .npy file, mapped before it is read, so that what a file merely claims takes
    no memory.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is none of an array, or not a whole one.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # hostile bytes: the reader of headers raises whatever it likes
        raise ValueError(str(error)) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("it is an archive of several arrays")
    return np.array(found)
