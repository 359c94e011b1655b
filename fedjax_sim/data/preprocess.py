"""Functions from federation to federation, before training: map, fill gaps, normalise, number."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.kinds import categories_of
from fedjax_sim.data.federated import CATEGORIES, FederatedData, from_clients

BLOCK = 4096

Arrays = dict[str, np.ndarray]


def map_clients(
    data: FederatedData,
    function: Callable[[Arrays], Arrays],
    *,
    cache: str | None = None,
    cache_key: object = None,
    cache_dir: str | Path | None = None,
) -> FederatedData:
    """Apply a function to each client's arrays.

    Args:
        data: the federation.
        function: a client's arrays, [n, ...] each, to others, [m, ...] each; m may be 0, and need not be n.
        cache: a name: the results go, client by client, to a memory-mapped cache (`fs.data.cached`), and later calls
            read them from there. The cache is keyed by this name, `cache_key`, and the clients' sizes, ids and
            columns, not by the function's code: give another name when you change that.
        cache_key: what the function depends on, as anything that has a `repr`.
        cache_dir: as in `fs.data.cached`.

    Returns:
        `FederatedData` with the same clients, ids and `about`.

    Raises:
        ArgumentError: results whose columns, dtypes or shapes differ between clients, naming both.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"x": np.arange(5)}, offsets=[0, 2, 5])
        >>> evens = fs.data.map_clients(data, lambda client: {"x": client["x"][client["x"] % 2 == 0]})
        >>> evens.sizes, evens.client(1)["x"]
        (array([1, 2]), array([2, 4]))
    """
    names = [data.name(k) for k in range(data.num_clients)]

    def clients(start: int) -> Iterator[tuple[str, Arrays]]:
        for k in range(start, data.num_clients):
            yield names[k], function(data.client(k))

    if cache is None:
        made = from_clients([arrays for _, arrays in clients(0)], names)
        ids = data.client_ids
    else:
        from fedjax_sim.data.store.cache import cached

        facts = repr((cache_key, names, data.offsets.tolist(), data.shapes()))
        fingerprint = {"name": cache, "made from": sha256(facts.encode()).hexdigest()}
        made = cached(cache, fingerprint, clients, total=data.num_clients, cache_dir=cache_dir)
        ids = made.client_ids
    return FederatedData(made.arrays, made.offsets, made.index, ids, data.about)


class Filled(NamedTuple):
    """Federations whose gaps in one column are filled, and by what.

    Attributes:
        data: the federations, in the order given.
        mean: [...] float64, what filled the gaps; [K, ...] by client.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"x": np.array([1.0, np.nan])}, offsets=[0, 2])
        >>> fs.data.fill(data, by="all").mean
        np.float64(1.0)
    """

    data: tuple[FederatedData, ...]
    mean: np.ndarray


def fill(
    train: FederatedData,
    *others: FederatedData,
    entry: str = "x",
    by: Literal["all", "client"] = "client",
    mark: str | None = None,
) -> Filled:
    """Put the mean of what the training examples know in the place of NaN.

    Each feature has its own mean: over the client's own training examples, or over all clients'. By client, a client
    that knows none of a feature, or has no training example, takes the mean of all. Sums are in float64.

    The means are taken outside of training: what they tell of one client to another is in no privacy budget.

    Args:
        train: the federation whose examples give the means.
        others: further federations, such as the test set, filled by the same means; by client, those of the client of
            the same name where the federations have `client_ids`, and of the same number where they have none.
        entry: the column, [N, ...] numbers; whole numbers have no gap and stay.
        by: "client" or "all".
        mark: name of a new column, [N, ...] uint8, 1 where there was a gap; None for none.

    Returns:
        `Filled`: the federations with `entry` in the dtype it had, in the clients' order, and the means.

    Raises:
        ArgumentError: no training example; a column that is not of numbers or has infinity; a feature that no training
            example knows; federations whose categories or features differ.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> train = fs.data.FederatedData({"x": np.array([1.0, 3.0, np.nan, 8.0])}, offsets=[0, 3, 4])
        >>> test = fs.data.FederatedData({"x": np.array([np.nan, np.nan])}, offsets=[0, 1, 2])
        >>> made = fs.data.fill(train, test)
        >>> made.data[0].client(0)["x"], made.data[1].client(1)["x"]
        (array([1., 3., 2.]), array([8.]))
    """
    every = _checked(train, others, entry, by)
    if mark is not None:
        check(mark not in train.arrays, "mark", mark, f"is a column already: {sorted(train.arrays)}.")
    total, known = _sums(train, entry)
    everywhere = known.sum(0)
    if np.any(everywhere == 0):
        place = ", ".join(map(str, np.argwhere(everywhere == 0)[0]))
        raise ArgumentError(f"entry={entry!r}: no training example knows feature {place or 0}; leave it out.")
    mean = total.sum(0) / everywhere
    if by == "all":
        means = [np.broadcast_to(mean, (data.num_clients, *mean.shape)) for data in every]
    else:
        own = np.where(known > 0, total / np.maximum(known, 1), mean)
        means = [np.concatenate([own, mean[None]])[_counterparts(train, data)] for data in every]
        mean = own
    return Filled(tuple(_filled(data, entry, those, mark) for data, those in zip(every, means, strict=True)), mean)


def _sums(data: FederatedData, entry: str) -> tuple[np.ndarray, np.ndarray]:
    """Each client's sum of what is known, and how many examples know it, [K, ...] each."""
    shape = (data.num_clients, *data.arrays[entry].shape[1:])
    total, known = np.zeros(shape), np.zeros(shape, np.int64)
    owner = _owner(data)
    for start in range(0, data.num_examples, BLOCK):
        block = _block(data, entry, start, min(start + BLOCK, data.num_examples))
        if np.any(np.isinf(block)):
            raise ArgumentError(f"entry={entry!r}: its training examples hold infinity; drop these first.")
        np.add.at(known, owner[start : start + BLOCK], ~np.isnan(block))
        np.add.at(total, owner[start : start + BLOCK], np.nan_to_num(block))
    return total, known


