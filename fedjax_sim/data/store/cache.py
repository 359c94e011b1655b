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
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.store.cache_files import (
    VERSION,
    Damaged,
    Json,
    clear,
    mapped,
    read_json,
    stamp,
    strings_in,
    sync,
    verify,
    write_json,
)
from fedjax_sim.data.store.cache_writer import Writer

COMMIT_SECONDS = 5.0

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


def file_fingerprint(path: str | Path) -> dict[str, Json]:
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
    fingerprint: Mapping[str, Json],
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
                except Damaged as damage:
                    warnings.warn(f"{folder}: {damage}; the set is converted again.", stacklevel=2)
                    clear(folder)
            _convert(folder, text, clients, total, name if progress else None)
            return _open(folder, text)


def _convert(
    folder: Path, fingerprint: str, clients: Callable[[int], Iterator[Client]], total: int | None, title: str | None
) -> None:
    with Writer(folder) as writer, _bar(title, total) as advance:
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
    write_json(folder / "data.json", whole)
    (folder / "progress.json").unlink(missing_ok=True)
    sync(folder, {name: stamp(folder / name) for name in whole["files"]})


def _open(folder: Path, fingerprint: str) -> FederatedData:
    try:
        meta = read_json(folder / "data.json")
        if meta["fingerprint"] != json.loads(fingerprint):
            raise Damaged("it is of another source")
        verify(folder, meta["files"])
        sizes = np.fromfile(folder / "sizes", np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        arrays: dict[str, Any] = {}
        for i, column in enumerate(meta["columns"]):
            if column["dtype"] == "bytes":
                arrays[column["name"]] = strings_in(folder, f"{i}")
            else:
                shape = (int(offsets[-1]), *column["shape"])
                arrays[column["name"]] = mapped(folder / f"{i}", np.dtype(column["dtype"]), shape)
        names = np.array([value.decode() for value in strings_in(folder, "ids")[:]])
        return FederatedData(arrays, offsets, client_ids=names)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:  # ArgumentError is a ValueError
        raise Damaged(f"it is damaged ({error})") from error


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
def _bar(title: str | None, total: int | None) -> Iterator[Callable[[int], object]]:
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
