"""Client rows on the host: in a file, each in a slot of its own from its client's first round on.

A row is never changed. A client's next one goes to another slot, and a state is an index from clients to rows, so that
states of earlier rounds keep theirs; a slot is free again when no state knows its row. Nothing here grows with the
population but the index's pages, of which a round copies those of its cohort.
"""

import math
import tempfile
import threading
import weakref
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, FedSimError, RunFolderError
from fedjax_sim.core.types import ClientRows


class RowFile:
    """A file of slots for rows of one form; made by `tempfile`, and gone with the process, unless it is given.

    Args:
        like: a row: its shapes and dtypes are those of all.
        file: open to be read and written, unbuffered; None for a temporary one.
    """

    def __init__(self, like: PyTree, file: Any = None):
        leaves, self.structure = jax.tree.flatten(like)
        for leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise ArgumentError('rows="host": rows that hold random keys stay on devices: use rows="device".')
        self.leaves = [(tuple(leaf.shape), np.dtype(leaf.dtype)) for leaf in leaves]
        self.size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.leaves)
        self.slots = 0
        if file is None:
            try:
                file = tempfile.TemporaryFile(prefix="fedjax_sim-rows-", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise RunFolderError(
                    f"clients' rows need a temporary file, and there can be none: {error}. Let TMPDIR name a folder "
                    'that can be written, or use rows="device". Nothing that was saved is lost.'
                ) from error
            weakref.finalize(self, file.close)
        self._file = file
        self._free: deque[int] = deque()
        self._lock = threading.Lock()  # of the file's position

    def new(self) -> "Row":
        """A row still to be written."""
        try:
            slot = self._free.pop()
        except IndexError:
            slot, self.slots = self.slots, self.slots + 1
        return Row(self, slot)

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)

    def read(self, slot: int, into: Iterable[np.ndarray]) -> None:
        """Read a row into the bytes of its leaves."""
        with self._lock:
            self._file.seek(slot * self.size)
            for leaf in into:
                view = leaf.data
                while len(view):
                    got = self._file.readinto(view)
                    if not got:
                        raise EOFError(f"the file of client rows ends inside slot {slot}")
                    view = view[got:]

    def write(self, slot: int, leaves: Iterable[np.ndarray]) -> None:
        """Write the bytes of a row's leaves.

        Raises:
            FedSimError: they could not be written.
        """
        try:
            with self._lock:
                self._file.seek(slot * self.size)
                for leaf in leaves:
                    view = leaf.data
                    while len(view):
                        view = view[self._file.write(view) :]
        except OSError as error:
            raise FedSimError(
                f"clients' rows, {self.slots} of {self.size} bytes, could not be written to {tempfile.gettempdir()}: "
                f"{error}. Let TMPDIR name a folder with more room."
            ) from error


class Row:
    """A row in a file, which keeps its slot for as long as somebody knows it.

    Attributes:
        written: done when the row is in the file; None if it has been for long.
    """

    __slots__ = ("_crc", "file", "slot", "written")

    def __init__(self, file: RowFile, slot: int):
        self.file, self.slot = file, slot
        self.written: Future[None] | None = None
        self._crc: int | None = None

    def __del__(self) -> None:
        self.file.free(self.slot)

    def read(self, into: Iterable[np.ndarray]) -> None:
        """Read it into the bytes of its leaves."""
        if self.written is not None:
            self.written.result()
            self.written = None
        self.file.read(self.slot, into)

    def bytes(self) -> np.ndarray:
        """All of them, [bytes]; their CRC is known from then on."""
        found = np.empty(self.file.size, np.uint8)
        self.read([found])
        self._crc = crc(found)
        return found

    def crc(self) -> int:
        """CRC-32 of its bytes."""
        if self._crc is None:
            self.bytes()
        return self._crc  # type: ignore[return-value]


def crc(row: np.ndarray) -> int:
    """CRC-32 of a row's bytes."""
    return zlib.crc32(row.data)


Page = tuple[Row | None, ...]


