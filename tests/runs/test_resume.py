"""Runs that were killed, stopped or interrupted end as if nothing had happened: to the byte and the bit."""

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import fedjax_sim as fs
from tests.runs import killed

ROOT = Path(__file__).parents[2]
ROUNDS = 60


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


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("resume") / "programs"


@pytest.fixture(scope="module")
def start(cache):
    return functools.partial(Process, "tests.runs.killed", cache=cache)


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    status, errors = start(folder, ROUNDS).end()
    assert status == 0, errors
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(ROUNDS))
    return folder


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


def test_a_run_killed_twenty_times_ends_as_if_it_had_not_been(uninterrupted, start, tmp_path):
    draw = random.Random(0)
    folders = [tmp_path / "0"]
    inside_a_save = kills = 0
    while kills < 20:
        folder = folders[-1]
        process = start(folder, ROUNDS)
        # Most in the midst of the rounds; every sixth while the process begins, restores or compiles.
        early = kills % 6 == 5
        begun = process.until("from ") if early else process.until("round ", draw.randint(2, 14))
        time.sleep(draw.uniform(0, 0.4 if early else 0.1))
        process.send(signal.SIGKILL)
        status, errors = process.end()
        if not begun or status == 0:  # it came to its end
            assert status in (0, -signal.SIGKILL), errors
            folders.append(tmp_path / str(len(folders)))
            continue
        assert status == -signal.SIGKILL, errors
        kills += 1
        checkpoints = [each.name for each in (folder / "checkpoints").glob("*")]
        inside_a_save += any("tmp" in name for name in checkpoints)
        metrics = folder / "metrics.jsonl"
        lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
        assert max([int(name) for name in checkpoints if name.isdigit()], default=0) <= len(lines)
        assert [json.loads(line)["round"] for line in lines] == list(range(len(lines)))
    assert inside_a_save > 0
    status, errors = start(folders[-1], ROUNDS).end()
    assert status == 0, errors
    assert not list((folders[-1] / "checkpoints").glob("*tmp*"))
    for folder in folders:
        check_same(folder, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_its_last_round_and_says_how_to_go_on(uninterrupted, start, tmp_path, number):
    folder = tmp_path / "run"
    process = start(folder, ROUNDS)
    assert process.until("round ", 4)
    process.send(number)
    status, errors = process.end()
    assert status != 0
    message = re.search(r"fedjax_sim\.core\.errors\.RunInterrupted: (.*)", errors)
    assert message, errors
    rounds = len((folder / "metrics.jsonl").read_text().splitlines())
    assert 4 <= rounds < ROUNDS
    assert message[1] == (
        f"stopped by {number.name}. {rounds} rounds are saved in {folder}; to go on: "
        f"state = sim.restore({str(folder)!r})"
    )
    assert "stopping after this round; once more to stop at once" in errors
    assert max(int(each.name) for each in (folder / "checkpoints").iterdir()) == rounds
    process = start(folder, ROUNDS)
    assert process.until(f"from {rounds}$")
    status, errors = process.end()
    assert status == 0, errors
    check_same(folder, uninterrupted)


def test_an_interrupted_run_says_where_it_is(tmp_path):
    def stop(metrics):
        if metrics.round == 2:
            os.kill(os.getpid(), signal.SIGINT)

    sim, before = killed.simulation(jax.devices()[:2]), signal.getsignal(signal.SIGINT)
    with pytest.raises(fs.RunInterrupted) as stopped:
        sim.run(sim.init(), 30, run_dir=tmp_path / "run", callbacks=[stop])
    assert signal.getsignal(signal.SIGINT) is before
    rounds = stopped.value.state.round
    assert 3 <= rounds < 30
    assert stopped.value.history["round"].tolist() == list(range(rounds))
    assert sim.restore(tmp_path / "run").round == rounds


def test_the_command_line_is_interrupted_and_resumes(cache, tmp_path):
    folder, straight = tmp_path / "run", tmp_path / "straight"
    command = ("fedjax_sim.cli", "run", "quickstart", "--preset", "smoke", "--rounds", "40", "--run-dir")
    process = Process(*command, folder, cache=cache)
    assert process.until(r".*round [1-9]\d*/40")
    process.send(signal.SIGINT)
    status, errors = process.end()
    assert status == 130, errors
    assert f"fedjax-sim resume {folder}" in errors
    assert "Traceback" not in errors
    status, errors = Process("fedjax_sim.cli", "resume", folder, cache=cache).end()
    assert status == 0, errors
    status, errors = Process(*command, straight, cache=cache).end()
    assert status == 0, errors
    assert (folder / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
