"""Lanes: fewer where memory does not suffice, and chosen by measurement; numbers stay those of any lanes."""

import heapq
import os
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.engine.round.block import pack
from fedjax_sim.simulation import lanes as lanes_lib
from fedjax_sim.simulation import tuning
from tests.engine import toys
from tests.engine.round.test_invariance import COHORTS

FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 1600000000 bytes."


def simulation(lanes=4, **kwargs):
    algorithm = kwargs.pop("algorithm", None) or toys.fedavg(toys.task(noisy=True))
    given = {"devices": jax.devices()[:1], "seed": 3, "exact": True, **kwargs}
    return fs.Simulation(
        algorithm, toys.federation(), toys.script(COHORTS), fs.Batching(3), **toys.executed(lanes=lanes, **given)
    )


def failing(sim, error, most, when=lambda: True):
    """A simulation whose programs fail above so many lanes, as XLA's would."""
    make = sim.executor.program

    def program(shape, slots):
        made = make(shape, slots)

        def run(*args):
            if shape.lanes > most and when():
                raise error
            return made(*args)

        run._cache_size = made._cache_size
        return run

    sim.executor.program = program
    return sim


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "scaffold in place"])
def test_an_allocation_that_fails_halves_the_lanes_and_loses_nothing(name, tmp_path):
    algorithm = toys.ALGORITHMS[name.split()[0]](toys.task(noisy=True))
    options = {"algorithm": algorithm, "on_nonfinite": "drop" if "place" in name else "raise"}
    plain = simulation(lanes=1, **options)
    expected, history = plain.run(plain.init(), 3)
    sim = failing(simulation(**options), jax.errors.JaxRuntimeError(FULL), most=1)
    with pytest.warns(UserWarning, match="did not fit") as told:
        found, found_history = sim.run(sim.init(), 3, run_dir=tmp_path)
    said = [str(each.message) for each in told if "did not fit" in str(each.message)]
    assert ["lanes=4" in said[0], "lanes=2" in said[0], "lanes=1" in said[1], len(said)] == [True, True, True, 2]
    assert sim.lanes == 1
    np.testing.assert_array_equal(toys.flat(found.server), toys.flat(expected.server))
    np.testing.assert_array_equal(found_history["client/loss"], history["client/loss"])
    assert simulation(lanes=1, **options).restore(tmp_path).round == 3


def test_a_failure_in_a_later_round_is_met_too():
    calls = iter([False, False, True, False, False])
    sim = failing(simulation(lanes=2), jax.errors.JaxRuntimeError(FULL), most=1, when=lambda: next(calls))
    with pytest.warns(UserWarning, match="round 2 did not fit"):
        found, history = sim.run(sim.init(), 4)
    assert history["round"].tolist() == [0, 1, 2, 3]
    plain = simulation(lanes=1)
    np.testing.assert_allclose(toys.flat(found.server), toys.flat(plain.run(plain.init(), 4)[0].server), rtol=1e-6)


