"""Clients are appended to a cache's files, so that a conversion that is killed can go on."""

import contextlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.kinds import in_native_order, is_wide
from fedjax_sim.data.store.cache_files import (
    BLOCK,
    VERSION,
    Damaged,
    Json,
    clear,
    file_crc,
    read_json,
    strings_in,
    write_json,
)


class Column(TypedDict):
    """What all clients have under a name."""

    name: str
    dtype: str
    shape: list[int]


class Writer:
    """Appends clients to the columns' files; `commit` makes what was appended so far survive.

    A thread of its own writes, so that the disk works while the next clients are decoded.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, IO[bytes]] = {}
        self.crc: dict[str, int] = {}
        self.columns: list[Column] | None = None
        self.num_clients = 0
        self.first = ""
        self.text_ends: dict[str, int] = {}
        self.seen: set[str] = set()
        self.batch: list[tuple[str, bytes]] = []
        self.batch_bytes = 0
        self.jobs: deque[Future[None]] = deque()
        self.thread = ThreadPoolExecutor(1, "cache")

    def __enter__(self) -> "Writer":
        try:
            self._resume(read_json(self.folder / "progress.json"))
        except (OSError, ValueError, KeyError, TypeError, Damaged):
            self.__exit__()
            self.__init__(self.folder)
            clear(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()
        for file in self.files.values():
            with contextlib.suppress(OSError):  # what a full disk left in the buffer
                file.close()

    def _resume(self, state: dict[str, Json]) -> None:
        for name, (size, crc) in state["files"].items():
            path = self.folder / name
            if file_crc(path, size) != crc:
                raise ValueError("not what was committed")
            os.truncate(path, size)
            self.files[name] = open(path, "ab", buffering=1 << 20)  # noqa: SIM115
            self.crc[name] = crc
        self.columns, self.num_clients, self.first = state["columns"], state["clients"], state["first"]
        self.text_ends = state["text_ends"]
        ids = strings_in(self.folder, "ids")
        if len(ids) != self.num_clients:
            raise ValueError("ids do not fit")
        self.seen = {value.decode() for value in ids[:]}

    def _file(self, name: str) -> IO[bytes]:
        if name not in self.files:
            self.files[name] = open(self.folder / name, "wb", buffering=1 << 20)  # noqa: SIM115
            self.crc[name] = 0
        return self.files[name]

    def _append(self, name: str, data: bytes) -> None:
        self.batch.append((name, data))
        self.batch_bytes += len(data)

    def _write(self, batch: list[tuple[str, bytes]]) -> None:
        for name, data in batch:
            self._file(name).write(data)
            self.crc[name] = zlib.crc32(data, self.crc[name])

    def _submit(self, job: Callable[[Any], None], argument: Any) -> None:
        while len(self.jobs) >= 4:
            self.jobs.popleft().result()
        self.jobs.append(self.thread.submit(job, argument))

    def _flush(self) -> None:
        self._submit(self._write, self.batch)
        self.batch, self.batch_bytes = [], 0

    def add(self, client_id: str, arrays: Mapping[str, npt.ArrayLike]) -> None:
        if client_id in self.seen:
            raise ArgumentError(f"client {client_id!r} comes twice; ids must be unique.")
        self.seen.add(client_id)
        arrays = {name: np.asarray(value) for name, value in arrays.items()}
        for name, value in arrays.items():
            if value.ndim == 0:
                raise ArgumentError(f"client {client_id!r}: {name!r} has no rows: must be an array [n, ...].")
        columns = [_column(name, value) for name, value in sorted(arrays.items())]
        lengths = {name: len(value) for name, value in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ArgumentError(f"client {client_id!r}: its columns have other numbers of rows, {lengths}.")
        if self.columns is None:
            self.columns, self.first = columns, client_id
        elif columns != self.columns:
            raise ArgumentError(
                f"client {client_id!r}: columns {_named(columns)} differ from those of client {self.first!r}, "
                f"{_named(self.columns)}; all clients must hold the same columns, example shapes and dtypes."
            )
        for i, column in enumerate(columns):
            value = arrays[column["name"]]
            if column["dtype"] == "bytes":
                self._append_strings(f"{i}", list(value))
            else:
                self._append(f"{i}", in_native_order(value).tobytes())
        self._append("sizes", np.int64(next(iter(lengths.values()))).tobytes())
        self._append_strings("ids", [client_id.encode()])
        self.num_clients += 1
        if self.batch_bytes > BLOCK:
            self._flush()

    def _append_strings(self, name: str, values: list[bytes]) -> None:
        if others := [value for value in values if type(value) is not bytes]:
            raise ArgumentError(f"a column of objects holds {type(others[0]).__name__}; only `bytes` can be kept.")
        data = b"".join(values)
        ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))
        start = self.text_ends.get(name, 0)
        self._append(f"{name}.bytes", data)
        self._append(f"{name}.ends", (start + ends).tobytes())
        self.text_ends[name] = start + len(data)

    def commit(self) -> None:
        self._flush()
        state = {
            "version": VERSION,
            "clients": self.num_clients,
            "first": self.first,
            "columns": self.columns,
            "text_ends": dict(self.text_ends),
        }
        self._submit(self._commit, state)

    def _commit(self, state: dict[str, Json]) -> None:
        for file in self.files.values():
            file.flush()
        state["files"] = {name: [file.tell(), self.crc[name]] for name, file in self.files.items()}
        write_json(self.folder / "progress.json", state)

    def finish(self) -> dict[str, Json]:
        """Commit, and say what there is."""
        self.commit()
        while self.jobs:
            self.jobs.popleft().result()
        return read_json(self.folder / "progress.json")


def _column(name: str, value: np.ndarray) -> Column:
    if value.dtype.kind not in "biufcO" or is_wide(value.dtype):
        raise ArgumentError(
            f"column {name!r} has dtype {value.dtype}; numbers of 64 bits at most and `bytes` objects can be kept."
        )
    dtype = "bytes" if value.dtype.kind == "O" else value.dtype.newbyteorder("=").str
    return {"name": name, "dtype": dtype, "shape": list(value.shape[1:])}


def _named(columns: list[Column]) -> str:
    return ", ".join(f"{column['name']}: {column['dtype']}{column['shape']}" for column in columns)
