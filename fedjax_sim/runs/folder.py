"""A run's folder: its configuration, the lock of the process that writes it, and reading it back.

config.json      what was run, with which versions, on which devices
metrics.jsonl    an object a round; equal to the byte when the run is repeated or resumed
timing.jsonl     seconds since the process began its rounds
clients/         per-client metrics, Parquet
partition.npz    sizes of the clients, and their examples of each class
checksums.json   of the files above, as they were at the last checkpoint
profile.json     of a profiled run: where the time of its rounds went; and trace/
tensorboard/  plots/  checkpoints/  report.html
"""

import contextlib
import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from fedjax_sim.core.errors import RunFolderError
from fedjax_sim.runs import checksums
from fedjax_sim.runs.reading import FORMAT, read_config, read_lines, read_table
from fedjax_sim.runs.reading import Run as Run
from fedjax_sim.runs.reading import read as read
from fedjax_sim.runs.writing import Json, check_text, rewrite, write_table, writing

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
        experiment: Mapping[str, Json] | None = None,
        config: Mapping[str, Json] | None = None,
    ):
        self.path, self.experiment, self.config = Path(path), experiment, config
        self._lock: os.stat_result | None = None

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

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
            self._lock = os.fstat(lock.fileno())
            yield

    def check_there(self) -> None:
        """Raise `RunFolderError` where the folder is no longer the one that is held."""
        try:
            there = os.path.samestat(os.stat(self.path / "lock"), self._lock)  # type: ignore[arg-type]
        except OSError:
            there = False
        if not there:
            raise RunFolderError(
                f"{self.path} was moved, removed or replaced while the run wrote to it: what was saved is not there."
            )

    def describe(
        self,
        simulation: Mapping[str, Json],
        devices: Mapping[str, Json],
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
        old = read_config(path) if path.exists() else None
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
            check_text("what config.json is to hold", made)
        else:
            if old.get("simulation") is None or old.get("rounds") is None:
                kind = "a sweep" if "sweep" in old else "no run that can go on"
                raise RunFolderError(f"{self.path} holds {kind}: choose another folder.")
            differences = differing(old["simulation"], simulation)
            if old.get("config") and self.config:
                differences = differences or differing({**old["config"], "rounds": 0}, {**self.config, "rounds": 0})
            if differences:
                raise RunFolderError(
                    f"{self.path} holds another run: {differences}. Choose another folder for this one."
                )
            made = {**old, "rounds": max(rounds, old["rounds"])}
        if made != old:
            checksums.forget(self.path)
            rewrite(path, json.dumps(made, indent=2) + "\n")

    def truncate(self, round: int) -> None:
        """Forget what was recorded of that round and later ones, so that they may be run again."""
        with writing(self.path):
            for name in ("metrics.jsonl", "timing.jsonl"):
                path = self.path / name
                if path.exists():
                    found = read_lines(path)  # a last one that has no end is not among them, or was begun
                    lines = path.read_text(encoding="utf-8").split("\n")
                    kept = [line for line, of in zip(lines[:-1], found, strict=False) if of["round"] < round]
                    if "\n".join([*kept, ""]) != "\n".join(lines):
                        checksums.forget(self.path)
                        rewrite(path, "".join(f"{line}\n" for line in kept))
            before = None
            for path in sorted((self.path / "clients").glob("*.parquet")):
                if not path.stem.isdigit():
                    continue  # none of ours
                if int(path.stem) >= round:
                    path.unlink()
                else:
                    before = path
            if before is not None:  # the last file may go on beyond it: of a run that an error ended
                table = read_table(before)
                kept = table.slice(0, sum(each < round for each in table["round"].to_pylist()))
                if len(kept) < len(table):
                    write_table(before, kept)


def differing(old: Mapping[str, Json], new: Mapping[str, Json]) -> str:
    """What differs between two simulations' facts, in words; empty if they are the same."""
    new = json.loads(json.dumps(new))
    names = [name for name in {**old, **new} if name not in FREE and old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)!r} there and is {new.get(name)!r} here" for name in names)


def versions() -> dict[str, str]:
    """Of Python and the packages that a result may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_commit() -> dict[str, Json] | None:
    """The commit of the working directory, and whether files differ from it; None outside a repository."""
    try:
        run = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, timeout=10)
        commit, changes = run("rev-parse", "HEAD"), run("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}