def _filled(data: FederatedData, entry: str, mean: np.ndarray, mark: str | None) -> FederatedData:
    """The data with each client's gaps filled by its mean, [K, ...]."""
    rows = slice(0, data.num_examples) if data.index is None else data.index
    arrays = {name: array[rows] for name, array in data.arrays.items()}
    column = np.array(arrays[entry])
    gap = np.isnan(column)
    column[gap] = mean[_owner(data)][gap]
    marks = {} if mark is None else {mark: gap.astype(np.uint8)}
    return FederatedData({**arrays, entry: column, **marks}, data.offsets, None, data.client_ids, data.about)


def _owner(data: FederatedData) -> np.ndarray:
    return np.repeat(np.arange(data.num_clients), data.sizes)


def _counterparts(train: FederatedData, other: FederatedData) -> np.ndarray:
    """[K] each client's number in the training set, by name where there are names; -1 for one that is not there."""
    if train.client_ids is None or other.client_ids is None:
        check(
            other.num_clients == train.num_clients,
            "by",
            "client",
            f"{other.num_clients} clients, but {train.num_clients} in the training set; give them client_ids.",
        )
        return np.arange(train.num_clients)
    places = {train.name(k): k for k in range(train.num_clients)}
    return np.array([places.get(other.name(k), -1) for k in range(other.num_clients)])


def _checked(train: FederatedData, others: tuple[FederatedData, ...], entry: str, by: str) -> tuple[FederatedData, ...]:
    """All federations, with a column of numbers, of one shape, and with the same codes for categories."""
    check(by in ("all", "client"), "by", by, 'must be "all" or "client".')
    for data in (train, *others):
        column = data.arrays.get(entry) if isinstance(data.arrays, dict) else None
        if column is None or column.dtype.kind not in "fiub":
            raise ArgumentError(f"entry={entry!r}: must be a column of numbers; the data have {data!r}.")
        if column.shape[1:] != train.arrays[entry].shape[1:]:
            raise ArgumentError(
                f"entry={entry!r}: examples of shape {column.shape[1:]}, but {train.arrays[entry].shape[1:]} in the "
                "training set."
            )
        check_categories(train, data)
    check(train.num_examples > 0, "train", train, "has no example.")
    return (train, *others)


