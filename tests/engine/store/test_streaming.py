"""Streamed rounds are resident ones, bit for bit; they read the cohort's rows and no others, and compile once."""

import dataclasses
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from tests.engine import toys

COHORTS = [[0, 2, 6], [3, 1, 11], [10, 4, 7], [5], [8, 9, 2]]


def simulate(residency, algorithm="scaffold", data=None, **kwargs):
    data = toys.federation() if data is None else data
    batching = kwargs.pop("batching", fs.Batching(3, epochs=2))
    return fs.Simulation(
        toys.ALGORITHMS[algorithm](toys.task(noisy=True)),
        data,
        toys.script(COHORTS),
        batching,
        seed=3,
        **toys.executed(residency=residency, **kwargs),
    )


def shuffled():
    """The toys' federation, with rows that lie in another order."""
    data = toys.federation()
    index = np.random.default_rng(1).permutation(data.num_examples)
    arrays = jax.tree.map(lambda a: a[np.argsort(index)], data.arrays)
    return FederatedData(arrays, data.offsets, index)


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        ("scaffold", {"lanes": 2}),
        ("two_phase", {"lanes": 1, "rounds_per_dispatch": 3}),
        ("fedavg", {"lanes": 3, "batching": fs.Batching(2, epochs=2, drop_remainder=True, max_examples=7)}),
        ("median", {"lanes": 2, "batching": fs.Batching(2, steps=3), "rounds_per_dispatch": 2}),
    ],
    ids=str,
)
def test_streamed_rounds_are_resident_ones(algorithm, kwargs):
    ran = []
    for residency in ("device", "stream"):
        sim = simulate(residency, algorithm, shuffled(), **kwargs)
        state, history = sim.run(sim.init(), 5)
        ran.append((toys.on_device(state), history["client/loss"], sim))
    (expected, losses, _), (found, streamed_losses, sim) = ran
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(losses, streamed_losses)
    assert sim.residency == "stream"
    assert sim.compile_count() == 1


def test_only_the_cohorts_rows_are_read(monkeypatch):
    sim = simulate("stream", "fedavg", devices=jax.devices()[:1])
    read, original = [], FederatedData.read
    monkeypatch.setattr(
        FederatedData, "read", lambda self, c, n: read.append(sorted(c.tolist())) or original(self, c, n)
    )
    sim.run(sim.init(), 5)
    assert read == [sorted(k for k in cohort if k != 1) for cohort in COHORTS]


def test_a_cut_client_that_holds_more_than_it_trains_on():
    data = toys.federation((2,) * 3 + (60,) * 3)
    full = toys.script([[3, 4, 5]])

    def sample(state, round, seed):
        cohort, state = full.sample(state, round, seed)
        return dataclasses.replace(cohort, max_steps=np.ones(3, np.int32)), state

    states = []
    for residency in ("device", "stream"):
        sampler = full._replace(sample=sample)
        sim = fs.Simulation(
            toys.fedavg(toys.task()), data, sampler, fs.Batching(3), execution=fs.Execution(residency=residency)
        )
        states.append(toys.on_device(sim.run(sim.init(), 2)[0]))
    np.testing.assert_array_equal(states[0]["server"], states[1]["server"])


def test_a_failed_read_names_the_client_and_loses_no_round():
    def generate(client, example):
        if (client == 7).any():
            raise OSError("the disk is gone")
        return {"x": np.ones((len(client), 3), np.float32), "y": np.ones((len(client), 2), np.float32)}

    data = fs.data.procedural(12, 4, generate)
    sim = simulate("auto", "fedavg", data)
    with pytest.raises(fs.ClientError, match=r"client 7 .*round 2: OSError: the disk is gone") as error:
        sim.run(sim.init(), 5)
    assert error.value.state.round == 2
    assert len(error.value.history["client/loss"]) == 2


def test_evaluation_by_client_and_pooled(tmp_path):
    data, task = toys.federation(), toys.task()
    arrays = {}
    for name, array in data.arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        arrays[name] = fs.data.on_disk(tmp_path / f"{name}.npy")
    params = task.init(jax.random.key(0))
    disk = FederatedData(arrays, data.offsets)
    expected, found = (fs.evaluate_clients(task, params, d) for d in (data, disk))
    np.testing.assert_array_equal(expected["loss"], found["loss"])
    assert fs.evaluate(task, params, disk)["loss"] == pytest.approx(fs.evaluate(task, params, data)["loss"], rel=1e-6)


def test_debugging_a_streamed_round():
    sim = simulate("stream", "fedavg", debug=True)
    state, _ = sim.run(sim.init(), 2)
    assert state.round == 2


def test_residency_is_checked():
    data = fs.data.procedural(12, 4, lambda c, e: {"x": np.ones((len(c), 3), np.float32)})
    with pytest.raises(fs.FedSimError, match="procedural data have no arrays"):
        simulate("device", "fedavg", data)
    with pytest.raises(fs.FedSimError, match="residency='disk'"):
        simulate("disk", "fedavg")


def test_a_sweep_of_streamed_data_is_refused():
    build = lambda lr: simulate("stream")
    with pytest.raises(ArgumentError, match="run these simulations one by one"):
        fs.sweep(build, {"lr": [0.1, 0.2]}, 1)


def test_auto_streams_what_exceeds_half_of_the_memory(monkeypatch):
    from fedjax_sim.engine.store import residency

    data = toys.federation()
    size = sum(a.nbytes for a in data.arrays.values())
    for memory, streamed in ((2 * size, False), (2 * size - 1, True)):
        monkeypatch.setattr(residency, "memory_of", lambda device, memory=memory: memory)
        assert residency.streams("auto", data, jax.devices()[0]) is streamed


def test_ten_million_clients_cost_a_round_nothing(monkeypatch):
    def generate(client, example):
        return {"x": (client % 7 + example).astype(np.float32)}

    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    data = fs.data.procedural(10_000_000, 4, generate)
    sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(6), fs.Batching(2))
    state, _ = sim.run(sim.init(), 1)

    def kinds(self, among=None):
        raise AssertionError("a look at the whole population, in a round that is not the first")

    monkeypatch.setattr(fs.data.ProceduralData, "kinds", kinds)
    monkeypatch.setattr(fs.data.ProceduralData, "sizes", property(kinds))
    _, history = sim.run(state, 3)
    assert np.isfinite(history["client/loss"]).all()
    assert sim.compile_count() == 1


LIMITED = """
import resource, sys
import jax.numpy as jnp, numpy as np, optax
import fedjax_sim as fs

task = fs.Task(lambda key: jnp.zeros(1024), lambda w, batch, key: jnp.mean((w - batch["x"]) ** 2, axis=1))
x = fs.data.on_disk(sys.argv[1])
data = fs.data.FederatedData({"x": x}, np.arange(0, len(x) + 1, 16))
sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(8), fs.Batching(8), residency="stream")
state, _ = sim.run(sim.init(), 1, progress=False)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
room = x.nbytes // 2
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))  # half of the data, were they read or mapped
try:
    np.load(sys.argv[1], mmap_mode="r")
except OSError:
    print("cannot map")
state, history = sim.run(state, 20, progress=False)
print(state.round, bool(np.isfinite(history["client/loss"]).all()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space, and /proc")
def test_the_data_never_sit_in_memory(tmp_path):
    shape = (2**18, 1024)  # 1 GiB, sparse on the disk
    with open(tmp_path / "x.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * shape[0] * shape[1])
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["cannot", "map", "21", "True"]
