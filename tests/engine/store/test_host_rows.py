"""Rows on the host: the same numbers as on devices, earlier states intact, slots given back, checkpoints exact."""

import subprocess
import sys
import tempfile
import textwrap

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.types import ClientRows
from fedjax_sim.engine.round import waves
from fedjax_sim.engine.store import row_table as rows_lib
from fedjax_sim.engine.store.row_file import HostRows, Row
from tests.engine import toys
from tests.engine.round.test_invariance import COHORTS

a = fs.aggregate


def counted(task):
    """Two phases, each of whose clients counts its rounds; the second knows what the first one did."""

    def phase(step):
        def client(key, server, row, batches):
            new = {"rounds": row["rounds"] + step * (1 + row["rounds"] % 2), "mark": row["mark"] * 0.5 + server.sum()}
            return fs.ClientUpdate(server * 0 + row["rounds"], weight=1.0, state=new)

        return fs.Phase(client, lambda key, server, aggregate: server + aggregate.value)

    row = {"rounds": np.int32(10), "mark": np.array([1.5, -2.0], np.float32)}
    return fs.Algorithm(
        fs.Task(lambda key: np.zeros((), np.float32), lambda w, batch, key: w),
        init=lambda params: (params, row),
        params=lambda server: server,
        phases=(phase(1), phase(2)),
    )


def feedback(task):
    return toys.fedavg(task, aggregator=a.chain(a.error_feedback(a.top_k(0.3))))


ALGORITHMS = {
    "scaffold": lambda task: fs.scaffold(task, toys.LR, toys.NUM_CLIENTS),
    "two phases": counted,
    "error feedback": feedback,
}


def simulation(name="scaffold", rows="host", **kwargs):
    given = {"lanes": 2, "devices": jax.devices()[:2], "seed": 3, "exact": True, **kwargs}
    sampler = given.pop("sampler", None) or toys.script(COHORTS)
    algorithm = ALGORITHMS[name](toys.task(noisy=True))
    return fs.Simulation(
        algorithm, toys.federation(), sampler, fs.Batching(3, epochs=2), **toys.executed(rows=rows, **given)
    )


@pytest.fixture(autouse=True)
def chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(waves, "WAVE", {"cpu": 1})


def table(state):
    """All clients' rows, as numbers."""
    rows = state.rows.gather(range(toys.NUM_CLIENTS)) if isinstance(state.rows, HostRows) else state.rows
    return toys.flat(jax.tree.map(lambda leaf: leaf[: toys.NUM_CLIENTS], rows))


def assert_same(one, other):
    np.testing.assert_array_equal(toys.flat((one.server, one.aggregator)), toys.flat((other.server, other.aggregator)))
    np.testing.assert_array_equal(table(one), table(other))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_same_bits_as_on_devices(name):
    device, host = simulation(name, "device"), simulation(name)
    expected, history = device.run(device.init(), 4)
    found, found_history = host.run(host.init(), 4)
    assert isinstance(found.rows, HostRows)
    assert_same(found, expected)
    for metric in history:
        if not metric.startswith("plan/"):  # a client trains on any device
            np.testing.assert_array_equal(found_history[metric], history[metric], err_msg=metric)
    jax.tree.map(
        np.testing.assert_array_equal,
        [toys.by_client(metrics) for metrics in found_history.rounds],
        [toys.by_client(metrics) for metrics in history.rounds],
    )
    assert host.compile_count() == len(host.algorithm.passes())
    trained = {k for cohort in COHORTS for k in cohort if k is not None and toys.SIZES[k]}
    assert list(found.rows.used()) == sorted(trained)  # and nobody else has one
    one = next(iter(trained))
    jax.tree.map(
        np.testing.assert_array_equal,
        rows_lib.client_row(found.rows, one),
        rows_lib.client_row(expected.rows, one),
    )


def test_in_floating_point_within_rounding_and_in_one_wave(monkeypatch):
    monkeypatch.setattr(waves, "WAVE", {"cpu": 2**30})
    device, host = simulation(rows="device", exact=False), simulation(exact=False)
    expected, found = device.run(device.init(), 4)[0], host.run(host.init(), 4)[0]
    np.testing.assert_allclose(toys.flat(found.server), toys.flat(expected.server), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table(found), table(expected), rtol=1e-5, atol=1e-6)