def test_one_lane_that_does_not_fit_and_other_errors_end_the_run():
    sim = failing(simulation(lanes=2), jax.errors.JaxRuntimeError(FULL), most=0)
    warnings.simplefilter("ignore")
    with pytest.raises(fs.FedSimError, match=r"round 0 does not fit .*Out of memory.*micro_batches") as caught:
        sim.run(sim.init(), 2)
    assert caught.value.state.round == 0
    sim = failing(simulation(lanes=2), jax.errors.JaxRuntimeError("INTERNAL: something else"), most=0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        sim.step(sim.init())
    assert sim.lanes == 2


REAL = textwrap.dedent("""
    import resource, sys, warnings
    import jax
    jax.config.update("jax_num_cpu_devices", 1)
    import jax.numpy as jnp, numpy as np, optax
    import fedjax_sim as fs

    host = sys.argv[1] == "host"
    size = 2**22  # 16 MB a model
    task = fs.Task(lambda key: jnp.zeros(size), lambda w, batch, key: jnp.sum(w) * batch["x"])
    data = fs.data.FederatedData({"x": np.arange(64.0, dtype=np.float32)}, np.arange(65))
    algorithm = fs.scaffold(task, 0.1, 64) if host else fs.fedavg(task, optax.sgd(0.1))
    kept = {"rows": "host"} if host else {}
    sim = fs.Simulation(algorithm, data, fs.sampler.uniform(64), fs.Batching(1), lanes=64, **kept)
    state = sim.init()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, resource.RLIM_INFINITY))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        state, metrics = sim.step(state)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert [each for each in told if "did not fit" in str(each.message)], told
    assert 1 <= sim.lanes < 64
    assert len(metrics.client_ids) == 64
    print("lanes", sim.lanes)
""")


@pytest.mark.parametrize("rows", ["none", "host"])
def test_where_memory_really_ends(rows):
    env = {**os.environ, "XLA_FLAGS": ""}  # programs as users have them: those of tests, not fused, take more memory
    command = [sys.executable, "-c", REAL, rows]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def nothing_known(monkeypatch):
    monkeypatch.setattr(tuning, "_tuned", {})
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)  # where measurements are kept too
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("sampler", ["script", "slow"])
def test_lanes_by_measurement(nothing_known, monkeypatch, tmp_path, sampler):
    seen = []
    packed = lambda parts, state, count, slots, lanes: seen.append(lanes) or pack(parts, state, count, slots, lanes)
    monkeypatch.setattr(tuning, "pack", packed)
    monkeypatch.setattr(tuning, "_seconds", lambda executor, lowered, given: abs(seen[-1] - 4))
    sim = simulation(lanes="auto", autotune=True)
    assert sim.lanes == 2  # by the rule: clients' steps differ
    if sampler == "slow":
        monkeypatch.setattr(tuning, "_seconds", lambda *_: float("inf"))
    state, _ = sim.run(sim.init(), 2, run_dir=tmp_path)
    if sampler == "slow":
        assert sim.lanes == 2  # nothing fits: the round itself will tell
        return
    assert seen == [2, 1, 4, 6]
    assert sim.tuning == {2: 2, 1: 3, 4: 0, 6: 2}
    assert sim.lanes == 4
    assert fs.runs.read(tmp_path).config["simulation"]["lanes"] == 4
    plain = simulation(lanes=4)
    np.testing.assert_array_equal(toys.flat(state.server), toys.flat(plain.run(plain.init(), 2)[0].server))
    again = simulation(lanes="auto", autotune=True)
    again.step(again.init())  # known for this program
    assert (again.lanes, seen) == (4, [2, 1, 4, 6, 2])
    resumed = simulation(lanes="auto", autotune=True)
    monkeypatch.setattr(tuning, "_tuned", {})
    resumed.run(resumed.restore(tmp_path), 1)
    assert (resumed.lanes, resumed.tuning, seen) == (4, None, [2, 1, 4, 6, 2])


