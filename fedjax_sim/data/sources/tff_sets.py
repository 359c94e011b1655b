"""EMNIST, CIFAR-100, Shakespeare and Stack Overflow: from the user's TFF files, or stand-ins of the same shapes.

A stand-in is random data for machines without the files: as many clients and examples, of the same shapes and dtypes,
drawn row by row when a row is asked for, so that nothing is stored. Its labels can be learnt, and mean nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.rng import Purpose
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources.tff import tff_hdf5, tff_sqlite
from fedjax_sim.data.text.strings import row_numbers

Pair = tuple[FederatedData, FederatedData]


def emnist(
    *,
    path: str | Path | None = None,
    stand_in: bool = False,
    num_clients: int | None = None,
    cache_dir: str | Path | None = None,
) -> Pair:
    """Handwritten characters by writer: 3,400 clients, 671,585 + 77,483 pictures, 62 classes.

    Args:
        path: emnist_all.sqlite (or .lzma), or a folder of fed_emnist_train.h5 and fed_emnist_test.h5.
        stand_in: random data of the true shapes instead.
        num_clients: of a stand-in, only the first so many clients.
        cache_dir: as in `fs.data.sources.tff_sqlite`.

    Returns:
        (train, test): {"x": [n, 28, 28] float32 in [0, 1], where 1 is the white ground; "y": [n] int32}.

    Example:
        >>> train, test = emnist(stand_in=True, num_clients=20)
        >>> train.num_clients, train.client(3)["x"].shape[1:], train.arrays["x"].dtype
        (20, (28, 28), dtype('float32'))
    """
    if _given("emnist", path, stand_in, num_clients):
        columns = {"x": _pictures((28, 28), 62, np.float32), "y": _labels(62)}
        return _both(columns, (3400, 671_585), (3400, 77_483), num_clients, spread=0.3)  # at most 418 in the real one
    options = {"shapes": {"pixels": (28, 28)}, "dtypes": {"label": np.int32}}
    return _read(path, ("all_train", "all_test"), {"x": "pixels", "y": "label"}, options, cache_dir)


def cifar100(
    *,
    path: str | Path | None = None,
    stand_in: bool = False,
    num_clients: int | None = None,
    cache_dir: str | Path | None = None,
) -> Pair:
    """CIFAR-100 by Pachinko allocation: 500 training clients and 100 other test clients, of 100 pictures each.

    Args:
        path: cifar100.sqlite (or .lzma), or a folder of its train and test .h5.
        stand_in, num_clients, cache_dir: as of "emnist".

    Returns:
        (train, test): {"x": [n, 32, 32, 3] uint8, "y": [n] int32}.

    Example:
        >>> train, test = cifar100(stand_in=True)
        >>> train.num_clients, test.num_clients, train.client(7)["x"].shape
        (500, 100, (100, 32, 32, 3))
    """
    if _given("cifar100", path, stand_in, num_clients):
        columns = {"x": _pictures((32, 32, 3), 100, np.uint8), "y": _labels(100)}
        return _both(columns, (500, 50_000), (100, 10_000), num_clients, spread=0.0)
    options = {"shapes": {"image": (32, 32, 3)}, "dtypes": {"image": np.uint8, "label": np.int32}}
    return _read(path, ("train", "test"), {"x": "image", "y": "label"}, options, cache_dir)


def shakespeare_tff(
    *,
    path: str | Path | None = None,
    stand_in: bool = False,
    num_clients: int | None = None,
    cache_dir: str | Path | None = None,
) -> Pair:
    """Lines by play and role: 715 clients, 16,068 + 2,356 texts.

    Args:
        path: shakespeare.sqlite (or .lzma), or a folder of shakespeare_train.h5 and shakespeare_test.h5.
        stand_in, num_clients, cache_dir: as of "emnist".

    Returns:
        (train, test): {"snippets": [n] texts}.

    Example:
        >>> train, test = shakespeare_tff(stand_in=True)
        >>> train.num_clients, train.num_examples, type(train.client(0)["snippets"][0])
        (715, 16068, <class 'bytes'>)
    """
    if _given("shakespeare_tff", path, stand_in, num_clients):
        return _both({"snippets": _sentences(40, 400)}, (715, 16_068), (715, 2_356), num_clients)
    return _read(path, ("train", "test"), {"snippets": "snippets"}, {}, cache_dir)


def stackoverflow(
    *,
    path: str | Path | None = None,
    stand_in: bool = False,
    num_clients: int | None = None,
    cache_dir: str | Path | None = None,
) -> Pair:
    """Posts by user: 342,477 training clients of 135,818,730 posts, 204,088 test clients of 16,586,035.

    Args:
        path: stackoverflow.sqlite (or .lzma), or a folder of stackoverflow_train.h5 and stackoverflow_test.h5.
        stand_in, num_clients, cache_dir: as of "emnist".

    Returns:
        (train, test): {"tokens": [n] texts, "title": [n] texts, "tags": [n] texts}, and of a file its other columns.

    Example:
        >>> train, test = stackoverflow(stand_in=True)
        >>> train.num_clients, train.num_examples, len(train.client(342_476)["tokens"]) > 0
        (342477, 135818730, True)
    """
    if _given("stackoverflow", path, stand_in, num_clients):
        columns = {"tokens": _sentences(3, 40), "title": _sentences(3, 10), "tags": _sentences(1, 5, b"|", 500)}
        return _both(columns, (342_477, 135_818_730), (204_088, 16_586_035), num_clients)
    return _read(path, ("train", "test"), None, {}, cache_dir)


class Rows:
    """A column [N, ...] whose rows are drawn when they are asked for, from their numbers alone.

    Example:
        >>> column = Rows((3,), np.int32, lambda rows: 10 * rows)
        >>> column[1:], len(column)
        (array([10, 20], dtype=int32), 3)
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike, draw: Callable[[np.ndarray], np.ndarray]):
        self.shape, self.dtype, self.ndim, self._draw = shape, np.dtype(dtype), len(shape), draw

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | npt.ArrayLike) -> Any:
        numbers = row_numbers(rows, len(self), "rows")
        drawn = self._draw(numbers.ravel()).astype(self.dtype, copy=False)
        return drawn.reshape(numbers.shape + self.shape[1:]) if numbers.ndim else drawn[0]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


