"""Edges between clients and server: against NumPy, against the same method without edges, and by closed forms."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError, RunFolderError
from tests.algorithms import problems
from tests.engine import toys

LR, SIZE, STEPS, TURNS, BETA = 0.05, 3, 2, 3, 0.5
EDGES = [0, 1, 1, 0, 0, 2]  # the third edge's only client is in two of six cohorts
STOPS = {2: 3, 4: 1}  # clients that take so many of their steps, of STEPS x TURNS, and no more


def twin(clients, x, cohorts):
    """HierFAVG (Liu et al. 2020) with momentum at the edges, from the rule: [R, d], float64."""
    m, out = np.zeros_like(x), []

    def local(y, k, done, steps):
        A, t = clients[k]
        each = -(-len(t) // SIZE)
        for s in range(done, done + steps):
            at = slice(s % each * SIZE, s % each * SIZE + SIZE)
            y = y - LR * A[at].T @ (A[at] @ y - t[at]) / len(t[at])
        return y

    for cohort in cohorts:
        models, moments, weights = [], [], []
        for edge in range(3):
            xe, me, weight = x, m, 0
            for turn in range(TURNS):
                total = count = 0
                for k in cohort:
                    n, done = len(clients[k][1]), turn * STEPS
                    steps = min(max(STOPS.get(k, 99) - done, 0), STEPS)
                    if n and steps and EDGES[k] == edge:
                        total, count = total + n * (local(xe, k, done, steps) - xe), count + n
                if count:
                    me = BETA * me + total / count
                    xe, weight = xe + me, weight + count
            models, moments, weights = [*models, xe], [*moments, me], [*weights, weight]
        x, m = (np.average(of, axis=0, weights=weights) for of in (models, moments))
        out.append(x)
    return np.array(out)


def stopping(sampler):
    def sample(state, round, seed):
        cohort, state = sampler.sample(state, round, seed)
        most = np.array([STOPS.get(k, 99) for k in cohort.ids.tolist()], np.int32)
        return dataclasses.replace(cohort, max_steps=most), state

    return sampler._replace(sample=sample)


def simulation(lanes=2, devices=2, edges=EDGES, turns=TURNS, **options):
    task, data, _ = problems.least_squares()
    method = fs.fedavg(task, optax.sgd(LR), optax.sgd(1.0, momentum=BETA))
    return fs.Simulation(
        fs.hierarchical(method, edges, turns),
        data,
        stopping(fs.sampler.fixed(problems.COHORTS)),
        fs.Batching(SIZE, steps=STEPS, shuffle=False),
        **toys.executed(lanes=lanes, devices=jax.devices()[:devices], **options),
    )


def models(sim):
    state, found = sim.init(problems.START), []
    for _ in problems.COHORTS:
        state, _ = sim.step(state)
        found.append(problems.flat(sim.params(state)))
    return np.array(found)


@pytest.fixture(scope="module")
def sim():
    return simulation()


def test_edges_equal_numpy_on_any_lanes_and_devices(sim):
    clients = problems.least_squares()[2]
    expected = twin(clients, problems.flat(problems.START), problems.COHORTS)
    for each in (sim, simulation(4, 3, exact=True)):
        np.testing.assert_allclose(models(each), expected, rtol=2e-5, atol=2e-6)


def test_a_run_goes_on_to_the_bit_and_other_edges_are_refused(sim, tmp_path):
    state, _ = sim.run(sim.init(problems.START), 2, progress=False)
    sim.save(tmp_path, state)
    whole = models(sim)
    resumed = sim.restore(tmp_path)
    resumed, history = sim.run(resumed, 4, progress=False)
    np.testing.assert_array_equal(problems.flat(sim.params(resumed)), whole[-1])
    assert sim.compile_count() == 1
    assert history["cohort/contributed"].tolist() == [2, 4, 2, 1]  # client 3 has no examples
    for other in (simulation(turns=2), simulation(edges=3), simulation(edges=[0, 1, 2, 0, 0, 2])):
        with pytest.raises(RunFolderError, match="algorithm: "):
            other.restore(tmp_path)


def run(algorithm, rounds=3, batching=problems.BATCHING, cohorts=problems.COHORTS, **options):
    data = problems.least_squares()[1]
    return problems.simulate(algorithm, data, cohorts[:rounds], batching, problems.START, **options)


def test_one_edge_is_no_edge_to_the_bit():
    task = problems.least_squares()[0]
    chain = fs.aggregate.chain(fs.aggregate.clip_by_l2(0.5), fs.aggregate.error_feedback(fs.aggregate.top_k(0.4)))
    flat = fs.fedavg(task, optax.sgd(LR, 0.5), fs.server.fedadam(0.1), chain, client_optimizer_state="keep")
    plain, edged = (run(each, lanes=1, devices=1)[-1] for each in (flat, fs.hierarchical(flat, edges=1)))
    jax.tree.map(np.testing.assert_array_equal, (plain.server, plain.rows), (edged.server, edged.rows))


def test_one_edge_round_is_flat_where_the_server_is_linear_and_several_are_rounds():
    task = problems.least_squares()[0]
    method = fs.fedprox(task, optax.sgd(LR), optax.sgd(0.7, momentum=0.5), mu=0.3)
    flat, edged = (run(each)[-1].server for each in (method, fs.hierarchical(method, EDGES)))
    assert "edges=[0, 1, 1, 0, 0, 2]" in repr(fs.hierarchical(method, EDGES))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), flat, edged)
    twice = [problems.COHORTS[0], problems.COHORTS[0]]
    flat = run(method, 2, cohorts=twice)[-1].server
    edged = run(fs.hierarchical(method, 1, edge_rounds=2), 1)[-1].server
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), flat, edged)


def test_both_links_are_on_the_clock():
    task, data = problems.quadratics([1.0] * 4, [0.0, 2.0, 4.0, 10.0])
    device = fs.fleet.Device(seconds_per_step=1.0, down=4.0, up=2.0, latency=0.5)
    link = fs.fleet.Device(seconds_per_step=0.0, down=8.0, up=4.0, latency=0.25, radio_watts=2.0)
    algorithm = fs.hierarchical(fs.fedavg(task, optax.sgd(0.5)), [0, 0, 1, 1], edge_rounds=2)
    sampler, batching = fs.sampler.fixed([[0, 2], [1]]), fs.Batching(1, steps=2)
    sim = fs.Simulation(algorithm, data, sampler, batching, fleet=fs.fleet.uniform(device, edge=link))
    _, history = sim.run(sim.init(np.float32(8)), 2, progress=False)
    # A client: twice (4 bytes / 4 + 0.5) down, 2 steps, (4 / 2 + 0.5) up; an edge: 4 / 8 + 0.25 down, 4 / 4 + 0.25 up.
    assert history["clock/round_time"].tolist() == [14.0, 14.0]
    assert history["clock/bytes_down"].tolist() == [16.0, 24.0]
    assert history["clock/bytes_up"].tolist() == [16.0, 24.0]
    assert history["clock/edge_bytes_down"].tolist() == [8.0, 12.0]
    assert history["clock/edge_bytes_up"].tolist() == [8.0, 12.0]
    assert history["clock/energy_j"].tolist() == [8.0, 12.0]
    assert history["aggregate/uplink_bits"].tolist() == [128.0, 64.0]


def kept(task, optimizer, aggregator):
    return fs.fedavg(task, optax.adam(0.1), aggregator=aggregator, client_optimizer_state="keep")


def simulated(chain=None, edges: Any = 3, sampler=None, make=fs.fedavg, **options):
    algorithm = fs.hierarchical(make(toys.task(), optax.sgd(0.1), aggregator=chain), edges, 2)
    sampler = fs.sampler.uniform(4) if sampler is None else sampler
    return fs.Simulation(algorithm, toys.federation(), sampler, fs.Batching(4), **options)


A = fs.aggregate
FEDAVG = fs.fedavg(toys.task(), optax.sgd(0.1))
REMEMBERS = A.Transform("remembers", init=lambda shapes: (np.ones(2), None))
NOISE = A.chain(A.clip_by_l2(1.0), A.gaussian_noise(1.0), reduce=A.mean("uniform"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.hierarchical(FEDAVG, [0, 2, 2]), r"edges=\[1\]: have no clients: number .* 0 to 1"),
        (lambda: fs.hierarchical(FEDAVG, [0, -1]), "from 0 on"),
        (lambda: fs.hierarchical(FEDAVG, [0.0, 1.0]), "from 0 on"),
        (lambda: fs.hierarchical(FEDAVG, 0), "edges=0"),
        (lambda: fs.hierarchical(FEDAVG, 2, 0), "edge_rounds=0"),
        (lambda: fs.hierarchical(fs.hierarchical(FEDAVG, 2), 2), "has edges already"),
        (lambda: fs.hierarchical(fs.fedavg(toys.task(), optax.sgd(0.1), aggregator=A.median()), 2), "at once"),
        (lambda: fs.hierarchical(fs.scaffold(toys.task(), 0.1, num_clients=12), 2), "counts the population"),
        (lambda: fs.hierarchical(fs.compress_downlink(FEDAVG, A.bfloat16()), 2), "downlink of its own"),
        (lambda: fs.compress_downlink(fs.hierarchical(FEDAVG, 2), A.bfloat16()), "has edges"),
        (lambda: simulated(edges=13), "edges=13: some have no clients, as the population has 12"),
        (lambda: simulated(edges=[0, 1]), "2 clients have one, and the population has 12"),
        (lambda: simulated(NOISE, sampler=fs.sampler.poisson(0.3)), "adds noise for privacy"),
        (
            lambda: simulated(A.chain(A.Transform("kept", lambda shapes: (np.ones(2), None)))),
            "keeps a state on the server",
        ),
        (lambda: simulated(sampler=fs.sampler.asynchronous(4, 2)), "old models"),
        (lambda: simulated(make=kept, execution=fs.Execution(rows="host")), "rows are on the host"),
        (lambda: fs.fleet.uniform(fs.fleet.Device(flops=1.0), edge=3.0), "edge=3.0"),
    ],
)
def test_what_edges_cannot_bear(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_what_counts_the_population_is_refused_when_it_does():
    algorithm = fs.hierarchical(fs.scaffold(toys.task(), 0.1), 3)
    sim = fs.Simulation(algorithm, toys.federation(), fs.sampler.uniform(4), fs.Batching(4))
    with pytest.raises(ArgumentError, match="computes with the population's size"):
        sim.step(sim.init())
