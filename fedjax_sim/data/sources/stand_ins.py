"""Random rows in the shapes and counts of well-known sets, for machines without the files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import check, check_count
from fedjax_sim.core.rng import Purpose
from fedjax_sim.data.federated import FederatedData

Parts = tuple[FederatedData, FederatedData]
WORDS = 20
"""Words of a made-up text at most."""


@dataclass(frozen=True)
class Layout:
    """What a set looks like.

    Attributes:
        name: its name in the catalogue.
        file: what TFF calls its archive.
        features: name to (shape of an example, dtype); dtype object for texts.
        clients: training and test clients.
        rows: training and test rows.
        shared: True when the test clients are among the training clients.
    """

    name: str
    file: str
    features: dict[str, tuple[tuple[int, ...], Any]]
    clients: tuple[int, int]
    rows: tuple[int, int]
    shared: bool = True


Make = Callable[[Layout, np.ndarray, int, int], dict[str, Any]]
"""`(layout, sizes of the clients, seed, 0 to train and 1 to test) -> arrays`."""


def stand_in_for(layout: Layout, path: Any, num_clients: int | None, seed: int, make: Make) -> Parts:
    check(path is None, "path", path, "is not read where stand_in=True; leave one of them out.")
    rng.check_seed(seed)
    total = layout.clients[0]
    num_clients = total if num_clients is None else num_clients
    check_count("num_clients", num_clients)
    check(num_clients <= total, "num_clients", num_clients, f"{layout.name} has {total}.")
    about = {
        "title": f"stand-in for {layout.name}: random data of the true shapes",
        "licence": "none needed: it is made up",
        "source": f"drawn by fedjax_sim, seed {seed}, {num_clients} of {total} clients; what is learnt means nothing",
        "citation": "",
        "client key": "a number",
        "partition": "synthetic",
    }
    ids = np.array([f"stand_in_{k:06d}" for k in range(num_clients)])

    def made(part: int) -> FederatedData:
        present = max(1, round(layout.clients[part] * num_clients / total))
        rows = max(present, round(layout.rows[part] * num_clients / total))
        generator = rng.generator(seed, Purpose.PARTITION, part)
        sizes = _sizes(present, rows, generator, equal=not layout.shared)
        names = ids[:present]
        if layout.shared and present < num_clients:
            sizes, names = _with_empty(sizes, num_clients, generator), ids
        arrays = make(layout, sizes, seed, part)
        return FederatedData(arrays, np.concatenate([[0], np.cumsum(sizes)]), client_ids=names, about=about)

    return made(0), made(1)


def _sizes(clients: int, rows: int, generator: np.random.Generator, equal: bool) -> np.ndarray:
    """Sizes of at least 1 that sum to `rows`: equal ones, or log-normal ones."""
    weights = np.ones(clients) if equal else generator.lognormal(0, 0.8, clients)
    exact = weights / weights.sum() * (rows - clients)
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: rows - clients - sizes.sum()]] += 1
    return sizes + 1


def _with_empty(sizes: np.ndarray, clients: int, generator: np.random.Generator) -> np.ndarray:
    spread = np.zeros(clients, np.int64)
    spread[np.sort(generator.permutation(clients)[: len(sizes)])] = sizes
    return spread


def pictures(name: str, classes: int) -> Make:
    """Noisy pictures of a pattern a class; each client has a few classes more often than others."""

    def make(layout: Layout, sizes: np.ndarray, seed: int, part: int) -> dict[str, Any]:
        shape, dtype = layout.features[name]
        patterns = rng.generator(seed, Purpose.INIT).random((classes, *shape), np.float32)
        generator = rng.generator(seed, Purpose.SPLIT, part)
        rows = int(sizes.sum())
        owner = np.repeat(np.arange(len(sizes)), sizes)
        own = (owner * 7 + generator.integers(0, 5, rows)) % classes
        label = np.where(generator.random(rows) < 0.5, own, generator.integers(0, classes, rows))
        noise = generator.random((1024, *shape), np.float32)
        which = generator.integers(0, len(noise), rows)
        pictures = np.empty((rows, *shape), dtype)
        for start in range(0, rows, 4096):
            block = slice(start, start + 4096)
            mixed = 0.5 * patterns[label[block]] + 0.5 * noise[which[block]]
            pictures[block] = mixed * 255 if dtype == np.uint8 else mixed
        arrays = {name: pictures, "label": label.astype(layout.features["label"][1])}
        return {**arrays, "coarse_label": arrays["label"] // 5} if "coarse_label" in layout.features else arrays

    return make


def texts(words: int, lazy: bool) -> Make:
    """Texts of made-up words, each with four words that may follow it."""

    def make(layout: Layout, sizes: np.ndarray, seed: int, part: int) -> dict[str, Any]:
        source = _Words(words, seed, part)
        columns = {
            name: Drawn(int(sizes.sum()), dtype, source.column(i, name))
            for i, (name, (_, dtype)) in enumerate(sorted(layout.features.items()))
        }
        return dict(columns) if lazy else {name: column[:] for name, column in columns.items()}

    return make


class Drawn:
    """A column of N values, each drawn from its row's number when it is asked for.

    Args:
        length: N.
        dtype: of the values; object for texts.
        draw: row numbers [n] -> values [n].

    Example:
        >>> column = Drawn(10**9, np.int64, lambda rows: rows % 7)
        >>> len(column), column[np.array([7, 13])]
        (1000000000, array([0, 6]))
    """

    ndim = 1

    def __init__(self, length: int, dtype: Any, draw: Callable[[np.ndarray], np.ndarray]):
        self.shape, self.dtype, self.draw = (length,), np.dtype(dtype), draw

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, int | np.integer):
            return self.draw(np.array([range(len(self))[int(rows)]]))[0]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        return self.draw(np.where(rows < 0, rows + len(self), rows).astype(np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class _Words:
    def __init__(self, count: int, seed: int, part: int):
        self.seed, self.part = seed, part
        generator = rng.generator(seed, Purpose.INIT)
        letters = np.frombuffer(b"etaoinshrdlucmfwygpb", np.uint8)
        drawn = letters[generator.integers(0, len(letters), (count, 8))]
        self.words = [row[: 2 + k % 7].tobytes() for k, row in enumerate(drawn)]
        common = 1 / np.arange(1, count + 1)
        self.first = np.cumsum(common / common.sum())
        self.next = np.minimum(np.searchsorted(self.first, generator.random((count, 4))), count - 1)

    def column(self, stream: int, name: str) -> Callable[[np.ndarray], np.ndarray]:
        def bits(rows: np.ndarray, counter: Any) -> np.ndarray:
            return rng.hash32(self.seed, Purpose.SPLIT, 2 * stream + self.part, rows, counter)

        def sentences(rows: np.ndarray) -> np.ndarray:
            lengths = 3 + bits(rows, 0) % np.uint64(WORDS - 2)
            word = np.minimum(np.searchsorted(self.first, bits(rows, 1) / 2.0**32), len(self.words) - 1)
            chain = [word]
            for t in range(1, WORDS):
                word = self.next[word, (bits(rows, 1 + t) % np.uint64(4)).astype(np.int64)]
                chain.append(word)
            table = np.stack(chain, axis=1).tolist() if len(rows) else []
            separator = b"|" if name == "tags" else b" "
            made = [
                separator.join([self.words[w] for w in row[:n]])
                for row, n in zip(table, lengths.tolist(), strict=False)
            ]
            return _objects(made)

        if name == "score":
            return lambda rows: (bits(rows, 0) % np.uint64(40)).astype(np.int64)
        if name == "type":
            return lambda rows: _objects([b"question" if bit else b"answer" for bit in bits(rows, 0) % np.uint64(2)])
        if name == "creation_date":
            return lambda rows: _objects(
                [b"20%02d-01-01 00:00:00 UTC" % year for year in 9 + bits(rows, 0) % np.uint64(9)]
            )
        return sentences


def _objects(values: list[bytes]) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column
