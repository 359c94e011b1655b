"""A cache of converted sets: each client's rows side by side, in plain files that are memory-mapped.

A folder a set, named after it and its source's fingerprint. `data.json` is written last: a folder without it is a
conversion under way, which `progress.json` lets go on where it was last committed. One file a numeric column; two for a
column of byte strings, the bytes and where each string ends.

Nobody waits for the disk: what a killed process wrote, the system still writes. What a power cut may lose is found by
checksums: they are compared unless `checked.json` says that a file, as it is, was found right and is on the disk. The
JSON files, which say how bytes are read, hold a checksum of their own, which is compared each time.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import threading
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.text.strings import Strings

VERSION = 2
COMMIT_SECONDS = 5.0
BLOCK = 1 << 22

Client = tuple[str, dict[str, np.ndarray]]
"""A client's id, and its arrays: [n, ...] each of numbers, or [n] objects that are `bytes`."""


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The folder of caches: `cache_dir`, else $FEDJAX_SIM_CACHE, else fedjax_sim in the user's cache folder.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.cache_folder("somewhere").name
        'somewhere'
    """
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if named := os.environ.get("FEDJAX_SIM_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "fedjax_sim"


def file_fingerprint(path: str | Path) -> dict[str, Any]:
    """What tells one state of a file from another without reading all of it.

    Returns:
        Its resolved path, its size in bytes, its time of change, and the SHA-256 of its first and last mebibyte.

    Raises:
        ArgumentError: no such file, or one that cannot be read.

    Example:
        >>> import tempfile, pathlib, fedjax_sim as fs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "clients.bin"
        ...     _ = path.write_bytes(b"abc")
        ...     fs.data.file_fingerprint(path)["size"]
        3
    """
    path = Path(path).expanduser()
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            digest = sha256(file.read(1 << 20))
            file.seek(max(0, stat.st_size - (1 << 20)))
            digest.update(file.read())
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return {
        "path": str(path.resolve()),
        "size": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "sha256_of_ends": digest.hexdigest(),
    }


def cached(
    name: str,
    fingerprint: Mapping[str, Any],
    clients: Callable[[int], Iterator[Client]],
    *,
    total: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> FederatedData:
    """The set as memory-mapped arrays, converted first where that is still to be done.

    A conversion streams: it holds one client at a time. It commits every few seconds, and one that was killed goes on
    from its last commit. Two processes that ask for the same set convert it once. Each file has a CRC-32: a file whose
    size, time or place changed since it was last checked is read whole, and a damaged set is converted again, with a
    warning.

    Args:
        name: what the set is called; letters, digits and "-_." stay in the folder's name.
        fingerprint: what the content depends on: the source's `file_fingerprint`, split, options. JSON values.
        clients: `(start) -> iterator of (client id, arrays)` from the start-th client on, in a fixed order.
        total: number of clients, for the progress bar, and as a check; None where unknown.
        cache_dir: folder of caches; None for the user's (`cache_folder`).
        progress: show a bar where standard error is a terminal.

    Returns:
        `FederatedData` over `np.memmap`s and `Strings`, read-only, with client ids.

    Raises:
        ArgumentError: no clients; a client id twice; clients of other columns, dtypes or shapes than the first;
            a folder that cannot be written to, a full disk.

    Example:
        >>> import tempfile, numpy as np, fedjax_sim as fs
        >>> def clients(start):
        ...     for k in range(start, 3):
        ...         yield f"client {k}", {"x": np.full(k + 1, k)}
        >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ...     data = fs.data.cached("three", {"made": "by hand"}, clients, cache_dir=folder)
        ...     data.sizes, data.client(2)["x"].tolist()
        (array([1, 2, 3]), [2, 2, 2])
    """
    text = json.dumps({"version": VERSION, **fingerprint}, sort_keys=True)
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip(".") or "set"
    folder = cache_folder(cache_dir) / "converted" / f"{plain}-{sha256(text.encode()).hexdigest()[:16]}"
    with _errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if (folder / "data.json").exists():
                try:
                    return _open(folder, text)
                except _Damaged as damage:
                    warnings.warn(f"{folder}: {damage}; the set is converted again.", stacklevel=2)
                    _clear(folder)
            _convert(folder, text, clients, total, name if progress else None)
            return _open(folder, text)


class _Damaged(Exception):
    pass


def _convert(
    folder: Path, fingerprint: str, clients: Callable[[int], Iterator[Client]], total: int | None, title: str | None
) -> None:
    with _Writer(folder) as writer, _bar(title, total) as advance:
        advance(writer.num_clients)
        committed = time.monotonic()
        for client_id, arrays in clients(writer.num_clients):
            writer.add(client_id, arrays)
            advance(1)
            if time.monotonic() - committed > COMMIT_SECONDS:
                writer.commit()
                committed = time.monotonic()
        if writer.num_clients == 0:
            raise ArgumentError(f"{title or folder.name}: there is no client in it.")
        if total is not None and writer.num_clients != total:
            raise ArgumentError(
                f"{title or folder.name}: {writer.num_clients} clients came out of it, but it says to hold {total}. "
                "The source is cut off or changed while it was read."
            )
        whole = {**writer.finish(), "fingerprint": json.loads(fingerprint)}
    _write_json(folder / "data.json", whole)
    (folder / "progress.json").unlink(missing_ok=True)
    _sync(folder, {name: _stamp(folder / name) for name in whole["files"]})


class _Writer:
    """Appends clients to the columns' files; `commit` makes what was appended so far survive.

    A thread of its own writes, so that the disk works while the next clients are decoded.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, IO[bytes]] = {}
        self.crc: dict[str, int] = {}
        self.columns: list[dict[str, Any]] | None = None
        self.num_clients = 0
        self.first = ""
        self.text_ends: dict[str, int] = {}
        self.seen: set[str] = set()
        self.batch: list[tuple[str, bytes]] = []
        self.batch_bytes = 0
        self.jobs: deque[Future[Any]] = deque()
        self.thread = ThreadPoolExecutor(1, "cache")

    def __enter__(self) -> "_Writer":
        try:
            self._resume(_read_json(self.folder / "progress.json"))
        except (OSError, ValueError, KeyError, TypeError, _Damaged):
            self.__exit__()
            self.__init__(self.folder)
            _clear(self.folder)
        return self

    def __exit__(self, *_: Any) -> None:
        self.thread.shutdown()
        for file in self.files.values():
            with contextlib.suppress(OSError):  # what a full disk left in the buffer
                file.close()

    def _resume(self, state: dict[str, Any]) -> None:
        for name, (size, crc) in state["files"].items():
            path = self.folder / name
            if _crc(path, size) != crc:
                raise ValueError("not what was committed")
            os.truncate(path, size)
            self.files[name] = open(path, "ab", buffering=1 << 20)  # noqa: SIM115
            self.crc[name] = crc
        self.columns, self.num_clients, self.first = state["columns"], state["clients"], state["first"]
        self.text_ends = state["text_ends"]
        ids = _strings(self.folder, "ids")
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

    def _submit(self, job: Callable[[Any], Any], argument: Any) -> None:
        while len(self.jobs) >= 4:
            self.jobs.popleft().result()
        self.jobs.append(self.thread.submit(job, argument))

    def _flush(self) -> None:
        self._submit(self._write, self.batch)
        self.batch, self.batch_bytes = [], 0

    def add(self, client_id: str, arrays: Mapping[str, Any]) -> None:
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
                self._append(f"{i}", value.astype(value.dtype.newbyteorder("="), copy=False).tobytes())
        self._append("sizes", np.int64(next(iter(lengths.values()))).tobytes())
        self._append_strings("ids", [client_id.encode()])
        self.num_clients += 1
        if self.batch_bytes > BLOCK:
            self._flush()

    def _append_strings(self, name: str, values: list[Any]) -> None:
        if other := next((value for value in values if type(value) is not bytes), None):
            raise ArgumentError(f"a column of objects holds {type(other).__name__}; only `bytes` can be kept.")
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

    def _commit(self, state: dict[str, Any]) -> None:
        for file in self.files.values():
            file.flush()
        state["files"] = {name: [file.tell(), self.crc[name]] for name, file in self.files.items()}
        _write_json(self.folder / "progress.json", state)

    def finish(self) -> dict[str, Any]:
        """Commit, and say what there is."""
        self.commit()
        while self.jobs:
            self.jobs.popleft().result()
        return _read_json(self.folder / "progress.json")