def test_earlier_states_keep_their_rows_and_slots_come_back():
    sim = simulation()
    states = [sim.init()]
    for _ in range(4):
        states.append(sim.step(states[-1])[0])
    tables = [table(state) for state in states]
    assert len({each.tobytes() for each in tables}) == 5
    again = state = states[1]
    for state, before in zip(states[1:], tables[1:], strict=True):
        np.testing.assert_array_equal(table(state), before)
        assert_same(again, state)
        again = sim.step(again)[0]  # another line of states, beside the first
    file, used = again.rows.file, len(again.rows.used())
    del states, state
    most = used + 3 * sim.sampler.capacity(toys.NUM_CLIENTS)
    for _ in range(12):
        again = sim.step(again)[0]
    assert file.slots <= most + used  # of 12 x 6 rows that were written


def test_a_failed_round_gives_back_the_state_before_it():
    x = toys.federation().arrays["x"].copy()
    data = toys.federation()
    x[data.rows(8)[0]] = np.nan
    data = fs.data.FederatedData({"x": x, "y": data.arrays["y"]}, data.offsets)
    algorithm = fs.scaffold(toys.task(), toys.LR, toys.NUM_CLIENTS)
    sampler = toys.script([[0, 2], [4, 6], [8, 0], [2, 4]])
    build = lambda on: fs.Simulation(
        algorithm, data, sampler, fs.Batching(3), execution=fs.Execution(rows="host"), on_nonfinite=on
    )
    sim = build("raise")
    with pytest.raises(fs.NonFiniteUpdateError) as caught:
        sim.run(sim.init(), 4)
    good = sim.run(sim.init(), 2)[0]
    assert caught.value.state.round == 2
    assert_same(caught.value.state, good)
    sim = build("drop")
    state, history = sim.run(sim.init(), 4)
    assert history["cohort/nonfinite"].tolist() == [0, 0, 1, 0]
    assert np.isfinite(table(state)).all()
    np.testing.assert_array_equal(toys.flat(state.rows.row(8)), 0)


def test_a_full_disk_is_an_error_that_names_the_folder(monkeypatch):
    from fedjax_sim.engine.store import row_file as host_rows

    sim = simulation()
    with open("/dev/full", "r+b", buffering=0) as full, monkeypatch.context() as patch:
        patch.setattr(host_rows.tempfile, "TemporaryFile", lambda **_: full)
        with pytest.raises(fs.FedSimError, match=r"could not be written to .*No space left.*TMPDIR") as caught:
            sim.run(sim.init(), 3)
    state = caught.value.state
    assert state.round == 0
    with tempfile.TemporaryFile(buffering=0) as roomy:
        state.rows.file._file = roomy  # somebody has made room
        other = simulation()
        assert_same(sim.run(state, 2)[0], other.run(other.init(), 2)[0])


def test_a_run_resumes_bit_by_bit_and_kept_checkpoints_keep_their_rows(tmp_path):
    sim, states = simulation(), {}
    state = sim.init()
    for round in range(1, 7):
        state, _ = sim.run(state, 1, run_dir=tmp_path)
        states[round] = state
    size = (tmp_path / "rows.bin").stat().st_size // sim.parts.row_bytes
    assert size <= len(state.rows.used()) + 4 * sim.sampler.capacity(toys.NUM_CLIENTS)
    straight, _ = sim.run(state, 1)
    for round in (4, 5, 6):
        restored = sim.restore(tmp_path, round)
        assert_same(restored, states[round])
        assert_same(sim.run(restored, 7 - round)[0], straight)
    other = simulation()
    assert_same(other.run(other.restore(tmp_path), 1, run_dir=tmp_path)[0], straight)
    assert_same(sim.restore(tmp_path, 5), states[5])  # nothing of it was written over
    with pytest.raises(fs.RunFolderError, match="rows was 'host' there"):
        simulation(rows="device").restore(tmp_path)


