"""Runs killed at random points, which must end as if they had not been: `python -m tests.runs.kills 20` kills 20."""

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow
from pyarrow import parquet

from tests.runs import killed

ROOT = Path(__file__).parents[2]
ROUNDS = 40


class Process:
    """A run in a process group of its own; what it prints is read line by line."""

    def __init__(self, *words, cache: Path):
        # Programs are compiled by the first process alone.
        settings = {"COMPILATION_CACHE_DIR": cache, "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0}
        settings["PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = -1
        settings = {f"JAX_{name}": str(value) for name, value in settings.items()}
        self.errors = open(cache.with_suffix(".stderr"), "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, **settings},
        )

    def until(self, pattern: str, count: int = 1) -> bool:
        """Wait for so many lines that match; False if it ends before."""
        for line in self.process.stdout:
            count -= re.match(pattern, line) is not None
            if not count:
                return True
        return False

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        """Exit status and stderr."""
        for _ in self.process.stdout:
            pass
        self.process.stdout.close()
        status = self.process.wait(timeout=300)
        with self.errors as errors:
            errors.seek(0)
            return status, errors.read()


def saved(folder: Path, rounds: int) -> dict[str, np.ndarray]:
    """All leaves of the state that a run ended with."""
    state = killed.simulation(jax.devices()[:2]).restore(folder, rounds)
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


def rows_of_clients(folder: Path) -> dict[str, np.ndarray]:
    files = sorted((folder / "clients").glob("*.parquet"))
    table = pyarrow.concat_tables([parquet.read_table(file) for file in files])
    return {name: table[name].to_numpy() for name in table.column_names}


def check_same(folder: Path, expected: Path) -> None:
    assert (folder / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    one, other = saved(folder, ROUNDS), saved(expected, ROUNDS)
    assert len(one) > 10  # the model, Adam's moments, rows
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        assert leaf.dtype == other[name].dtype
        assert leaf.tobytes() == other[name].tobytes(), name
    table = rows_of_clients(folder)
    assert table["round"].tolist() == np.repeat(np.arange(ROUNDS), 5).tolist()
    np.testing.assert_equal(table, rows_of_clients(expected))


def whole(start: Callable[..., Process], folder: Path) -> Path:
    """A run that nobody kills."""
    status, errors = start(folder, ROUNDS).end()
    assert status == 0, errors
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(ROUNDS))
    return folder


def inside_a_save(folder: Path) -> bool:
    return any("tmp" in each.name for each in (folder / "checkpoints").glob("*"))


def wait_to_kill(process: Process, folder: Path, number: int, draw: random.Random) -> bool:
    """Until some instant in the midst of the rounds, of its beginning, restoring or compiling, or of a save."""
    kind = ("save", "rounds", "begin", "rounds", "save", "rounds")[number % 6]
    begun = process.until("from ") if kind == "begin" else process.until("round ", draw.randint(2, 9))
    end = time.monotonic() + draw.uniform(0, 0.4 if kind == "begin" else 0.1)
    if kind == "save":
        end += 2
    while time.monotonic() < end and not (kind == "save" and inside_a_save(folder)):
        time.sleep(0.0005)
    return begun


def kill(count: int, start: Callable[..., Process], uninterrupted: Path, parent: Path) -> None:
    """Kill a run that often, let it go on to its end, and compare; where it ended too early, kill another one."""
    draw = random.Random(0)
    folders = [parent / "0"]
    saves = kills = 0
    while kills < count:
        folder = folders[-1]
        process = start(folder, ROUNDS)
        begun = wait_to_kill(process, folder, kills, draw)
        process.send(signal.SIGKILL)
        status, errors = process.end()
        if not begun or status == 0:  # it came to its end
            assert status in (0, -signal.SIGKILL), errors
            folders.append(parent / str(len(folders)))
            continue
        assert status == -signal.SIGKILL, errors
        kills += 1
        saves += inside_a_save(folder)
        checkpoints = [int(each.name) for each in (folder / "checkpoints").glob("*") if each.name.isdigit()]
        metrics = folder / "metrics.jsonl"
        lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
        assert max(checkpoints, default=0) <= len(lines)
        assert [json.loads(line)["round"] for line in lines] == list(range(len(lines)))
    assert saves > 0
    status, errors = start(folders[-1], ROUNDS).end()
    assert status == 0, errors
    assert not inside_a_save(folders[-1])
    for folder in folders:
        check_same(folder, uninterrupted)


def main(count: int) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start: Any = functools.partial(Process, "tests.runs.killed", cache=folder / "programs")
        kill(count, start, whole(start, folder / "whole"), folder)
    print(f"killed {count} times: to the byte and the bit the run that was not")


if __name__ == "__main__":
    main(int(sys.argv[1]))
