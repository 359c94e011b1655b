"""Data sets by name, as one central set each."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.rng import Purpose
from fedjax_sim.data.sources.fashion_mnist import fashion_mnist


class CentralData(NamedTuple):
    """One central data set, to be federated.

    Attributes:
        train: dict of arrays, [N, ...] each.
        test: dict of arrays, [M, ...] each.
        name: its name.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> digits.name, digits.test["y"].shape
        ('digits', (360,))
    """

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    name: str


def load(name: str, *, data_dir: str | Path | None = None, raw_dir: str | Path | None = None) -> CentralData:
    """Load a data set by name.

    "digits": 1,797 pictures of handwritten digits, 8x8 pixels scaled to [0, 1], in a fixed random split of 1,437
    for training and 360 for testing. From scikit-learn (the UCI set of Alpaydin and Kaynak, 1998). It has no
    writers' names, so that any partition of it is synthetic.

    "fashion_mnist": 70,000 pictures of clothes (Xiao, Rasul and Vollgraf 2017), 28x28 pixels as stored, 0..255: 60,000
    for training and 10,000 for testing. The ten classes are t-shirt or top, trousers, pullover, dress, coat, sandal,
    shirt, trainer, bag, ankle boot. Scale the pixels by the task's `preprocess`. It has no owners' names either. The
    first call prepares it in TensorFlow Datasets' folder, from Debian's package dataset-fashion-mnist or a download
    of 31 MB; later calls read it from there. It needs the extra `data`, but no TensorFlow.

    Args:
        name: "digits" or "fashion_mnist".
        data_dir: for "fashion_mnist": TensorFlow Datasets' folder; None for its default, ~/tensorflow_datasets.
        raw_dir: for "fashion_mnist": folder of the four raw files, where they are neither in Debian's place nor to be
            downloaded. It is not looked at once the set is prepared.

    Returns:
        `.train` and `.test`: {"x": [N, 8, 8, 1] float32, "y": [N] int32}; of "fashion_mnist" x [N, 28, 28, 1] uint8.

    Raises:
        ArgumentError: an unknown name; missing or wrong files, and what to do.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.load("digits").train["x"].shape
        (1437, 8, 8, 1)
    """
    if name == "fashion_mnist":
        return CentralData(**fashion_mnist(data_dir, raw_dir), name=name)
    if name != "digits":
        raise ArgumentError(f"name={name!r}: unknown data set; there are 'digits' and 'fashion_mnist'.")
    if data_dir is not None or raw_dir is not None:
        raise ArgumentError(
            f"data_dir={data_dir!r}, raw_dir={raw_dir!r}: 'digits' comes with scikit-learn; leave them out."
        )
    from sklearn.datasets import load_digits

    x, y = map(np.asarray, load_digits(return_X_y=True))
    order = rng.generator(0, Purpose.SPLIT).permutation(len(y))
    x = (x[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    y = y[order].astype(np.int32)
    return CentralData({"x": x[:1437], "y": y[:1437]}, {"x": x[1437:], "y": y[1437:]}, name)