def _column(name: str, value: np.ndarray) -> dict[str, Any]:
    if value.dtype.kind not in "biufcO":
        raise ArgumentError(f"column {name!r} has dtype {value.dtype}; numbers and `bytes` objects can be kept.")
    dtype = "bytes" if value.dtype.kind == "O" else value.dtype.newbyteorder("=").str
    return {"name": name, "dtype": dtype, "shape": list(value.shape[1:])}


def _named(columns: list[dict[str, Any]]) -> str:
    return ", ".join(f"{column['name']}: {column['dtype']}{column['shape']}" for column in columns)


def _open(folder: Path, fingerprint: str) -> FederatedData:
    try:
        meta = _read_json(folder / "data.json")
        if meta["fingerprint"] != json.loads(fingerprint):
            raise _Damaged("it is of another source")
        _verify(folder, meta["files"])
        sizes = np.fromfile(folder / "sizes", np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        arrays: dict[str, Any] = {}
        for i, column in enumerate(meta["columns"]):
            if column["dtype"] == "bytes":
                arrays[column["name"]] = _strings(folder, f"{i}")
            else:
                shape = (int(offsets[-1]), *column["shape"])
                arrays[column["name"]] = _map(folder / f"{i}", np.dtype(column["dtype"]), shape)
        names = np.array([value.decode() for value in _strings(folder, "ids")[:]])
        return FederatedData(arrays, offsets, client_ids=names)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:  # ArgumentError is a ValueError
        raise _Damaged(f"it is damaged ({error})") from error


def _verify(folder: Path, files: dict[str, list[int]]) -> None:
    try:
        checked = _read_json(folder / "checked.json", version=None)
    except (OSError, ValueError):
        checked = {}
    stamps = {name: _stamp(folder / name) for name in files}
    for name, (size, crc) in files.items():
        if stamps[name][0] != size:
            raise _Damaged(f"its file {name} has {stamps[name][0]} bytes, not {size}")
        if checked.get(name) != stamps[name] and _crc(folder / name, size) != crc:
            raise _Damaged(f"its file {name} has another checksum than when it was written")
    if checked != stamps:
        _sync(folder, stamps)


def _crc(path: Path, size: int) -> int:
    """The CRC-32 of a file's first `size` bytes."""
    found = 0
    with open(path, "rb") as file:
        while size and (block := file.read(min(BLOCK, size))):
            found, size = zlib.crc32(block, found), size - len(block)
    return found


def _sync(folder: Path, stamps: dict[str, list[int]]) -> None:
    """Bring the files to the disk, and then note that they are right; in the background."""

    def sync() -> None:
        with contextlib.suppress(OSError):  # a read-only cache is checked each time
            for name in stamps:
                with open(folder / name, "rb") as file:
                    os.fsync(file.fileno())
            _write_json(folder / "checked.json", stamps)

    threading.Thread(target=sync, name="cache").start()


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", shape=shape)


def _strings(folder: Path, name: str) -> Strings:
    length, ends = ((folder / f"{name}.{part}").stat().st_size for part in ("bytes", "ends"))
    return Strings(
        _map(folder / f"{name}.bytes", np.dtype(np.uint8), (length,)),
        _map(folder / f"{name}.ends", np.dtype(np.int64), (ends // 8,)),
    )


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _read_json(path: Path, version: int | None = VERSION) -> dict[str, Any]:
    """What `_write_json` wrote, if it is that."""
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds {type(value).__name__}")
    if version is not None and value.get("version") != version:
        raise _Damaged(f"it is of version {value.get('version')!r}, not {version}")
    if value.pop("crc32", None) != _crc_of(value):
        raise ValueError(f"{path.name} has another checksum than when it was written")
    return value


def _crc_of(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """A dict with its own CRC-32."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        json.dump({"crc32": _crc_of(value), **value}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process converts this set. A cache that cannot be written to needs no lock."""
    import fcntl

    try:
        lock = open(folder / "lock", "a")  # noqa: SIM115
    except OSError:
        if not (folder / "data.json").exists():
            raise
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _errors_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "the disk is full; free some space, or name another folder by cache_dir= or $FEDJAX_SIM_CACHE"
        elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            what = f"cannot be written to ({error.strerror}); name another folder by cache_dir= or $FEDJAX_SIM_CACHE"
        else:
            raise
        raise ArgumentError(f"{folder}: {what}. What was converted so far is kept.") from error


@contextlib.contextmanager
def _bar(title: str | None, total: int | None) -> Iterator[Callable[[int], Any]]:
    import sys

    if title is None or not sys.stderr.isatty():
        yield lambda clients: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("converting {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("clients"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda clients: bar.advance(task, clients)