Column = Callable[[int, int], Rows]
"""`(number of rows, seed) -> column`."""


def _labels(classes: int) -> Column:
    return lambda n, seed: Rows((n,), np.int32, lambda rows: _label(rows, seed, classes))


def _label(rows: np.ndarray, seed: int, classes: int) -> np.ndarray:
    return (rng.hash32(seed, Purpose.PARTITION, 0, rows, 0) % np.uint64(classes)).astype(np.int64)


def _pictures(shape: tuple[int, ...], classes: int, dtype: npt.DTypeLike) -> Column:
    """Half the class's own picture, the same in both sets, and half noise."""
    size = int(np.prod(shape))
    classes_own = rng.generator(0, Purpose.PARTITION).integers(0, 128, (classes, size))

    def column(n: int, seed: int) -> Rows:
        def draw(rows: np.ndarray) -> np.ndarray:
            bits = rng.hash32(seed, Purpose.PARTITION, 1, rows[:, None], np.arange(size)[None, :])
            pixels = classes_own[_label(rows, seed, classes)] + (bits >> np.uint64(25)).astype(np.int64)
            scaled = pixels.astype(np.uint8) if dtype == np.uint8 else pixels.astype(np.float32) / 255
            return scaled.reshape(len(rows), *shape)

        return Rows((n, *shape), dtype, draw)

    return column