def test_what_was_measured_is_kept_on_the_disk(nothing_known, monkeypatch, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    sim = simulation(lanes="auto", autotune=True)
    sim.step(sim.init())
    assert set(sim.tuning) == {1, 2, 4, 6}
    assert all(0 < seconds < 60 for seconds in sim.tuning.values())
    (path,) = tmp_path.glob("lanes-*.json")
    tuning._tuned.clear()
    path.write_text('{"6": 2.0, "3": 1.0}')
    sim = simulation(lanes="auto", autotune=True)
    sim.step(sim.init())
    assert (sim.lanes, sim.tuning) == (3, {6: 2.0, 3: 1.0})
    tuning._tuned.clear()
    path.write_text("{")
    sim = simulation(lanes="auto", autotune=True)
    sim.step(sim.init())
    assert sim.tuning != {6: 2.0, 3: 1.0}


def test_measuring_draws_nothing_and_changes_no_state(nothing_known):
    tuned, plain = simulation(lanes="auto", autotune=True), simulation(lanes="auto")
    begin = tuned.init()
    assert tuned.tuning is None
    state, history = tuned.run(begin, 2)
    other = simulation(lanes=tuned.lanes)
    expected, other_history = other.run(other.init(), 2)
    np.testing.assert_array_equal(toys.flat(state.server), toys.flat(expected.server))
    np.testing.assert_array_equal(history["client/loss"], other_history["client/loss"])
    np.testing.assert_array_equal(toys.flat(begin.server), toys.flat(plain.init().server))
    assert tuned.compile_count() == 1
    plain.step(plain.init())
    assert plain.tuning is None  # on a CPU


def test_a_program_too_large_by_its_own_account_is_not_tried(monkeypatch, nothing_known):
    monkeypatch.setattr(tuning, "memory_of", lambda device: 1)
    sim = simulation(lanes="auto", autotune=True)
    sim.step(sim.init())
    assert set(sim.tuning.values()) == {float("inf")}
    assert sim.lanes == 1


def test_the_rule_gives_way_to_what_the_compiler_says(monkeypatch, nothing_known):
    """Of lanes that need 6 times the memory that is left, a sixth; those at most as many are tried."""

    class Needs:
        temp_size_in_bytes, argument_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 600, 50, 70, 20

    class Lowered:
        compile = lambda self: self
        memory_analysis = lambda self: Needs

    assert [tuning._fitting(Lowered(), 64, memory) for memory in (1000, 700, 400, 200, 50)] == [64, 64, 32, 10, 1]


@pytest.mark.parametrize(
    ("num_params", "platform", "clients", "lanes"),
    [
        (50_000, "cpu", 99, 1),
        (610, "cpu", 99, 16),
        (20_000, "cpu", 99, 2),
        (2**20, "gpu", 999, 256),
        (2**26, "gpu", 9, 4),
    ],
)
def test_the_rule(num_params, platform, clients, lanes):
    assert lanes_lib.auto_lanes(num_params, platform, clients) == lanes


# How clients' steps differ

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
CLIENTS = 50


def measured():
    """Rows of the table of skewed cohorts: work, cohort, devices, and milliseconds of chunks by lanes."""
    lines = DESIGN.read_text().splitlines()
    begin = lines.index(next(line for line in lines if line.startswith("| work, clients, devices |")))
    columns = [int(re.findall(r"\d+", cell)[0]) for cell in lines[begin].split("|")[2:-1]]
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            return
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        work, cohort, devices = name.split(", ")
        chunks = {n: float(cell.split("/")[0].strip(" *")) for n, cell in zip(columns, cells, strict=True) if cell}
        yield work, cohort, int(devices), chunks


def sizes_of(work, cohort):
    """Examples of the first clients, drawn as the benchmarks' works draw them."""
    if cohort == "one of 30 times":
        sizes = np.full(CLIENTS, 5 * {"W1": 20, "W3": 10}[work])
        sizes[17] *= 30
        return sizes
    if work == "W3":
        return np.random.RandomState(11).randint(10, 61, 5000)[:CLIENTS]
    drawn = np.exp(np.random.RandomState(20261123).normal(4.42, 0.6, 1000)).round()
    return np.clip(drawn, 10, 400).astype(int)[:CLIENTS]


def of_sizes(sizes, num_params, batch_size, sampler, devices=1, **kwargs):
    data = fs.FederatedData({"x": np.zeros(int(sum(sizes)), np.float32)}, np.concatenate([[0], np.cumsum(sizes)]))
    task = fs.Task(lambda key: jnp.zeros(num_params), lambda w, batch, key: w[0] * batch["x"])
    algorithm = fs.fedavg(task, optax.sgd(0.1))
    return fs.Simulation(
        algorithm, data, sampler, fs.Batching(batch_size), **toys.executed(devices=jax.devices()[:devices], **kwargs)
    )


@pytest.mark.parametrize(("work", "cohort", "devices", "chunks"), list(measured()))
def test_the_rule_is_near_the_best_of_what_was_measured(work, cohort, devices, chunks):
    num_params, batch_size = {"W1": (209_662, 20), "W3": (610, 10)}[work]
    everyone = fs.sampler.fixed(np.arange(CLIENTS)[None])
    sim = of_sizes(sizes_of(work, cohort), num_params, batch_size, everyone, devices)
    assert min(chunks.values()) / chunks[sim.lanes] >= 0.85


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(1, 16),
    st.integers(0, 200_000),
)
def test_the_rule_counts_steps_of_the_slowest_device(each, devices, most, work):
    def cost(lanes):
        loads, queues = [(0, d) for d in range(devices)], [[] for _ in range(devices)]
        for steps in sorted(each, reverse=True):
            load, d = heapq.heappop(loads)
            queues[d].append(steps)
            heapq.heappush(loads, (load + steps, d))
        chunks = max(sum(max(q[i : i + lanes]) for i in range(0, len(q), lanes)) for q in queues)
        return chunks * (lanes + 1 / (1 + work / 30_000))

    steps, clients = np.unique(each, return_counts=True)
    found = lanes_lib.for_steps(most, steps, clients, len(each), devices, work)
    powers = [n for n in (1, 2, 4, 8, 16) if n <= most]
    assert 1 <= found <= most
    assert cost(found) <= min(map(cost, {*powers, most})) + 1e-9


def test_a_rare_long_client_weighs_as_often_as_it_comes():
    steps = np.array([5, 1500])
    lanes = [lanes_lib.for_steps(8, steps, np.array([10_000 - k, k]), 10, 1, 6100) for k in (0, 1, 1000)]
    assert lanes[0] > 1
    assert lanes[2] == 1


def test_the_choice_is_that_of_every_seed():
    sizes = np.random.RandomState(0).lognormal(4, 1, 1000).astype(int) + 1
    chosen = {of_sizes(sizes, 610, 10, fs.sampler.uniform(100), seed=seed).lanes for seed in range(3)}
    assert len(chosen) == 1
    assert chosen == {of_sizes(sizes, 610, 10, fs.sampler.poisson(0.1), seed=3).lanes}