def test_damaged_rows_are_left_aside(tmp_path):
    sim = simulation()
    before, _ = sim.run(sim.init(), 3, run_dir=tmp_path)
    after, _ = sim.run(before, 1, run_dir=tmp_path)
    del before
    path = tmp_path / "rows.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of a row of the last round
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"rows\.bin does not hold what was saved.*from round 3"):
        restored = simulation().restore(tmp_path)
    assert_same(sim.run(restored, 1)[0], after)
    path.write_bytes(bytes(len(content)))
    with pytest.warns(UserWarning, match="from round 0"):  # in which nobody has a row
        assert simulation().restore(tmp_path).round == 0


def test_saved_states(tmp_path):
    sim = simulation("two phases")
    first = sim.init()
    state, _ = sim.run(first, 2)
    for each in (first, state, state):
        sim.save(tmp_path, each)
    assert_same(simulation("two phases").restore(tmp_path), state)
    assert_same(simulation("two phases").restore(tmp_path, 0), first)


def test_where_rows_live(monkeypatch):
    template, devices = {"c": np.zeros((), np.float32)}, tuple(jax.devices()[:2])
    monkeypatch.setattr(rows_lib, "memory_of", lambda device: 1000)
    assert rows_lib.place("auto", template, 125, devices) == "device"
    assert rows_lib.place("auto", template, 126, devices) == "host"
    assert rows_lib.place("auto", template, 126, devices, shared=True) == "device"
    assert rows_lib.place("host", None, 126, devices) == "device"
    with pytest.raises(ArgumentError, match="several processes"):
        rows_lib.place("host", template, 126, devices, shared=True)
    with pytest.raises(ArgumentError, match="rows='disk'"):
        simulation(rows="disk")
    with pytest.raises(ArgumentError, match="random keys"):
        HostRows(ClientRows(jax.random.key(0)), 3)

    def build(client_lr):
        return fs.Simulation(
            fs.scaffold(toys.task(), client_lr, toys.NUM_CLIENTS),
            toys.federation(),
            fs.sampler.uniform(3),
            fs.Batching(3),
            execution=fs.Execution(rows="host"),
        )

    with pytest.raises(ArgumentError, match="this simulation's are on the host"):
        fs.sweep(build, {"client_lr": [0.1, 0.2]}, rounds=1)


def test_debugging_sees_the_rows():
    sim = simulation(debug=True)
    plain = simulation()
    assert_same(sim.run(sim.init(), 1)[0], plain.run(plain.init(), 1)[0])


def test_an_index_is_a_value():
    draw = np.random.default_rng(0)
    rows, twin, kept = HostRows(ClientRows(np.zeros((), np.float32)), 1000), {}, []
    for _ in range(20):
        new: dict[int, Row] = {int(k): rows.file.new() for k in draw.choice(1000, 30, replace=False)}
        rows, twin = rows.updated(new), {**twin, **new}
        kept.append((rows, twin))
    for rows, twin in kept:
        assert rows.used() == dict(sorted(twin.items()))
        assert all(rows.find(k) is twin.get(k) for k in range(1000))


MILLION = textwrap.dedent("""
    import jax
    jax.config.update("jax_num_cpu_devices", 1)
    import jax.numpy as jnp, numpy as np
    import fedjax_sim as fs

    def generate(client, example):
        return {"x": (client + example).astype(np.float32)}

    clients, size = 1_000_000, 50_000  # 200 GB of rows
    task = fs.Task(lambda key: jnp.zeros(size), lambda w, batch, key: (w[:1] - batch["x"]) ** 2)
    data = fs.data.procedural(clients, 2, generate)
    sim = fs.Simulation(fs.scaffold(task, 0.01, clients), data, fs.sampler.uniform(8), fs.Batching(2), lanes=2)
    assert sim.rows == "host"  # by itself
    state, history = sim.run(sim.init(), 5, progress=False)  # which a slow machine would print
    assert state.rows.file.slots < 60, state.rows.file.slots
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss is inherited
    print(int(peak.split()[1]) // 1024)
""")


def test_rows_exist_from_the_first_round_on():
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000  # MB
