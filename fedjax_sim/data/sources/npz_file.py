"""One .npz file with the clients' rows; what is not compressed is memory-mapped where it lies."""

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.kinds import in_native_order, is_wide
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources.grouping import group, text_of
from fedjax_sim.data.sources.limits import check_growth, check_memory

TEXT = 100
"""Bytes of memory that a text takes besides its letters, about."""

ADVICE = "store it by np.savez, whose arrays are mapped and not read."


def npz(path: str | Path, *, client: str | None = None, verify: bool = False) -> FederatedData:
    """The arrays of an .npz file, by client.

    Either the file says whose rows are whose by arrays `offsets` [K + 1] and, where rows are in another order, `index`,
    as `fs.data.FederatedData` has them, and perhaps `client_ids` [K]; or a column names each row's client. Members that
    `np.savez` wrote are memory-mapped, those of `np.savez_compressed` are read, and so are numbers whose bytes are in
    another order than the machine's, which are turned round.

    Args:
        path: the file.
        client: name of the column, whole numbers or texts, that names the clients; None where there are `offsets`.
        verify: compare the checksums of members that are memory-mapped too, which reads them all.

    Returns:
        A federation; texts of a fixed width become objects that are `bytes` (UTF-8).

    Raises:
        ArgumentError: a file that is damaged, is no .npz, or unpacks to more than the memory; arrays of objects, which
            could run code, of dates, records or long doubles; offsets that do not fit; no such column.

    Example:
        >>> import tempfile, pathlib, numpy as np, fedjax_sim as fs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "two.npz"
        ...     np.savez(path, x=np.arange(3.0), offsets=[0, 1, 3])
        ...     data = fs.data.sources.npz(path)
        >>> data.sizes
        array([1, 2])
    """
    path = Path(path).expanduser()
    try:
        arrays = _members(path, verify)
    except ArgumentError:
        raise
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # zipfile and numpy's header reader raise many kinds
        raise ArgumentError(f"{path}: is no .npz file, or a damaged one ({type(error).__name__}: {error}).") from error
    if client is not None:
        if client not in arrays:
            raise ArgumentError(f"{path}: client={client!r}: there is no such array, but {sorted(arrays)}.")
        return group(arrays, arrays.pop(client), f"{path}: {client!r}")
    if "offsets" not in arrays:
        raise ArgumentError(
            f"{path}: has no array 'offsets', but {sorted(arrays)}. Name the column of clients by client=, or store "
            "offsets [K + 1] (client k holds the rows offsets[k]:offsets[k + 1])."
        )
    offsets, index, ids = (arrays.pop(name, None) for name in ("offsets", "index", "client_ids"))
    if not arrays:
        raise ArgumentError(f"{path}: has no array besides 'offsets'.")
    if ids is not None:
        ids = np.array([text_of(v, str(path)) for v in ids]) if ids.dtype.kind == "O" else np.asarray(ids).astype(str)
        if ids.ndim != 1 or len(set(ids.tolist())) != len(ids):
            raise ArgumentError(f"{path}: 'client_ids' must be [K] and unique.")
    try:
        return FederatedData(arrays, np.array(offsets), index, ids)
    except (ArgumentError, ValueError, TypeError) as error:
        raise ArgumentError(f"{path}: {error}") from error


def _members(path: Path, verify: bool) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    needed, held = 0, path.stat().st_size
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename or name in arrays:
                raise ArgumentError(f"{path}: {info.filename!r} is no .npy, or is there twice; np.savez writes others.")
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArgumentError(f"{path}: {name!r} is encrypted or compressed in a way that numpy does not use.")
            stored = info.compress_type == zipfile.ZIP_STORED
            needed += 0 if stored else 2 * info.file_size
            check_growth(f"{path}", needed // 2, held, ADVICE)
            check_memory(f"{path}", needed, ADVICE)
            with archive.open(info) as member:  # compares the local header's name with the directory's
                shape, fortran, dtype = _header(member, f"{path}: {name!r}")  # pyright: ignore[reportArgumentType]
                start = member.tell()
                if start + math.prod(shape) * dtype.itemsize != info.file_size:
                    raise ArgumentError(
                        f"{path}: {name!r} should hold {list(shape)} of {dtype}, but has "
                        f"{info.file_size - start} bytes."
                    )
                if stored and not dtype.isnative:  # is read, to be turned round
                    needed += 2 * info.file_size
                    check_memory(f"{path}", needed, "store it in this machine's order of bytes, and it is mapped.")
                if dtype.kind in "SU":
                    needed += TEXT * math.prod(shape)
                    check_growth(f"{path}", needed // 2, held, "store texts as arrays of numbers.")
                    check_memory(f"{path}", needed, "store texts as arrays of numbers.")
                if stored and info.compress_size != info.file_size:
                    raise ArgumentError(f"{path}: {name!r} has two sizes, {info.compress_size} and {info.file_size}.")
                order = "F" if fortran else "C"
                if stored and math.prod(shape) and dtype.kind not in "SU" and dtype.isnative:
                    value = np.memmap(path, dtype, "r", _data_start(file, info) + start, shape, order)
                    while verify and member.read(1 << 22):  # at its end zipfile compares the CRC-32
                        pass
                else:
                    value = np.frombuffer(bytearray(member.read()), dtype).reshape(shape, order=order)
            if value.ndim == 0:
                raise ArgumentError(f"{path}: {name!r} is a single value; arrays [N, ...] are wanted.")
            arrays[name] = _bytes(value, f"{path}: {name!r}") if dtype.kind in "SU" else in_native_order(value)
    return arrays


def _header(member: BinaryIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ArgumentError(f"{where}: is of .npy version {version}; plain arrays are of 1.0 or 2.0.")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if dtype.kind not in "biufcSU" or is_wide(dtype) or any(length < 0 for length in shape):
        raise ArgumentError(
            f"{where}: holds {dtype} of shape {shape}; numbers of 64 bits at most and texts of a fixed width can be "
            "read. Objects are not loaded, as they could run code: store them as arrays of numbers."
        )
    return shape, fortran, dtype


def _data_start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header, whose lengths may differ from the directory's."""
    file.seek(info.header_offset)
    header = file.read(30)
    return info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _bytes(value: np.ndarray, where: str) -> np.ndarray:
    out = np.empty(value.shape, object)
    try:
        encoded = [v.encode() if isinstance(v, str) else v for v in value.ravel().tolist()]
    except (UnicodeEncodeError, ValueError) as error:  # what is no Unicode at all
        raise ArgumentError(f"{where}: holds what is no text ({error}).") from error
    out.ravel()[:] = encoded
    return out
