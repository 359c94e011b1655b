"""Arrays that stay in their file: rows are read when they are asked for, into memory that the caller owns."""

import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.kinds import in_native_order, is_wide


class DiskArray:
    """An array in a file, of which only the rows that are indexed are read (`pread`; nothing is mapped).

    A memory map does as well for most purposes, but its pages count as the process's memory while they stay, and
    the whole of it as address space. `np.asarray` reads everything.

    Args:
        path: the file.
        dtype: of the entries in the file; rows come in the machine's order of bytes.
        shape: [N, ...], in C order.
        offset: bytes before the first entry.

    Raises:
        ArgumentError: a file too short for the shape.

    Example:
        >>> import tempfile, numpy as np, fedjax_sim as fs
        >>> path = tempfile.mkdtemp() + "/x.bin"
        >>> np.arange(6, dtype=np.uint8).tofile(path)
        >>> fs.data.DiskArray(path, np.uint8, (3, 2))[[2, 0]].tolist()
        [[4, 5], [0, 1]]
    """

    def __init__(self, path: str | os.PathLike[str], dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int = 0):
        self.path, self.shape, self.offset = Path(path), tuple(shape), int(offset)
        self.stored = np.dtype(dtype)
        self.dtype = self.stored.newbyteorder("=")
        check(len(self.shape) >= 1, "shape", shape, "must be [N, ...].")
        check(not self.dtype.hasobject, "dtype", dtype, "Python objects cannot be read row by row.")
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize
        held, needed = os.path.getsize(self.path), self.offset + self._row * self.shape[0]
        check(held >= needed, "path", self.path, f"holds {held} bytes; shape {self.shape} needs {needed}.")

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, in the file."""
        return self._row * self.shape[0]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | npt.ArrayLike) -> np.ndarray:
        """The rows of a slice or of an integer array, [n, ...]; of one number, [...]."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if not np.issubdtype(rows.dtype, np.integer) or rows.ndim > 1:
            raise ArgumentError(f"rows={rows!r}: a DiskArray takes a slice, a row number, or [n] row numbers.")
        wanted = np.atleast_1d(rows).astype(np.int64)
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {rows} of {self}")
        out = np.empty((len(wanted), *self.shape[1:]), self.stored)
        if out.nbytes:
            self._read(wanted, out.reshape(-1).view(np.uint8))
        out = in_native_order(out)
        return out if rows.ndim else out[0]

    def _read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """One read for each run of neighbouring rows."""
        begins = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
        ends = np.append(begins[1:], len(rows))
        file = os.open(self.path, os.O_RDONLY)
        try:
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
                at = self.offset + int(rows[begin]) * self._row
                view = out.data[begin * self._row : end * self._row]
                while len(view):
                    count = os.preadv(file, [view], at)
                    if not count:
                        raise OSError(f"{self.path} ends at byte {at}: it was cut while in use")
                    at, view = at + count, view[count:]
        finally:
            os.close(file)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def __repr__(self) -> str:
        return f"DiskArray({str(self.path)!r}, {self.dtype}{list(self.shape)})"


def on_disk(source: str | os.PathLike[str] | np.memmap) -> DiskArray:
    """An array that stays in its file, for federations larger than memory.

    Args:
        source: a `.npy` file, or an `np.memmap`, as the arrays of `fs.data.cached` are.

    Raises:
        ArgumentError: no such file, one that is no .npy or shorter than it says; an array in Fortran order, or of
            anything but numbers.

    Example:
        >>> import tempfile, numpy as np, fedjax_sim as fs
        >>> path = tempfile.mkdtemp() + "/x.npy"
        >>> np.save(path, np.arange(12.0).reshape(4, 3))
        >>> x = fs.data.on_disk(path)
        >>> x[np.array([3, 1])]
        array([[ 9., 10., 11.],
               [ 3.,  4.,  5.]])
        >>> fs.data.FederatedData({"x": x}, offsets=[0, 1, 4]).client(0)["x"]
        array([[0., 1., 2.]])
    """
    try:
        mapped = source if isinstance(source, np.memmap) else np.lib.format.open_memmap(source, mode="r")
    except OSError as error:
        raise ArgumentError(f"source={str(source)!r}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # numpy's header reader raises many kinds
        what = f"{type(error).__name__}: {error}"
        raise ArgumentError(
            f"source={str(source)!r}: is no .npy file of numbers, or a damaged one ({what})."
        ) from error
    kind = mapped.dtype
    readable = kind.kind in "biufc" and not is_wide(kind)
    check(readable, "source", source, f"holds {kind}: numbers of 64 bits at most can be read row by row.")
    check(mapped.ndim >= 1, "source", source, "holds one value; arrays [N, ...] are wanted.")
    check(mapped.flags.c_contiguous, "source", source, "is not in C order: save np.ascontiguousarray of it.")
    if mapped.filename is None:
        raise ArgumentError("source: a memory map without a file.")
    start = getattr(mapped, "offset", 0)
    if isinstance(mapped.base, np.memmap):
        start += mapped.ctypes.data - mapped.base.ctypes.data
    return DiskArray(str(mapped.filename), mapped.dtype, mapped.shape, start)
