"""Reading a run's folder: whatever its files hold, what stands there comes out, or an error that names the file."""

import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from fedjax_sim.core import html
from fedjax_sim.core.errors import RunFolderError
from fedjax_sim.runs import checksums, profile
from fedjax_sim.runs.writing import Json

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
_DICTS = ("experiment", "config", "simulation", "data", "devices", "versions", "git", "sweep")
_LARGEST = 2**53  # of whole numbers: beyond, they are no numbers of JSON


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Attributes:
        path: the folder.
        config: config.json.
        metrics: column name to [rounds] array, "round" among them; NaN where a round has no value. Histograms are
            object arrays.
        seconds: [rounds] since the process began its rounds, or None.
        partition: the arrays of partition.npz, or None.
        profile: profile.json, of a run that was profiled, or None.

    Example:
        >>> import json, pathlib, tempfile, fedjax_sim as fs
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text(json.dumps({"format": 1}))
        >>> _ = (folder / "metrics.jsonl").write_text(json.dumps({"round": 0, "client/loss": 2.5}))
        >>> fs.runs.read(folder).metrics["client/loss"]
        array([2.5])
    """

    path: Path
    config: dict[str, Json]
    metrics: dict[str, np.ndarray]
    seconds: np.ndarray | None = None
    partition: dict[str, np.ndarray] | None = None
    profile: dict[str, Json] | None = None

    @property
    def rounds(self) -> int:
        """Rounds recorded."""
        return len(self.metrics["round"]) if self.metrics else 0

    def clients(self) -> dict[str, np.ndarray]:
        """Per-client metrics of all rounds: `round`, `client`, `name` and a column a metric; empty without any."""
        files = sorted((self.path / "clients").glob("*.parquet"))
        if not files:
            return {}
        from pyarrow import concat_tables

        tables = [read_table(file) for file in files]
        try:
            table = concat_tables(tables, promote_options="default")
            return {name: table[name].to_numpy() for name in table.column_names}
        except Exception as error:
            raise RunFolderError(f"{self.path / 'clients'} holds files that do not go together: {error}.") from error

    def __repr__(self) -> str:
        return f"Run({self.path}: {self._experiment()}, {self.rounds} of {self.config.get('rounds', '?')} rounds)"

    def _repr_html_(self) -> str:
        rounds = f"{self.rounds} of {self.config.get('rounds', '?')}"
        return html.facts("Run", {"folder": self.path, "experiment": self._experiment(), "rounds": rounds})

    def _experiment(self) -> str:
        return (self.config.get("experiment") or {}).get("name", "a run from Python")


def read(path: str | os.PathLike[str]) -> Run:
    """Read a run's folder; of a run that goes on, what there is so far.

    Args:
        path: the folder.

    Raises:
        RunFolderError: no run there, or a file that cannot be read.

    Example:
        >>> import fedjax_sim as fs
        >>> try:
        ...     fs.runs.read("nowhere")
        ... except fs.RunFolderError as error:
        ...     print(error)
        nowhere holds no run: it has no config.json.
    """
    folder = Path(path)
    if not (folder / "config.json").exists():
        raise RunFolderError(f"{folder} holds no run: it has no config.json.")
    checksums.warn_of_damage(folder)
    timing = read_lines(folder / "timing.jsonl")
    if any(not isinstance(line.get("seconds"), int | float) for line in timing):
        raise RunFolderError(
            f"{folder / 'timing.jsonl'} has lines without seconds. Delete it; the report goes without."
        )
    return Run(
        folder,
        read_config(folder / "config.json"),
        _columns(read_lines(folder / "metrics.jsonl")),
        np.asarray([line["seconds"] for line in timing]) if timing else None,
        _read_partition(folder / "partition.npz"),
        _read_profile(folder / profile.FILE),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}.") from error


def read_config(path: Path) -> dict[str, Json]:
    """config.json.

    Raises:
        RunFolderError: it cannot be read, or is none of a run's or a sweep's.
    """
    text = _read_text(path)
    try:
        config = json.loads(text)
        json.dumps(config, ensure_ascii=False).encode()  # half a character can neither be printed nor written
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise RunFolderError(f"{path} is not of a run that this version ({FORMAT}) can read.")
    wrong = [name for name in _DICTS if not isinstance(config.get(name) or {}, dict)]
    wrong += ["rounds"] * (config.get("rounds") is not None and not _is_count(config["rounds"]))
    wrong += ["created"] * (not isinstance(config.get("created", ""), str))
    if not wrong:  # else these are no dicts
        source = config.get("experiment") or {}
        wrong += [f"experiment: {name}" for name in source if not isinstance(source[name], str | None)]
        clients = (config.get("simulation") or {}).get("clients", 0)
        wrong += ["simulation: clients"] * (not _is_count(clients))
    if wrong:
        raise RunFolderError(f"{path} is damaged: its {', '.join(wrong)} cannot be what a run wrote.")
    return config


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST


def _read_profile(path: Path) -> dict[str, Json] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(_read_text(path))
        for part in profile.split(found):
            if not all(map(math.isfinite, [part.rounds, *part.seconds.values()])):
                raise ValueError("its seconds are no numbers")
        return found
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read: {error!r}. Delete it; the report goes without.") from error


def read_lines(path: Path) -> list[dict[str, Json]]:
    """The whole lines of metrics.jsonl or timing.jsonl; a last one that is being written is left out.

    Raises:
        RunFolderError: it cannot be read, or holds lines that no run wrote.
    """
    if not path.exists():
        return []
    lines = _read_text(path).split("\n")
    found: list[dict[str, Json]] = []
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        if last and not line:
            break
        try:
            made = json.loads(line)
        except (ValueError, RecursionError) as error:
            if last:
                break
            raise RunFolderError(f"{path}, line {number} is no JSON: {line[:80]!r}.") from error
        try:
            _check_line(made, found[-1]["round"] if found else -1)
        except ValueError as error:
            raise RunFolderError(f"{path}, line {number} {error}: {line[:80]!r}.") from error
        found.append(made)
    return found


def _check_line(line: Json, before: int) -> None:
    """Raise `ValueError` unless it is a round's record."""
    if not isinstance(line, dict) or not _is_count(line.get("round")):
        raise ValueError("is no round's record")
    if line["round"] <= before:
        raise ValueError(f"is of round {line['round']}, after one of round {before}")
    for name, value in line.items():
        name.encode()  # half a character
        if not _is_number(value) and not isinstance(value, list):
            raise ValueError(f"has something else than a number as {name}")
        if isinstance(value, list):
            line[name] = _array(name, value)


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, float | bool) or (isinstance(value, int) and abs(value) < 2**63)


