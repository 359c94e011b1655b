"""FedJAX's SQLite files: one row a client, its examples as zlib-compressed msgpack."""

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources.limits import check_growth, check_room, growth
from fedjax_sim.data.sources.sqlite_file import check_alone, opened
from fedjax_sim.data.sources.tff import check_unchanged
from fedjax_sim.data.store.cache import Client, cached, file_fingerprint

TABLES = {"federated_data": ("client_id", "data", "num_examples")}
ADVICE = "store it in another format, such as .npz."
DEFLATE = 1032
"""Deflate cannot shrink anything by more than that."""


def fedjax_sqlite(path: str | Path, *, cache_dir: str | Path | None = None, progress: bool = True) -> FederatedData:
    """A FedJAX SQLite file: federated_emnist_train, shakespeare_test, stackoverflow_train, federated_cifar100_train ...

    The first call converts it, streaming, into the cache (`fs.data.cached`); later ones map that. Clients keep the
    file's order. EMNIST's ids are `<16 hex>:f0000_14` or `f0000_14`, and its pixels are 1 on the background: FedJAX
    trains on 1 - pixels.

    Args:
        path: the file.
        cache_dir: folder of caches; None for the user's.
        progress: show a bar where standard error is a terminal.

    Returns:
        A memory-mapped federation; features of `bytes` are `fs.data.Strings`.

    Raises:
        ArgumentError: no such file, another layout, or a damaged one; a client of fewer examples than it says.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.sources.fedjax_sqlite("no.sqlite")
        Traceback (most recent call last):
        ...
        fedjax_sim.core.errors.ArgumentError: no.sqlite: cannot be read (No such file or directory).
    """
    path = Path(path).expanduser()
    check_alone(path)
    fingerprint = {"format": "fedjax_sqlite", "file": file_fingerprint(path)}

    def clients(start: int) -> Iterator[Client]:
        made, held = 0, fingerprint["file"]["size"]
        with opened(path, "FedJAX", TABLES, path) as database:
            try:
                rows = database.execute(
                    "SELECT client_id, data, num_examples FROM federated_data ORDER BY rowid LIMIT -1 OFFSET ?",
                    (start,),
                )
                for client_id, data, count in rows:
                    if not isinstance(client_id, bytes | str):
                        raise ArgumentError(f"{path}: client id {client_id!r} is neither bytes nor text.")
                    name = client_id.decode() if isinstance(client_id, bytes) else client_id
                    try:
                        examples = _examples(data, count)
                    except Exception as error:  # whatever damaged bytes make msgpack and NumPy say
                        said = f"{type(error).__name__}: {error}"
                        raise ArgumentError(f"{path}: client {name!r} is damaged ({said}).") from error
                    made += sum(column.nbytes for column in examples.values())
                    check_growth(f"{path}", made, held, ADVICE)
                    yield name, examples
                check_unchanged(path, fingerprint["file"])
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise ArgumentError(f"{path}: is no FedJAX SQLite file, or a damaged one ({error}).") from error

    return cached(path.name.split(".")[0], fingerprint, clients, cache_dir=cache_dir, progress=progress)


def _examples(data: bytes, count: int) -> dict[str, np.ndarray]:
    import msgpack

    if len(data) * DEFLATE > growth(len(data)):
        _check_unpacked(data)
    unpacker = zlib.decompressobj()
    plain = unpacker.decompress(data)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("its compressed bytes are cut off")
    check_room("its examples", 2 * len(plain), 2 * len(data), ADVICE)
    arrays = msgpack.unpackb(
        plain, ext_hook=_array, list_hook=_Nested(99), object_hook=_Nested(1), raw=False, strict_map_key=True
    )
    if not isinstance(arrays, dict) or not arrays:
        raise ValueError("it holds no features")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.ndim == 0 or len(array) != count:
            raise ValueError(f"{name!r} is not an array of the {count} examples that the file says")
    return arrays


def _check_unpacked(data: bytes) -> None:
    """Refuse what unpacks to far more than it is, by unpacking it a piece at a time first."""
    unpacker, made, held = zlib.decompressobj(), 0, len(data)
    for start in range(0, held, 1 << 12):  # what is left of a piece is copied each time
        piece = data[start : start + (1 << 12)]
        while piece:
            made += len(unpacker.decompress(piece, 1 << 20))
            piece = unpacker.unconsumed_tail
        check_room("its compressed bytes", made, held, ADVICE)


class _Nested:
    """As many lists, or maps, as there are where nothing is damaged: an empty one takes a byte, and 56 of memory."""

    def __init__(self, most: int):
        self.left = most

    def __call__(self, value: object) -> object:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"a {type(value).__name__} within others")
        return value


def _array(code: int, data: bytes) -> np.ndarray:
    """FedJAX's extension types: 1 an array, 4 an array of `bytes`. 2 and 3, complex and scalars, are in no set."""
    import msgpack

    if code == 1:
        shape, dtype, buffer = msgpack.unpackb(data, raw=True, list_hook=_Nested(2), object_hook=_Nested(0))
        kind = np.dtype(dtype.decode())
        if kind.kind not in "biuf":
            raise ValueError(f"an array of dtype {kind}")
        return np.frombuffer(buffer, kind).reshape(shape)
    if code == 4:
        shape, values = msgpack.unpackb(data, raw=True, list_hook=_Nested(3), object_hook=_Nested(0))
        array = np.empty(len(values), object)
        array[:] = values
        if not all(isinstance(value, bytes) for value in values):
            raise ValueError("an array of bytes that holds others")
        return array.reshape(shape)
    raise ValueError(f"msgpack extension type {code}")
