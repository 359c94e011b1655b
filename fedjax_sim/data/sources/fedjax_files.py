"""FedJAX's SQLite files: one row a client, its examples as zlib-compressed msgpack."""

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.cache import Client, cached, file_fingerprint
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources.tff import connect

LARGEST = 1 << 32
"""Bytes that one client's examples may take, uncompressed; zlib packs zeros by 1000."""


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

    def clients(start: int) -> Iterator[Client]:
        with closing(connect(path)) as database:
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
                        yield name, _examples(data, count)
                    except Exception as error:  # whatever damaged bytes make msgpack and NumPy say
                        raise ArgumentError(f"{path}: client {name!r} is damaged ({error}).") from error
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise ArgumentError(f"{path}: is no FedJAX SQLite file, or a damaged one ({error}).") from error

    fingerprint = {"format": "fedjax_sqlite", "file": file_fingerprint(path)}
    return cached(path.name.split(".")[0], fingerprint, clients, cache_dir=cache_dir, progress=progress)


def _examples(data: bytes, count: int) -> dict[str, np.ndarray]:
    import msgpack

    unpacker = zlib.decompressobj()
    plain = unpacker.decompress(data, LARGEST)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"its compressed bytes are cut off, or more than {LARGEST} when unpacked")
    arrays = msgpack.unpackb(plain, ext_hook=_array, raw=False, strict_map_key=True)
    if not isinstance(arrays, dict) or not arrays:
        raise ValueError("it holds no features")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.ndim == 0 or len(array) != count:
            raise ValueError(f"{name!r} is not an array of the {count} examples that the file says")
    return arrays


def _array(code: int, data: bytes) -> Any:
    """FedJAX's extension types: 1 an array, 4 an array of `bytes`. 2 and 3, complex and scalars, are in no set."""
    import msgpack

    if code == 1:
        shape, dtype, buffer = msgpack.unpackb(data, raw=True)
        kind = np.dtype(dtype.decode())
        if kind.kind not in "biuf":
            raise ValueError(f"an array of dtype {kind}")
        return np.frombuffer(buffer, kind).reshape(shape)
    if code == 4:
        shape, values = msgpack.unpackb(data, raw=True)
        array = np.empty(len(values), object)
        array[:] = values
        if not all(isinstance(value, bytes) for value in values):
            raise ValueError("an array of bytes that holds others")
        return array.reshape(shape)
    raise ValueError(f"msgpack extension type {code}")
