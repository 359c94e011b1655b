"""What the clients hold: arrays and, by CSR, whose rows are whose. Nothing is copied to regroup rows."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from fedjax_sim.core import html, rng
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.rng import Purpose

CATEGORIES = "categories of "
"""`about[CATEGORIES + column]` has what the codes in a column stand for, as JSON, in the order of the codes."""


@dataclasses.dataclass(frozen=True)
class Partition:
    """An assignment of rows to clients: client k holds `index[offsets[k]:offsets[k + 1]]`.

    Attributes:
        offsets: [K + 1] int64, not decreasing, from 0 to len(index).
        index: [n] int64 row numbers, each at most once.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> def halves(labels, num_rows, generator):
        ...     return fs.data.Partition(np.array([0, num_rows // 2, num_rows]), generator.permutation(num_rows))
        >>> fs.data.federate({"x": np.arange(5)}, halves).sizes
        array([2, 3])
    """

    offsets: np.ndarray
    index: np.ndarray


Partitioner = Callable[[np.ndarray | None, int, np.random.Generator], Partition]
"""`(labels [N] or None, N, generator) -> Partition`."""


@dataclasses.dataclass(frozen=True)
class FederatedData:
    """A federation: K clients over N examples.

    Client k holds the rows `index[offsets[k]:offsets[k + 1]]` of every array, or the rows
    `offsets[k]:offsets[k + 1]` themselves when `index` is None.

    Args:
        arrays: pytree of arrays, [N, ...] each, in the dtype they are stored in; usually a dict.
        offsets: [K + 1] whole numbers, not decreasing, starting at 0.
        index: [n] row numbers grouped by client, or None when the rows lie in that order already.
        client_ids: [K] different names, or None.
        about: where the data come from, for reports: title, licence, source, client key, partition.

    Raises:
        ArgumentError: arrays of different lengths, offsets that do not fit, rows that do not exist, a name twice.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"x": np.arange(5.0)}, offsets=[0, 2, 2, 5])
        >>> data
        FederatedData(3 clients, 5 examples (min 0, median 2, max 3 a client; 1 without any), x: float64[5])
        >>> data.client(2)["x"]
        array([2., 3., 4.])
    """

    arrays: PyTree
    offsets: Any
    index: Any = None
    client_ids: Any = None
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        num_rows = _common_length(self.arrays)
        offsets = np.asarray(self.offsets)
        check(np.issubdtype(offsets.dtype, np.integer), "offsets.dtype", offsets.dtype, "must be integers.")
        offsets = offsets.astype(np.int64)
        check(
            offsets.ndim == 1 and len(offsets) >= 2,
            "offsets",
            offsets,
            "must be [num_clients + 1] with at least one client.",
        )
        check(
            offsets[0] == 0 and bool(np.all(np.diff(offsets) >= 0)),
            "offsets",
            offsets,
            "must start at 0 and never decrease.",
        )
        object.__setattr__(self, "offsets", offsets)
        if self.index is None:
            check(
                int(offsets[-1]) <= num_rows,
                "offsets[-1]",
                int(offsets[-1]),
                f"runs past the arrays' {num_rows} rows.",
            )
        else:
            index = np.asarray(self.index)
            check(index.ndim == 1, "index.shape", index.shape, "must be [n].")
            check(
                np.issubdtype(index.dtype, np.integer),
                "index.dtype",
                index.dtype,
                "must be integers.",
            )
            check(
                len(index) == int(offsets[-1]),
                "len(index)",
                len(index),
                f"must be offsets[-1]={int(offsets[-1])}.",
            )
            if len(index):
                low, high = int(index.min()), int(index.max())
                check(
                    low >= 0 and high < num_rows,
                    "index",
                    (low, high),
                    f"least and greatest row must lie in 0..{num_rows - 1}.",
                )
            object.__setattr__(self, "index", index)
        if self.client_ids is not None:
            check(
                len(self.client_ids) == self.num_clients,
                "len(client_ids)",
                len(self.client_ids),
                f"must be the number of clients, {self.num_clients}.",
            )
            _check_unique(self.client_ids)

    @property
    def num_clients(self) -> int:
        """Number of clients, K."""
        return len(self.offsets) - 1

    @property
    def num_examples(self) -> int:
        """Number of examples that belong to a client."""
        return int(self.offsets[-1])

    @property
    def sizes(self) -> np.ndarray:
        """[K] int64, examples of each client."""
        return np.diff(self.offsets)

    @functools.cached_property
    def checksum(self) -> int:
        """CRC-32 of the clients' sizes, computed once: what a run that goes on is held against."""
        return zlib.crc32(np.ascontiguousarray(self.offsets).data)

    def sizes_of(self, clients: npt.ArrayLike) -> np.ndarray:
        """[n] int64, examples of the clients [n], without a look at the others."""
        return self.offsets[np.asarray(clients) + 1] - self.offsets[clients]

    def kinds(self, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The sizes that occur and how many clients have each, of all clients or of a mask's [K]."""
        return np.unique(self.sizes if among is None else self.sizes[among], return_counts=True)

    @property
    def resident(self) -> bool:
        """Whether the arrays can be put on a device as they are; else they are only ever streamed."""
        return all(isinstance(leaf, np.ndarray | jax.Array) for leaf in jax.tree.leaves(self.arrays))

    def read(self, clients: np.ndarray, counts: np.ndarray) -> PyTree:
        """The first `counts[i]` stored examples of each client, one client after the other.

        Args:
            clients: [n] client numbers.
            counts: [n] examples, at most what the client holds.

        Returns:
            The arrays, [sum of counts, ...] each, in the dtypes they are stored in.
        """
        clients, counts = np.asarray(clients, np.int64), np.asarray(counts, np.int64)
        places = np.repeat(self.offsets[clients] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        rows = places if self.index is None else np.asarray(self.index[places])
        return jax.tree.map(lambda array: np.asarray(array[rows]), self.arrays)

    def rows(self, client: int) -> np.ndarray:
        """[n] the row numbers of a client."""
        client = self._check_client(client)
        rows = slice(int(self.offsets[client]), int(self.offsets[client + 1]))
        return np.arange(rows.start, rows.stop) if self.index is None else self.index[rows]

    def client(self, client: int) -> PyTree:
        """The arrays of one client, [n, ...] each."""
        client = self._check_client(client)
        rows = slice(int(self.offsets[client]), int(self.offsets[client + 1]))
        if self.index is not None:
            rows = self.index[rows]
        return jax.tree.map(lambda array: np.array(array[rows]), self.arrays)

    def name(self, client: int) -> str:
        """The client's name: its entry of `client_ids`, or its number."""
        client = self._check_client(client)
        return str(client) if self.client_ids is None else str(self.client_ids[client])

    def _check_client(self, client: int) -> int:
        check_count("client", client, minimum=0)
        check(client < self.num_clients, "client", client, f"there are {self.num_clients} clients.")
        return int(client)

    def shapes(self) -> dict[str, str]:
        """Each column's type and shape, in words."""
        leaves = jax.tree_util.tree_leaves_with_path(self.arrays)
        name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/") or "array"
        return {name(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in leaves}

    def _empty(self) -> str:
        empty = int(np.count_nonzero(self.sizes == 0))
        return f"; {empty} without any" if empty else ""

    def _spread(self) -> str:
        return f"min {self.sizes.min()}, median {np.median(self.sizes):g}, max {self.sizes.max()}"

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {shape}" for name, shape in self.shapes().items())
        examples = f"{self.num_examples} examples ({self._spread()} a client{self._empty()})"
        return f"FederatedData({self.num_clients} clients, {examples}, {shapes})"

    def _repr_html_(self) -> str:
        spread = self._spread() + self._empty()
        counts = {"clients": self.num_clients, "examples": self.num_examples, "examples of a client": spread}
        arrays = {f"array {name}": shape for name, shape in self.shapes().items()}
        return html.facts("FederatedData", {**self.about, **counts, **arrays})


def federate(
    arrays: PyTree,
    partition: Partitioner,
    seed: int = 0,
    labels: str = "y",
    about: Mapping[str, str] | None = None,
) -> FederatedData:
    """Split one central data set over clients.

    Args:
        arrays: pytree of arrays, [N, ...] each; a dict where the partitioner needs labels.
        partition: one of `fs.partition`, or a function `(labels, N, generator) -> Partition`.
        seed: 32-bit seed; the same seed gives the same federation.
        labels: the entry of `arrays` that holds the labels.
        about: where the arrays come from, as `fs.data.load(NAME).about`; run reports show it.

    Returns:
        `FederatedData` over the very same arrays. Its `about["partition"]` names the law, and how many clients it left
        without an example, which have weight 0.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.data.federate({"y": np.arange(10) % 2}, fs.partition.iid(5)).sizes
        array([2, 2, 2, 2, 2])
    """
    rng.check_seed(seed)
    num_rows = _common_length(arrays)
    y = arrays.get(labels) if isinstance(arrays, dict) else None
    made = partition(None if y is None else np.asarray(y), num_rows, rng.generator(seed, Purpose.PARTITION))
    law = getattr(partition, "__qualname__", type(partition).__name__).split(".")[0]
    said = "natural: by_column" if law == "by_column" else f"synthetic: {law}"
    about = dict(about or {})
    if about.get("partition") == "none":  # "client" says that there was none
        about.pop("client", None)
    data = FederatedData(arrays, made.offsets, made.index)
    if empty := int(np.count_nonzero(data.sizes == 0)):
        said += f", {empty} of {data.num_clients} clients without an example"
    return dataclasses.replace(data, about={**about, "partition": said})


def from_clients(clients: Sequence[PyTree], client_ids: Sequence[str] | None = None) -> FederatedData:
    """Join per-client arrays, as many sets come, into one federation.

    Args:
        clients: one pytree of arrays a client, [n_k, ...] each; n_k may be 0.
        client_ids: their names, or None.

    Raises:
        ArgumentError: a name twice; clients whose entries, shapes or dtypes differ, naming both clients.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.data.from_clients([{"x": np.zeros(2)}, {"x": np.ones(3)}]).sizes
        array([2, 3])
    """
    check(len(clients) > 0, "clients", clients, "must hold at least one client.")
    clients = [jax.tree.map(np.asarray, client) for client in clients]
    kinds = [jax.tree.map(lambda a: (a.shape[1:], str(a.dtype)), client) for client in clients]
    for k, kind in enumerate(kinds):
        if kind != kinds[0]:
            name = k if client_ids is None else client_ids[k]
            raise ArgumentError(
                f"client {name}: entries {kind} differ from the first client's {kinds[0]}; "
                "all clients must hold the same entries, example shapes and dtypes."
            )
    sizes = [_common_length(client) for client in clients]
    arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves), *clients)
    return FederatedData(arrays, np.concatenate([[0], np.cumsum(sizes)]), client_ids=client_ids)


def _check_unique(client_ids: npt.ArrayLike) -> None:
    names = np.asarray(client_ids).tolist()
    if len(set(names)) < len(names):
        seen: set[object] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise ArgumentError(f"client_ids: {twice!r} comes twice; clients must have different names.")


def _common_length(arrays: PyTree) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    check(len(leaves) > 0, "arrays", arrays, "must hold at least one array.")
    lengths = {}
    for path, leaf in leaves:
        name = "arrays" + jax.tree_util.keystr(path)
        check(getattr(leaf, "ndim", 0) >= 1, name, leaf, "must be an array of shape [N, ...].")
        lengths[name] = len(leaf)
    check(
        len(set(lengths.values())) == 1,
        "arrays",
        lengths,
        "must all have the same number of rows.",
    )
    return next(iter(lengths.values()))
