"""A run's folder: its configuration, the lock of the process that writes it, and reading it back.

config.json      what was run, with which versions, on which devices
metrics.jsonl    an object a round; equal to the byte when the run is repeated or resumed
timing.jsonl     seconds since the process began its rounds
clients/         per-client metrics, Parquet
partition.npz    sizes of the clients, and their examples of each class
profile.json     of a profiled run: where the time of its rounds went; and trace/
tensorboard/  plots/  checkpoints/  report.html
"""

import contextlib
import dataclasses
import json
import os
import platform
import socket
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core import html
from fedjax_sim.core.errors import RunFolderError
from fedjax_sim.runs import profile

FORMAT = 1
PACKAGES = ("fedjax-sim", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")
FREE = ("lanes", "rounds_per_dispatch", "on_nonfinite")  # facts that may change when a run goes on


class RunFolder:
    """The folder that a run keeps its results in.

    Args:
        path: the folder; made if need be.
        experiment: where the run comes from, for `fedjax-sim resume`: its name, file and preset.
        config: the experiment's configuration, a dict of plain values.

    Example:
        >>> import tempfile, fedjax_sim as fs
        >>> folder = fs.runs.RunFolder(tempfile.mkdtemp(), config={"rounds": 3})
        >>> with folder.held():
        ...     folder.describe({"seed": 0}, devices={"platform": "cpu", "count": 2}, rounds=3)
        >>> fs.runs.read(folder.path).config["config"]
        {'rounds': 3}
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        experiment: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.path, self.experiment, self.config = Path(path), experiment, config

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder alone: the lock goes with the process, however it ends.

        Raises:
            RunFolderError: the folder cannot be written, or another run holds it.
        """
        import fcntl

        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "a+")  # noqa: SIM115
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise RunFolderError(
                    f"{self.path} is in use by {holder}: wait for it, end it, or choose another folder."
                ) from error
            with writing(self.path):
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}")
                lock.flush()
            yield

    def describe(
        self,
        simulation: Mapping[str, Any],
        devices: Mapping[str, Any],
        rounds: int,
        data: Mapping[str, str] | None = None,
    ) -> None:
        """Write config.json; of a run that goes on, compare it.

        Args:
            simulation: facts of the simulation, plain values.
            devices: facts of the devices.
            rounds: rounds of the run in all.
            data: what the data say about themselves.

        Raises:
            RunFolderError: the folder holds a run of something else.
        """
        path = self.path / "config.json"
        old = _read_config(path) if path.exists() else None
        if old is None:
            made = {
                "format": FORMAT,
                "experiment": self.experiment,
                "config": self.config,
                "rounds": rounds,
                "simulation": dict(simulation),
                "data": dict(data or {}),
                "devices": dict(devices),
                "versions": versions(),
                "git": git_commit(),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        else:
            differences = differing(old["simulation"], simulation)
            if old["config"] and self.config:
                differences = differences or differing({**old["config"], "rounds": 0}, {**self.config, "rounds": 0})
            if differences:
                raise RunFolderError(
                    f"{self.path} holds another run: {differences}. Choose another folder for this one."
                )
            made = {**old, "rounds": max(rounds, old["rounds"])}
        if made != old:
            replace(path, json.dumps(made, indent=2) + "\n")

    def truncate(self, round: int) -> None:
        """Forget what was recorded of that round and later ones, so that they may be run again."""
        with writing(self.path):
            for name in ("metrics.jsonl", "timing.jsonl"):
                path = self.path / name
                if path.exists():
                    lines, found = path.read_text().splitlines(keepends=True), _read_lines(path)
                    kept = [line for line, of in zip(lines, found, strict=False) if of["round"] < round]
                    kept = [line for line in kept if line.endswith("\n")]
                    if kept != lines:
                        replace(path, "".join(kept))
            before = None
            for path in sorted((self.path / "clients").glob("*.parquet")):
                if int(path.stem) >= round:
                    path.unlink()
                else:
                    before = path
            if before is not None:  # the last file may go on beyond it: of a run that an error ended
                table = _read_table(before)
                kept = table.slice(0, sum(each < round for each in table["round"].to_pylist()))
                if len(kept) < len(table):
                    write_table(before, kept)


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
    config: dict[str, Any]
    metrics: dict[str, np.ndarray]
    seconds: np.ndarray | None = None
    partition: dict[str, np.ndarray] | None = None
    profile: dict[str, Any] | None = None

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

        table = concat_tables([_read_table(file) for file in files], promote_options="default")
        return {name: table[name].to_numpy() for name in table.column_names}

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
    config = _read_config(folder / "config.json")
    timing = _read_lines(folder / "timing.jsonl")
    partition = folder / "partition.npz"
    try:
        counts = None
        if partition.exists():
            with open(partition, "rb") as file:
                counts = dict(np.load(file))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunFolderError(f"{partition} cannot be read: {error}. Delete it; plots go without.") from error
    return Run(
        folder,
        config,
        _columns(_read_lines(folder / "metrics.jsonl")),
        np.asarray([line["seconds"] for line in timing]) if timing else None,
        counts,
        _read_profile(folder / profile.FILE),
    )


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two simulations' facts, in words; empty if they are the same."""
    new = json.loads(json.dumps(new))
    names = [name for name in {**old, **new} if name not in FREE and old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)!r} there and is {new.get(name)!r} here" for name in names)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An `OSError` while a run's folder is written says which, and what is left."""
    try:
        yield
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error}. What was saved there before stays; free some space or choose "
            "another folder."
        ) from error


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with writing(path):
        beside = path.with_name(f".{path.name}.new")
        with open(beside, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def write_table(path: Path, table: Any) -> None:
    """Write a Parquet file whole or not at all."""
    from pyarrow import parquet

    with writing(path):
        beside = path.with_name(f".{path.name}.new")
        parquet.write_table(table, beside)
        os.replace(beside, path)


def versions() -> dict[str, str]:
    """Of Python and the packages that a result may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_commit() -> dict[str, Any] | None:
    """The commit of the working directory, and whether files differ from it; None outside a repository."""
    try:
        run = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, timeout=10)  # noqa: E731
        commit, changes = run("rev-parse", "HEAD"), run("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise RunFolderError(f"{path} is not of a run that this version ({FORMAT}) can read.")
    return config


def _read_profile(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        profile.split(found)
        return found
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise RunFolderError(f"{path} cannot be read: {error!r}. Delete it; the report goes without.") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a last one that is being written is left out."""
    if not path.exists():
        return []
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise RunFolderError(f"{path}, line {number} is no JSON: {line[:80]!r}.") from error
    return found


def _read_table(path: Path) -> Any:
    from pyarrow import parquet

    try:
        return parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Delete it; its rounds' clients are lost.") from error


def _columns(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for line in lines for name in line)
    columns = {}
    for name in names:
        values = [line.get(name) for line in lines]
        if any(isinstance(value, list) for value in values):
            columns[name] = np.asarray([None if v is None else np.asarray(v) for v in values], object)
        else:
            columns[name] = np.asarray([np.nan if value is None else value for value in values])
    return columns
