"""A column of byte strings of any lengths, of which none is read before it is asked for."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import check


class Strings:
    """N byte strings in one buffer: string i is `buffer[ends[i - 1]:ends[i]]`.

    It stands where an array [N] of objects could: it has a length, a shape and a dtype, and takes an index, a slice
    or an array of row numbers. A model cannot be trained on it; `fs.data.text` turns it into arrays of numbers.

    Args:
        buffer: [bytes] uint8, the strings one after another; a `np.memmap` stays on disk.
        ends: [N] int64, where each string ends.

    Raises:
        ArgumentError: ends that decrease or do not end with the buffer.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> lines = fs.data.Strings(np.frombuffer(b"to beor not", np.uint8), np.array([5, 11]))
        >>> lines[1], lines[:1]
        (b'or not', array([b'to be'], dtype=object))
    """

    ndim = 1
    dtype = np.dtype(object)

    def __init__(self, buffer: np.ndarray, ends: np.ndarray):
        last = int(ends[-1]) if len(ends) else 0
        check(last == len(buffer), "ends[-1]", last, f"must be the buffer's length, {len(buffer)}.")
        check(len(ends) == 0 or (int(ends[0]) >= 0 and bool(np.all(np.diff(ends) >= 0))), "ends", ends, "decrease.")
        self._buffer, self._ends = buffer, ends

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def shape(self) -> tuple[int]:
        """(N,)"""
        return (len(self),)

    @property
    def nbytes(self) -> int:
        """Bytes of all strings together."""
        return len(self._buffer)

    def __getitem__(self, rows: slice | npt.ArrayLike) -> Any:
        if isinstance(rows, int | np.integer):
            row = range(len(self))[int(rows)]
            return self._buffer[int(self._ends[row - 1]) if row else 0 : int(self._ends[row])].tobytes()
        rows = row_numbers(rows, len(self), "strings")
        ends = self._ends[rows]
        starts = np.where(rows > 0, self._ends[np.maximum(rows - 1, 0)], 0)
        out = np.empty(rows.shape, object)
        if rows.size and rows.ndim == 1 and np.array_equal(starts[1:], ends[:-1]):
            # One client's strings lie side by side: one read, then cuts.
            first = int(starts[0])
            data = self._buffer[first : int(ends[-1])].tobytes()
            out[:] = [data[a:b] for a, b in zip((starts - first).tolist(), (ends - first).tolist(), strict=True)]
            return out
        flat = [
            self._buffer[a:b].tobytes() for a, b in zip(starts.ravel().tolist(), ends.ravel().tolist(), strict=True)
        ]
        out.ravel()[:] = flat
        return out

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:]

    def __repr__(self) -> str:
        return f"Strings({len(self)} of {self.nbytes / max(1, len(self)):.1f} bytes on average)"


def strings(values: Iterable[str | bytes]) -> Strings:
    """A column of byte strings from any sequence of `bytes` or `str` (as UTF-8).

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.strings(["to be", b"or not"])
        Strings(2 of 5.5 bytes on average)
    """
    encoded = [value.encode() if isinstance(value, str) else bytes(value) for value in values]
    ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)
    return Strings(np.frombuffer(b"".join(encoded), np.uint8), ends)


def row_numbers(rows: slice | npt.ArrayLike, length: int, what: str) -> np.ndarray:
    """Whole numbers from 0 on, int64, for any index of so many rows: a slice, a mask, numbers, or a single one."""
    if isinstance(rows, slice):
        rows = np.arange(*rows.indices(length))
    rows = np.asarray(rows)
    if rows.dtype == bool:
        rows = np.flatnonzero(rows)
    if rows.size and not -length <= rows.min() <= rows.max() < length:
        raise IndexError(f"rows {rows.min()} to {rows.max()} of {length} {what}")
    return np.where(rows < 0, rows + length, rows).astype(np.int64)
