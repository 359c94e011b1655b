"""A cache's files: JSON with a checksum of its own, mapped arrays, and what proves that none is damaged."""

import contextlib
import json
import os
import shutil
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data.text.strings import Strings

Json = Any
"""What JSON's text says."""

VERSION = 2
BLOCK = 1 << 22


class Damaged(Exception):
    """A file of a cache is not what was written."""


def verify(folder: Path, files: dict[str, list[int]]) -> None:
    """Compare the files' checksums, unless `checked.json` has these very files; raises `Damaged`."""
    try:
        checked = read_json(folder / "checked.json", version=None)
    except (OSError, ValueError):
        checked = {}
    stamps = {name: stamp(folder / name) for name in files}
    for name, (size, crc) in files.items():
        if stamps[name][0] != size:
            raise Damaged(f"its file {name} has {stamps[name][0]} bytes, not {size}")
        if checked.get(name) != stamps[name] and file_crc(folder / name, size) != crc:
            raise Damaged(f"its file {name} has another checksum than when it was written")
    if checked != stamps:
        sync(folder, stamps)


def file_crc(path: Path, size: int) -> int:
    """The CRC-32 of a file's first `size` bytes."""
    found = 0
    with open(path, "rb") as file:
        while size and (block := file.read(min(BLOCK, size))):
            found, size = zlib.crc32(block, found), size - len(block)
    return found


def sync(folder: Path, stamps: dict[str, list[int]]) -> None:
    """Bring the files to the disk, and then note that they are right; in the background."""

    def work() -> None:
        with contextlib.suppress(OSError):  # a read-only cache is checked each time
            for name in stamps:
                with open(folder / name, "rb") as file:
                    os.fsync(file.fileno())
            write_json(folder / "checked.json", stamps)

    threading.Thread(target=work, name="cache").start()


def stamp(path: Path) -> list[int]:
    """What tells whether a file was touched: its size, time of change and place."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A file's numbers, mapped."""
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", shape=shape)


def strings_in(folder: Path, name: str) -> Strings:
    """A column of byte strings, mapped."""
    length, ends = ((folder / f"{name}.{part}").stat().st_size for part in ("bytes", "ends"))
    return Strings(
        mapped(folder / f"{name}.bytes", np.dtype(np.uint8), (length,)),
        mapped(folder / f"{name}.ends", np.dtype(np.int64), (ends // 8,)),
    )


def clear(folder: Path) -> None:
    """Remove all but the lock."""
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_json(path: Path, version: int | None = VERSION) -> dict[str, Json]:
    """What `write_json` wrote, if it is that."""
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds {type(value).__name__}")
    if version is not None and value.get("version") != version:
        raise Damaged(f"it is of version {value.get('version')!r}, not {version}")
    if value.pop("crc32", None) != _crc_of(value):
        raise ValueError(f"{path.name} has another checksum than when it was written")
    return value


def _crc_of(value: dict[str, Json]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def write_json(path: Path, value: dict[str, Json]) -> None:
    """A dict with its own CRC-32."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        json.dump({"crc32": _crc_of(value), **value}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