def _sentences(least: int, most: int, between: bytes = b" ", words: int = 10_000) -> Column:
    """Texts of words w0, w1, ..., of which word k comes about as often as 1 / (k + 1)."""

    def text(row: int, seed: int) -> bytes:
        bits = rng.hash32(seed, Purpose.PARTITION, 2, np.full(most + 1, row), np.arange(most + 1))
        count = least + int(bits[0]) % (most - least + 1)
        drawn = (words + 1.0) ** (bits[1 : count + 1] / 2**32) - 1
        return between.join(b"w%d" % int(word) for word in drawn)

    def column(n: int, seed: int) -> Rows:
        def draw(rows: np.ndarray) -> np.ndarray:
            out = np.empty(len(rows), object)
            out[:] = [text(int(row), seed) for row in rows]
            return out

        return Rows((n,), object, draw)

    return column


def _both(
    columns: dict[str, Column],
    train: tuple[int, int],
    test: tuple[int, int],
    num_clients: int | None,
    spread: float = 1.0,
) -> Pair:
    made = []
    for seed, (clients, examples) in enumerate((train, test)):
        if num_clients is not None:
            check_count("num_clients", num_clients)
            check(num_clients <= train[0], "num_clients", num_clients, f"there are {train[0]} clients.")
        offsets = _offsets(clients, examples, seed, spread)[: 1 + min(num_clients or clients, clients)]
        arrays = {name: column(int(offsets[-1]), seed) for name, column in columns.items()}
        ids = np.char.add("stand-in ", np.arange(len(offsets) - 1).astype(str))
        made.append(FederatedData(arrays, offsets, client_ids=ids, about={"title": "stand-in: random data"}))
    return made[0], made[1]


def _offsets(clients: int, examples: int, seed: int, spread: float) -> np.ndarray:
    """Log-normal sizes of at least 1, with the true sum."""
    weights = rng.generator(seed, Purpose.PARTITION).lognormal(0, spread, clients)
    cuts = np.rint(np.cumsum(weights) / weights.sum() * (examples - clients)).astype(np.int64)
    return np.concatenate([[0], cuts + np.arange(1, clients + 1)])


def _given(name: str, path: object, stand_in: bool, num_clients: int | None) -> bool:
    """Whether a stand-in is wanted."""
    if stand_in and path is not None:
        raise ArgumentError(f"path={str(path)!r}, stand_in=True: give one of them.")
    if path is not None and num_clients is not None:
        raise ArgumentError(f"num_clients={num_clients}: is for stand-ins; a file has the clients it has.")
    if path is None and not stand_in:
        raise ArgumentError(
            f"{name!r} comes from your own file: path=, TensorFlow Federated's .sqlite, .sqlite.lzma, or a folder of "
            "its .h5 files. Without one, stand_in=True draws random data of the true shapes and client counts."
        )
    return stand_in


def _read(
    path: Any,
    splits: tuple[str, str],
    columns: dict[str, str] | None,
    options: dict[str, Any],
    cache_dir: str | Path | None,
) -> Pair:
    path = Path(path)
    made = []
    for split in splits:
        if path.is_dir():
            short = split.removeprefix("all_")
            found = sorted(path.glob(f"*_{short}.h5"))
            if len(found) != 1:
                raise ArgumentError(f"{path}: holds {len(found)} files *_{short}.h5; must be one.")
            data = tff_hdf5(found[0], cache_dir=cache_dir)
        else:
            data = tff_sqlite(path, split, cache_dir=cache_dir, **options)
        missing = [name for name in (columns or {}).values() if name not in data.arrays]
        if missing:
            raise ArgumentError(f"{path}: {split} has the columns {sorted(data.arrays)}, not {missing[0]!r}.")
        arrays = {name: data.arrays[source] for name, source in columns.items()} if columns else data.arrays
        if "y" in arrays and arrays["y"].dtype != np.int32:  # CIFAR-100's HDF5 has 64 bits
            arrays["y"] = arrays["y"].astype(np.int32)
        made.append(FederatedData(arrays, data.offsets, data.index, data.client_ids, data.about))
    return made[0], made[1]
