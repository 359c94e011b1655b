"""Handwritten digits of 8x8 pixels, from scikit-learn."""

import importlib.util
from pathlib import Path

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.rng import Purpose

Arrays = dict[str, np.ndarray]


def digits() -> tuple[Arrays, Arrays]:
    """1,797 pictures in a fixed random split of 1,437 for training and 360 for testing.

    Returns:
        (train, test): {"x": [N, 8, 8, 1] float32 in [0, 1], "y": [N] int32}.

    Example:
        >>> train, test = digits()
        >>> train["x"].shape, test["x"].shape
        ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    table = np.loadtxt(_file(), delimiter=",", dtype=np.float64)
    x, y = table[:, :-1], table[:, -1]
    order = rng.generator(0, Purpose.SPLIT).permutation(len(y))
    x = (x[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    y = y[order].astype(np.int32)
    return {"x": x[:1437], "y": y[:1437]}, {"x": x[1437:], "y": y[1437:]}


def _file() -> Path:
    """scikit-learn's file: found without importing the package, which would take a second."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None  # a plain requirement
    assert found.origin is not None
    return Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
