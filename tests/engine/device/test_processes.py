"""Several processes on the loopback: one process's numbers; the death of one ends all; runs go on with any number."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError, FedSimError

CASES = [
    {"algorithm": "fedavg", "rounds": 2},
    {"algorithm": "two_phase", "rounds": 2, "residency": "stream"},
    {"algorithm": "median", "rounds": 2},
]
DEVICES = 4


def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def started(command):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", *command], env=environment, **pipes)


def start(processes, cases):
    """That many processes, which share `DEVICES` devices."""
    plan = {"processes": processes, "devices": DEVICES // processes, "cases": cases, "coordinator": address()}
    plans = [json.dumps({**plan, "id": i}) for i in range(processes)]
    return [started(["tests.engine.device.processes", words]) for words in plans]


def results(running, codes=(0,), timeout=120):
    """What each printed, a list of cases a process."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, error) in zip(running, outputs, strict=True):
        assert process.returncode in codes, error[-3000:]
    return [[json.loads(line) for line in out.splitlines() if line.startswith("{")] for out, _ in outputs]


def assert_same(found, expected):
    for name in ("params", "loss", "evaluated", "clients"):
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process's results; the last case keeps rows, in a folder."""
    folder = str(tmp_path_factory.mktemp("alone") / "run")
    last = {"algorithm": "scaffold", "rounds": 3, "folder": folder}
    ((*cases, rows),) = results(start(1, [*CASES, last]))
    return cases, rows


@pytest.mark.parametrize(("processes", "count"), [(2, 3), (4, 1)])
def test_several_processes_are_one(processes, count, alone, tmp_path):
    rows = {"algorithm": "scaffold", "rounds": 2, "folder": str(tmp_path / "run")}
    found = results(start(processes, [*CASES[:count], rows]))
    cases, with_rows = alone
    for each, expected in zip(zip(*[one[:-1] for one in found], strict=True), cases[:count], strict=True):
        for one in each:
            assert_same(one, expected)
        assert [one["called"] for one in each] == [2, *[0] * (processes - 1)]  # the first process's part
        assert sum(one["read"] for one in each) == expected["read"]  # each reads its own devices' clients
        assert each[0]["read"] < expected["read"] or not expected["read"]
    # The folder's run goes on in one process, with rows that several processes held.
    ((rest,),) = results(start(1, [{**rows, "rounds": 3, "resume": True}]))
    rest["loss"] = found[0][-1]["loss"] + rest["loss"]
    assert_same(rest, with_rows)


@pytest.mark.parametrize(("how", "dies"), [("killed", 1), ("killed", 0), ("raises", 1)])
def test_the_death_of_one_ends_all_and_the_run_goes_on(how, dies, alone, tmp_path):
    case = {"algorithm": "scaffold", "rounds": 3, "folder": str(tmp_path / "run"), "eval_every": 2}
    running = start(2, [{**case, "how": how, "dies": dies}])
    running[dies].wait(timeout=100)
    running[1 - dies].wait(timeout=90)  # JAX's own would wait for 100 s
    results(running, codes=(1, -signal.SIGKILL, -signal.SIGABRT, *range(2, 256)))
    found = results(start(1, [{**case, "resume": True}]))[0][0]
    assert len(found["loss"]) >= 2  # round 1 was saved
    found["loss"] = alone[1]["loss"][: 3 - len(found["loss"])] + found["loss"]
    assert_same(found, alone[1])


def test_a_signal_to_one_stops_all_after_their_round(alone, tmp_path):
    case = {"algorithm": "scaffold", "rounds": 3, "folder": str(tmp_path / "run"), "eval_every": 1}
    running = start(2, [{**case, "how": "signal", "dies": 1}])
    results(running, codes=(1, 130, -signal.SIGINT, -signal.SIGABRT))
    found = results(start(2, [{**case, "resume": True}]))[0][0]
    found["loss"] = alone[1]["loss"][: -len(found["loss"])] + found["loss"]
    assert_same(found, alone[1])


def test_the_command_line_trains_in_two_processes(tmp_path):
    folder, where = str(tmp_path / "run"), address()
    together = lambda i: ["--coordinator", where, "--num-processes", "2", "--process-id", str(i)]
    run = ["fedjax_sim.cli", "run", "quickstart", "--preset", "smoke", "--run-dir", folder]
    running = [started([*run, *together(i)]) for i in range(2)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert "3 of 3 rounds" in outputs[0][0]
    # Gloo's own threads write there too, a line's end apart from its words now and then.
    assert [line for line in outputs[1][0].splitlines() if line and not line.startswith("[Gloo]")] == []


def test_arguments_are_checked():
    with pytest.raises(ArgumentError, match="num_processes, process_id: missing"):
        fs.use_processes("host:1")
    with pytest.raises(ArgumentError, match="process_id=2: there are 2 processes"):
        fs.use_processes("host:1", 2, 2)
    with pytest.raises(ArgumentError, match="must be host:port"):
        fs.use_processes("host", 2, 1)
    jax.devices()
    with pytest.raises(FedSimError, match=r"Call fs.use_processes\(\) first"):
        fs.use_processes("127.0.0.1:1", 2, 1)


def test_no_cluster_is_no_error():
    code = "import fedjax_sim as fs; print(fs.use_processes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "0", done.stderr[-2000:]
