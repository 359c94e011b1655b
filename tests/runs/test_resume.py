"""Runs that were killed, stopped or interrupted end as if nothing had happened: to the byte and the bit."""

import functools
import os
import re
import signal

import jax
import pytest

import fedjax_sim as fs
from tests import programs
from tests.runs import killed, kills
from tests.runs.kills import ROUNDS, Process, check_same

MAIN = "import sys; from fedjax_sim.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("resume") / "programs"


@pytest.fixture(scope="module")
def start(cache):
    return functools.partial(Process, "tests.runs.killed", cache=cache)


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    return kills.whole(start, tmp_path_factory.mktemp("uninterrupted") / "run")


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(uninterrupted, start, tmp_path):
    kills.kill(5, start, uninterrupted, tmp_path)


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
    command = ("run", "quickstart", "--preset", "smoke", "--rounds", "40", "--run-dir")
    process = Process("fedjax_sim.cli", *command, folder, cache=cache)
    assert process.until(r".*round [1-9]\d*/40")
    process.send(signal.SIGINT)
    status, errors = process.end()
    assert status == 130, errors
    assert f"fedjax-sim resume {folder}" in errors
    assert "Traceback" not in errors
    for words in (("resume", folder), (*command, straight)):
        done = programs.python(MAIN, *map(str, words))
        assert done.status == 0, done.err
    assert (folder / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
