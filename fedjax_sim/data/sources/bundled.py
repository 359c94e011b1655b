"""Data sets that installed packages carry: no download."""

from typing import NamedTuple

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.rng import Purpose


class CentralData(NamedTuple):
    """One central data set, to be federated.

    Attributes:
        train: dict of arrays, [N, ...] each.
        test: dict of arrays, [M, ...] each.
        name: its name.
    """

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    name: str


def load(name: str) -> CentralData:
    """Load a data set by name.

    "digits": 1,797 pictures of handwritten digits, 8x8 pixels scaled to [0, 1], in a fixed random split of 1,437
    for training and 360 for testing. From scikit-learn (the UCI set of Alpaydin and Kaynak, 1998). It has no
    writers' names, so that any partition of it is synthetic.

    Args:
        name: "digits".

    Returns:
        `.train` and `.test`: {"x": [N, 8, 8, 1] float32, "y": [N] int32}.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.load("digits").train["x"].shape
        (1437, 8, 8, 1)
    """
    if name != "digits":
        raise ArgumentError(f"name={name!r}: unknown data set; there is 'digits'.")
    from sklearn.datasets import load_digits

    x, y = map(np.asarray, load_digits(return_X_y=True))
    order = rng.generator(0, Purpose.SPLIT).permutation(len(y))
    x = (x[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    y = y[order].astype(np.int32)
    return CentralData({"x": x[:1437], "y": y[:1437]}, {"x": x[1437:], "y": y[1437:]}, name)