def check_categories(train: FederatedData, other: FederatedData) -> None:
    """Refuse two federations in which a column's codes stand for different categories.

    `normalise` and `fill` ask for it. The sources keep a column's categories in `about`; data without do not tell.

    Args:
        train: a federation.
        other: another one, such as the test set.

    Raises:
        ArgumentError: a column has categories in both, and other ones or in another order.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> made = [fs.data.FederatedData({"y": np.zeros(1)}, [0, 1], about={"categories of y": c}) for c in "ab"]
        >>> fs.data.check_categories(*made)
        Traceback (most recent call last):
        ...
        fedjax_sim.core.errors.ArgumentError: categories of y: a, but b in the other; read that with categories=train.
    """
    for key, said in train.about.items():
        if key.startswith(CATEGORIES) and other.about.get(key, said) != said:
            raise ArgumentError(
                f"{key}: {said:.200}, but {other.about[key]:.200} in the other; read that with categories=train."
            )


def categories(data: FederatedData, entry: str = "y") -> tuple[str, ...]:
    """What a column's codes stand for: code c is the c-th.

    Args:
        data: read with `categories=`.
        entry: the column, of codes of one column of the file.

    Raises:
        ArgumentError: no such column, or one that is not codes of categories.

    Example:
        >>> import pathlib, tempfile, fedjax_sim as fs
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "wards.csv"
        >>> _ = file.write_text("ward,outcome\\na,home\\na,died\\n")
        >>> data = fs.data.sources.table(file, client="ward", categories=True)
        >>> fs.data.categories(data, "outcome")
        ('died', 'home')
    """
    check(entry in data.arrays, "entry", entry, f"no such column: {sorted(data.arrays)}.")
    found = categories_of(data.arrays[entry])
    check(len(found) == 1, "entry", entry, "holds no codes of one column's categories; read it with categories=True.")
    return tuple(json.loads(next(iter(found.values()))))


class Normalised(NamedTuple):
    """Federations with one column normalised, and by what.

    Attributes:
        data: the federations, in the order given.
        mean: [...] float32; [K, ...] by client.
        deviation: likewise, 1 where a feature is constant.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"x": np.array([1.0, 3.0])}, offsets=[0, 2])
        >>> fs.data.normalise(data).mean
        np.float32(2.0)
    """

    data: tuple[FederatedData, ...]
    mean: np.ndarray
    deviation: np.ndarray


def normalise(
    train: FederatedData,
    *others: FederatedData,
    entry: str = "x",
    by: Literal["all", "client"] = "all",
    features: tuple[int, ...] | None = None,
) -> Normalised:
    """Subtract the mean and divide by the standard deviation, both taken of the training examples alone.

    .. math:: x \\leftarrow (x - \\mu) / \\sigma

    Each feature has its own, over all clients' training examples, or over each client's own. A client without
    training examples takes those of all. Features that are constant are only shifted. Sums are in float64.

    Args:
        train: the federation whose examples give mean and deviation.
        others: further federations, such as the test set, normalised by the same figures; by client, by those of the
            client of the same name where the federations have `client_ids`, and of the same number where they have
            none. A client that is not in the training set takes those of all.
        entry: the column, [N, ...] numbers.
        by: "all" or "client".
        features: axes of an example that have figures of their own; None for all of them, () for one mean of
            everything, (2,) for the channels of pictures [N, H, W, channels] (axes are those of one example).

    Returns:
        `Normalised`: the federations with `entry` as float32, in the clients' order, and the figures.

    Raises:
        ArgumentError: no training example; a column that is not of numbers, or has NaN or infinity; federations whose
            categories or features differ.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> train = fs.data.FederatedData({"x": np.array([[0.0, 7.0], [4.0, 7.0]])}, offsets=[0, 1, 2])
        >>> test = fs.data.FederatedData({"x": np.array([[6.0, 7.0]])}, offsets=[0, 0, 1])
        >>> made = fs.data.normalise(train, test)
        >>> made.mean, made.deviation, made.data[1].client(1)["x"]
        (array([2., 7.], dtype=float32), array([2., 1.], dtype=float32), array([[2., 0.]], dtype=float32))
    """
    every = _checked(train, others, entry, by)
    shape = train.arrays[entry].shape[1:]
    axes = range(len(shape)) if features is None else features
    over = tuple(1 + axis for axis in range(len(shape)) if axis not in [a % max(len(shape), 1) for a in axes])
    groups = [slice(0, train.num_examples)]
    if by == "client":
        groups += [slice(int(a), int(b)) for a, b in zip(train.offsets[:-1], train.offsets[1:], strict=True)]
    figures = [_moments(train, entry, group, over) for group in groups if group.start < group.stop]
    if by == "client":
        held = iter(figures[1:])
        figures = [*(next(held) if size else figures[0] for size in train.sizes), figures[0]]  # the last for strangers
    mean, deviation = (np.stack(part) for part in zip(*figures, strict=True))  # [1 or K + 1, 1 or more, ...]
    places = [_counterparts(train, data) if by == "client" else np.zeros(data.num_clients, int) for data in every]
    out = tuple(_applied(data, entry, mean, deviation, place) for data, place in zip(every, places, strict=True))
    kept = tuple(1 + axis for axis in range(len(shape)) if 1 + axis in over)
    mean, deviation = (np.squeeze(part, kept).astype(np.float32) for part in (mean, deviation))
    return Normalised(out, *(part[:-1] if by == "client" else part[0] for part in (mean, deviation)))


