"""Which files make a table: one file, packed or not, or a folder of shards, of which none may be missing."""

import bz2
import gzip
import io
import lzma
import re
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources.limits import check_growth

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PARQUET = (".parquet", ".pq")
TEXT = {".csv": ",", ".tsv": "\t", ".txt": None, ".dat": None, ".data": None}
"""Endings of text tables, and what lies between their cells."""
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SHARD = re.compile(r"^(?P<name>.*?)[-_.]?(?P<place>[0-9]+)-of-(?P<number>[0-9]+)(-[0-9a-f]{8,})?$")
"""train-00000-of-00002, and perhaps a hash, as Hugging Face names shards."""


class Files(NamedTuple):
    """The files of a table, in the order of their rows.

    Attributes:
        paths: the files.
        kind: their ending, without that of packing.
    """

    paths: list[Path]
    kind: str


def find(path: Path, split: str | None) -> Files:
    """The files of a table.

    Args:
        path: a file, or a folder.
        split: in a folder, what the files' names begin with: "train" of train-00000-of-00002.parquet.

    Raises:
        ArgumentError: another kind of file, no file, a missing shard, files of several tables.

    Example:
        >>> find(Path("stays.csv.gz"), None).kind
        '.csv'
    """
    if not path.is_dir():
        if split is not None:
            raise ArgumentError(f"{path}: split={split!r} is for folders, and this is none.")
        kind = _kind(path)
        if kind is None:
            raise ArgumentError(
                f"{path}: must be a folder, or end in {', '.join((*PARQUET, *TEXT))}, and may be packed as "
                f"{', '.join(PACKED)} or .zip where it is text."
            )
        shard = SHARD.match(_stem(path.name))
        if shard and int(shard["number"]) > 1:
            warnings.warn(f"{path}: is one of {int(shard['number'])} files; pass the folder to read all.", stacklevel=3)
        return Files([path], kind)
    groups: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and file.name[0] not in "._" and (kind := _kind(file, look_inside=False)):
            groups.setdefault((_table_of(file.name), kind), []).append(file)
    tables = [f"{name}{kind}" for name, kind in groups]
    if split is not None:
        groups = {key: files for key, files in groups.items() if key[0].split("#")[0].rstrip("-_.") == split}
        if len(groups) != 1:
            raise ArgumentError(f"{path}: split={split!r}: must name one of the tables {tables} (# is a number).")
    if len(groups) != 1:
        raise ArgumentError(
            f"{path}: must hold one table, but holds {tables or 'none'} (# is a number). split= says what the names of "
            "one begin with."
        )
    [((_, kind), files)] = groups.items()
    _check_shards(path, files)
    return Files(sorted(files, key=lambda file: [int(digits) for digits in re.findall("[0-9]+", file.name)]), kind)


def _kind(path: Path, look_inside: bool = True) -> str | None:
    """The ending that says what a file holds; None for another file."""
    packed = path.suffix.lower() in (*PACKED, ".zip")
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    if path.suffix.lower() == ".zip" and kind not in TEXT and look_inside:
        return Path(_member(path)).suffix.lower()
    return kind if kind in TEXT or (kind in PARQUET and not packed) else None


def _stem(name: str) -> str:
    return re.sub(r"(\.[A-Za-z][A-Za-z0-9]*)+$", "", name)


def _table_of(name: str) -> str:
    """A file's name without its numbers, the same for all shards of a table."""
    stem = _stem(name)
    shard = SHARD.match(stem)
    return f"{shard['name']}-#-of-#" if shard else re.sub("[0-9]+", "#", stem)


def _check_shards(folder: Path, files: list[Path]) -> None:
    """All shards are there, where names say how many there are, and each once."""
    shards = [shard for file in files if (shard := SHARD.match(_stem(file.name)))]
    if not shards:
        return
    numbers = {int(shard["number"]) for shard in shards}
    places = sorted(int(shard["place"]) for shard in shards)
    if len(numbers) > 1 or len(set(places)) < len(places):
        raise ArgumentError(f"{folder}: {[file.name for file in files][:9]} are shards of several tables.")
    if lacking := sorted(set(range(numbers.pop())) - set(places)):
        said = ", ".join(map(str, lacking[:9])) + (" ..." if len(lacking) > 9 else "")
        raise ArgumentError(f"{folder}: of the shards as {files[0].name}, these are missing: {said}.")


def _member(path: Path) -> str:
    """The one table in a zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ArgumentError(f"{path}: cannot be read ({type(error).__name__}: {error}).") from error
    tables = [name for name in names if Path(name).suffix.lower() in TEXT]
    if len(tables) != 1:
        raise ArgumentError(f"{path}: must hold one text table, but holds {names[:9]}; unpack the one you mean.")
    return tables[0]


def opened(path: Path) -> Any:
    """A text file's bytes, unpacked."""
    suffix = path.suffix.lower()
    if suffix == ".zip":
        archive = zipfile.ZipFile(path)
        return Unpacked(archive.open(_member(path)), path.stat().st_size)
    return Unpacked(PACKED[suffix](path), path.stat().st_size) if suffix in PACKED else path.open("rb")


class Unpacked(io.RawIOBase):
    """What a packed file holds, as long as that is not absurdly more than the file."""

    def __init__(self, file: Any, size: int):
        self._file = file
        self._held, self._made = size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        count = self._file.readinto(buffer)
        self._made += count
        check_growth("unpacked", self._made, self._held, "unpack it yourself.")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
