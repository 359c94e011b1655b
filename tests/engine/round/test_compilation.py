"""One program serves every cohort: traces are counted inside the task's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.engine import toys

DRAW = np.random.default_rng(0)
CHANGING = [DRAW.permutation(12)[: DRAW.integers(0, 7)].tolist() for _ in range(18)] + [[], [1]]


def counted(sampler, algorithm=toys.fedavg, **kwargs):
    traces = []
    task = toys.task(on_trace=lambda: traces.append(1))
    kwargs = {"lanes": 2, "devices": jax.devices()[:2], **kwargs}
    sim = fs.Simulation(algorithm(task), toys.federation(), sampler, fs.Batching(3), **toys.executed(**kwargs))
    return sim, traces


@pytest.mark.parametrize(
    "algorithm, sampler",
    [
        ("fedavg", fs.sampler.uniform(4)),
        ("two_phase", fs.sampler.poisson(0.4)),
        ("median", fs.sampler.fixed(CHANGING)),
        ("scaffold", fs.sampler.fixed(CHANGING)),
    ],
    ids=["uniform", "poisson", "fixed", "fixed-rows"],
)
def test_no_trace_after_the_first_round(algorithm, sampler):
    sim, traces = counted(sampler, toys.ALGORITHMS[algorithm])
    state, _ = sim.step(sim.init())
    once, sizes = len(traces), set()
    assert once > 0
    for _ in range(19):
        state, metrics = sim.step(state)
        sizes.add(metrics["cohort/contributed"])
    sim.run(sim.init(), 2)
    assert len(traces) == once
    assert sim.compile_count() == 1
    assert len(sizes) > 1 or "uniform" in sim.sampler.name


@pytest.mark.parametrize("block", [1, 8])
def test_one_program_over_fifty_rounds(block):
    sim, _ = counted(fs.sampler.poisson(0.3), rounds_per_dispatch=block)
    sim.run(sim.init(), 50)
    assert sim.compile_count() == 1


def test_remainders_of_blocks_need_no_program_of_their_own():
    sim, _ = counted(fs.sampler.uniform(4), rounds_per_dispatch=4)
    state = sim.init()
    for count in (5, 3, 1):
        state, _ = sim.run(state, count)
    assert state.round == 9
    assert sim.compile_count() == 1


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
@pytest.mark.parametrize("block", [1, 4])
def test_steps_runs_and_restored_states_share_one_program(block, algorithm, devices, tmp_path):
    options = {"rounds_per_dispatch": block, "devices": jax.devices()[:devices]}
    sim, traces = counted(fs.sampler.uniform(4), toys.ALGORITHMS[algorithm], **options)
    state, _ = sim.step(sim.init())
    sim.save(tmp_path, state)  # what is saved with it of the simulation is traced once
    once = len(traces)
    state, _ = sim.step(state)
    state, _ = sim.run(state, 3)
    sim.save(tmp_path, state)
    state, _ = sim.run(sim.restore(tmp_path), 2)
    sim.step(sim.init(sim.params(state)))
    assert (len(traces), sim.compile_count()) == (once, 1)


SERVERS = {
    "fedadam": fs.server.fedadam(0.1),
    "fedavgm": fs.server.fedavgm(0.1),
    "optax-adam": optax.adam(0.1),
    "schedule": optax.sgd(optax.linear_schedule(1.0, 0.1, 10)),
    "injected": optax.inject_hyperparams(optax.sgd)(learning_rate=0.5),
}


@pytest.mark.parametrize("server", SERVERS)
def test_server_optimizers_keep_the_program(server):
    algorithm = lambda task: toys.fedavg(task, server_optimizer=SERVERS[server])
    sim, traces = counted(fs.sampler.uniform(4), algorithm)
    state, _ = sim.step(sim.init())
    once = len(traces)
    sim.run(state, 2)
    assert (len(traces), sim.compile_count()) == (once, 1)


def test_python_numbers_in_first_states_keep_the_program():
    """A server state and a row that start as Python numbers, which JAX types weakly."""

    def client(key, server, row, batches):
        return fs.ClientUpdate(server["x"], state={"rounds": row["rounds"] + 1})

    def algorithm(task):
        return fs.Algorithm(
            task,
            lambda params: ({"x": params, "rate": 1.0}, {"rounds": 0}),
            client,
            lambda key, server, aggregate: {**server, "rate": 0.9 * server["rate"]},
        )

    sim, _ = counted(fs.sampler.uniform(4), algorithm)
    state, _ = sim.run(sim.init(), 3)
    np.testing.assert_allclose(state.server["rate"], 0.9**3, rtol=1e-6)
    assert int(jnp.sum(state.rows.client["rounds"])) == 3 * 4 - empty_draws(sim, 3)
    assert sim.compile_count() == 1


def empty_draws(sim, rounds):
    """How often client 1, which has no examples, was drawn."""
    cohorts = [sim.sampler.sample(toys.NUM_CLIENTS, r, sim.seed)[0] for r in range(rounds)]
    return sum(1 in cohort.ids[cohort.valid] for cohort in cohorts)


@pytest.mark.parametrize("algorithm", ["scaffold", "median"])
def test_a_draw_over_the_capacity_is_not_cut(algorithm):
    small, large = [0, 2], [4, 6, 8, 9, 10]
    sampler = toys.script([small, large, small, large[::-1]])._replace(
        capacity=lambda n: 2, sample=lambda state, r, seed: (cohort_of(state[r]), state)
    )
    narrow, traces = counted(sampler, toys.ALGORITHMS[algorithm])
    wide, _ = counted(toys.script([small, large, small, large]), toys.ALGORITHMS[algorithm], lanes=narrow.lanes)
    state, metrics = narrow.step(narrow.init())
    once, counts = len(traces), [narrow.compile_count()]
    contributed = [metrics["cohort/contributed"]]
    for _ in range(3):
        state, metrics = narrow.step(state)
        counts.append(narrow.compile_count())
        contributed.append(metrics["cohort/contributed"])
    assert contributed == [2, 5, 2, 5]
    assert counts == [1, 2, 2, 2]
    assert len(traces) <= 2 * once
    expected, _ = wide.run(wide.init(), 4)
    for name, value in toys.on_device(state).items():
        np.testing.assert_allclose(value, toys.on_device(expected)[name], rtol=1e-5, atol=1e-6)


def cohort_of(ids):
    ones = np.ones(len(ids))
    return fs.Cohort(np.array(ids, np.int32), ones.astype(bool), ones.astype(np.float32))


def test_a_poisson_draw_over_its_capacity():
    sampler = fs.sampler.poisson(0.5)._replace(capacity=lambda num_clients: 2)
    sim, _ = counted(sampler)
    _, history = sim.run(sim.init(), 5)
    for metrics in history.rounds:
        drawn = [k for k in metrics.client_ids if toys.SIZES[k]]
        assert metrics["cohort/contributed"] == len(drawn) > 2
    assert sim.compile_count() == 1


def test_blocks_that_mix_capacities():
    """A block whose third round exceeds the capacity is one program of the larger."""
    cohorts = [[0, 2], [2, 4], [6, 8, 9, 10], [0, 4]]
    sampler = toys.script(cohorts)._replace(
        capacity=lambda n: 2, sample=lambda state, r, seed: (cohort_of(state[r]), state)
    )
    blocks, _ = counted(sampler, rounds_per_dispatch=4, lanes=1)
    steps, _ = counted(toys.script(cohorts), lanes=1)
    (a, history), (b, _) = blocks.run(blocks.init(), 4), steps.run(steps.init(), 4)
    assert history["cohort/contributed"].tolist() == [2, 2, 4, 2]
    assert blocks.compile_count() == 1
    np.testing.assert_allclose(toys.flat(a.server), toys.flat(b.server), rtol=1e-5, atol=1e-6)