def _block(data: FederatedData, entry: str, start: int, stop: int) -> np.ndarray:
    rows = slice(start, stop) if data.index is None else data.index[start:stop]
    return np.asarray(data.arrays[entry][rows], np.float64)


def _moments(data: FederatedData, entry: str, rows: slice, over: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation, kept to the shape of an example: 1 on the axes summed over. Two passes, block by block."""
    blocks = range(rows.start, rows.stop, BLOCK)
    total = lambda part: part.sum(axis=(0, *over), keepdims=True)[0]
    count = (rows.stop - rows.start) * np.prod([data.arrays[entry].shape[axis] for axis in over])
    mean = sum(total(_block(data, entry, at, min(at + BLOCK, rows.stop))) for at in blocks) / count
    if not np.all(np.isfinite(mean)):
        raise ArgumentError(f"entry={entry!r}: its training examples hold NaN or infinity; fill or drop these first.")
    squares = sum(total((_block(data, entry, at, min(at + BLOCK, rows.stop)) - mean) ** 2) for at in blocks)
    deviation = np.sqrt(squares / count)
    return mean, np.where(deviation > 1e-12 * np.abs(mean), deviation, 1.0)  # rounding is no spread


def _applied(
    data: FederatedData, entry: str, mean: np.ndarray, deviation: np.ndarray, place: np.ndarray
) -> FederatedData:
    """The data with `entry` normalised; client k's figures are those at `place[k]`."""
    column = np.empty((data.num_examples, *data.arrays[entry].shape[1:]), np.float32)
    owner = place[_owner(data)]
    factor = 1 / deviation
    for start in range(0, data.num_examples, BLOCK):
        block = slice(start, min(start + BLOCK, data.num_examples))
        column[block] = (_block(data, entry, block.start, block.stop) - mean[owner[block]]) * factor[owner[block]]
    rows = slice(0, data.num_examples) if data.index is None else data.index
    rest = {name: array[rows] for name, array in data.arrays.items() if name != entry}
    return FederatedData({**rest, entry: column}, data.offsets, None, data.client_ids, data.about)


def numbered(data: FederatedData, *, client: str = "client", example: str = "example") -> FederatedData:
    """Add two columns: whose each example is, and which; for functions inside the step (`fs.client.augment`).

    Args:
        data: the federation.
        client: name of the new column of client numbers, [N] int32; -1 for rows that are nobody's.
        example: name of the new column of row numbers, [N] int32.

    Raises:
        ArgumentError: the data have a column of that name; a row that belongs to two clients.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"x": np.arange(5.0)}, offsets=[0, 2, 5])
        >>> fs.data.numbered(data).client(1)["client"]
        array([1, 1, 1], dtype=int32)
    """
    if not isinstance(data.arrays, dict):
        raise ArgumentError(f"data: the arrays must be a dict, not {type(data.arrays).__name__}.")
    for name in (client, example):
        check(name not in data.arrays, "name", name, f"is a column already: {sorted(data.arrays)}.")
    num_rows = len(next(iter(data.arrays.values())))
    rows = np.arange(data.num_examples) if data.index is None else data.index
    if data.index is not None and len(rows) and np.bincount(rows).max() > 1:
        raise ArgumentError("data: a row belongs to two clients; copy the rows (`map_clients`) first.")
    owner = np.full(num_rows, -1, np.int32)
    owner[rows] = np.repeat(np.arange(data.num_clients, dtype=np.int32), data.sizes)
    arrays = {**data.arrays, client: owner, example: np.arange(num_rows, dtype=np.int32)}
    return FederatedData(arrays, data.offsets, data.index, data.client_ids, data.about)