def _array(name: str, values: list[Json]) -> np.ndarray:
    """A histogram's, or of more axes; null stands for NaN."""

    def numbers(value: Json) -> Json:
        if isinstance(value, list):
            return [numbers(each) for each in value]
        if not _is_number(value):
            raise ValueError(f"has something else than numbers in {name}")
        return math.nan if value is None else value

    try:
        return np.asarray(numbers(values))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"has no array as {name} ({error})") from error


def _read_partition(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file:
            _check_sizes(file)
            counts = dict(np.load(file))
        _check_partition(counts)
        return counts
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        KeyError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Delete it; plots go without.") from error


def _check_sizes(file: IO[bytes]) -> None:
    """Its arrays lie in the file as they are: none can be larger."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
            with archive.open(member) as array:
                version = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(array)
                if (
                    math.prod(shape) * dtype.itemsize > member.file_size
                    or member.file_size > os.fstat(file.fileno()).st_size
                ):
                    raise ValueError(f"{member.filename} says that it holds more than it does")
    file.seek(0)


def _check_partition(counts: Mapping[str, np.ndarray]) -> None:
    """Sizes, and of those clients that are shown their examples of each class."""
    if any(array.dtype.kind not in "iu" for array in counts.values()) or "sizes" not in counts:
        raise ValueError("it holds no numbers of examples")
    sizes = counts["sizes"]
    fits = sizes.ndim == 1 and len(sizes) > 0 and sizes.min() >= 0
    if set(counts) != {"sizes"}:
        fits = fits and set(counts) == {"sizes", "clients", "labels", "counts"}
        shown, labels, table = (counts.get(name, sizes) for name in ("clients", "labels", "counts"))
        fits = fits and shown.ndim == labels.ndim == 1 and table.shape == (len(shown), len(labels)) and table.size > 0
        fits = fits and shown.min() >= 0 and shown.max() < len(sizes) and table.min() >= 0
    if not fits:
        raise ValueError("its numbers do not fit each other")


def read_table(path: Path) -> "pa.Table":
    """A Parquet file of per-client metrics.

    Raises:
        RunFolderError: it cannot be read.
    """
    from pyarrow import ArrowException, parquet, types

    try:
        table = parquet.read_table(path, page_checksum_verification=True)
        for name in ("round", "client"):
            if not types.is_integer(table.schema.field(name).type) or table[name].null_count:
                raise ValueError(f"its column {name} holds no whole numbers")
        for field in table.schema:
            if field.name != "name" and not (
                types.is_integer(field.type) or types.is_floating(field.type) or types.is_boolean(field.type)
            ):
                raise ValueError(f"its column {field.name} holds no numbers")
        return table
    except (OSError, ValueError, LookupError, MemoryError, ArrowException) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Delete it; its rounds' clients are lost.") from error


def _columns(lines: list[dict[str, Json]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for line in lines for name in line)
    columns = {}
    for name in names:
        values = [line.get(name) for line in lines]
        if any(isinstance(value, np.ndarray) for value in values):
            columns[name] = np.empty(len(values), object)
            columns[name][:] = [None if v is None else np.asarray(v) for v in values]
        else:
            columns[name] = np.asarray([np.nan if value is None else value for value in values])
    return columns