@jax.tree_util.register_static
class HostRows:
    """The rows of a state, on the host. For JAX it is no array and holds none.

    Attributes:
        first: the row of a client that has taken part in no round, `ClientRows` of host arrays.
        num_clients: K.
        file: where rows are.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.core.types import ClientRows
        >>> from fedjax_sim.engine.store.row_file import HostRows
        >>> rows = HostRows(ClientRows(client={"c": np.zeros(2, np.float32)}), num_clients=1_000_000)
        >>> rows.row(7).client
        {'c': array([0., 0.], dtype=float32)}
        >>> len(rows.used())
        0
    """

    def __init__(
        self,
        first: ClientRows,
        num_clients: int,
        file: RowFile | None = None,
        pages: tuple[Page, ...] | None = None,
        writes: Sequence["Future[None]"] = (),
    ):
        self.first, self.num_clients = first, num_clients
        self.file = RowFile(first) if file is None else file
        self._page = max(1, math.isqrt(num_clients))
        empty: Page = (None,) * self._page
        self._pages = (empty,) * -(-num_clients // self._page) if pages is None else pages
        self._writes = tuple(writes)

    def find(self, client: int) -> Row | None:
        """A client's row; None before its first round."""
        return self._pages[client // self._page][client % self._page]

    def updated(self, rows: dict[int, Row], writes: Sequence["Future[None]"] = ()) -> "HostRows":
        """With those clients' rows instead, which `writes` put into the file."""
        pages = list(self._pages)
        changed: dict[int, list[Row | None]] = {}
        for client, row in rows.items():
            page = client // self._page
            changed.setdefault(page, list(pages[page]))[client % self._page] = row
        for page, entries in changed.items():
            pages[page] = tuple(entries)
        waiting = [write for write in self._writes if not write.done() or write.exception() is not None]
        return HostRows(self.first, self.num_clients, self.file, tuple(pages), [*waiting, *writes])

    def settle(self) -> None:
        """Until its rows are in the file.

        Raises:
            FedSimError: they could not be written.
        """
        for write in self._writes:
            write.result()
        self._writes = ()

    def used(self) -> dict[int, Row]:
        """The rows there are, by client, in order. O(population)."""
        return {
            page * self._page + i: row
            for page, entries in enumerate(self._pages)
            for i, row in enumerate(entries)
            if row is not None
        }

    def row(self, client: int) -> ClientRows:
        """One client's, [...] a leaf."""
        return jax.tree.map(lambda leaf: leaf[0], self.gather([client]))

    def gather(self, clients: Sequence[int]) -> ClientRows:
        """Those clients', [clients, ...] a leaf."""
        leaves = [np.empty((len(clients), *shape), dtype) for shape, dtype in self.file.leaves]
        self.read(clients, leaves)
        return jax.tree.unflatten(self.file.structure, leaves)

    def read(self, clients: Iterable[int], into: list[np.ndarray]) -> None:
        """Read those clients' rows into the first rows of `into`, [at least clients, ...]; the rest become `first`."""
        data = [_bytes(leaf) for leaf in into]
        first, count = jax.tree.leaves(self.first), 0
        for count, client in enumerate(clients, start=1):
            row = self.find(client)
            if row is not None:
                row.read(leaf[count - 1] for leaf in data)
            else:
                for leaf, value in zip(into, first, strict=True):
                    leaf[count - 1] = value
        for leaf, value in zip(into, first, strict=True):
            leaf[count:] = value


def _bytes(leaf: np.ndarray) -> np.ndarray:
    """[rows, bytes]: the memory of a table."""
    return leaf.reshape(len(leaf), math.prod(leaf.shape[1:])).view(np.uint8)


def write(rows: Sequence[Row], leaves: list[np.ndarray]) -> None:
    """Write the first rows of a table, [at least rows, ...] a leaf."""
    data = [_bytes(leaf) for leaf in leaves]
    for i, row in enumerate(rows):
        row.file.write(row.slot, [leaf[i] for leaf in data])
