"""Methods with models of clients' own against their NumPy twins, over ragged rounds; and the known mistakes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.algorithms import personal_twins as twins
from tests.algorithms.problems import BATCHING, COHORTS, SIZES, START, flat, least_squares, quadratics, simulate

TASK, DATA, CLIENTS = least_squares()
X0 = flat(START)
LR, TOLERANCE = 0.1, 1e-5
LOCAL = (CLIENTS, X0, COHORTS, LR, BATCHING.batch_size, BATCHING.epochs)
SGD = optax.sgd(LR)
HEAD = (4,)


class Case(NamedTuple):
    ours: fs.Algorithm
    twin: Callable  # mistake -> (server [R, d], own [R, K, d])


def private_case(ours, **options):
    return Case(ours, lambda mistake="": twins.private(*LOCAL, HEAD, **options, mistake=mistake))


def of_local_sgd(ours, twin, **options):
    """A method of local SGD, and its twin, of the same options."""
    return Case(ours(**options), lambda mistake="": twin(*LOCAL, **options, mistake=mistake))


IFCA = fs.ifca(TASK, SGD, 3, jitter=1.0)
FIRST = flat(IFCA.init(START)[0].params)
MIXING = [fs.mixing.ring(6), fs.mixing.exponential(6)]
PFEDME = dict(inner_lr=0.04, lam=6.0, inner_steps=3, beta=0.8)
CASES = {
    "private": private_case(fs.fedavg(TASK, SGD, private="^b$")),
    "private, head first": private_case(fs.fedavg(TASK, SGD, private="b", head_steps=2), head_steps=2),
    "private, head as it is": private_case(fs.fedavg(TASK, SGD, private="b", head_steps=0), head_steps=0),
    "private, pull": private_case(fs.fedprox(TASK, SGD, mu=1.5, private="b"), mu=1.5),
}
CASES |= {
    "ditto": of_local_sgd(lambda **o: fs.ditto(TASK, SGD, **o), twins.ditto, lam=2.0),
    "apfl": of_local_sgd(lambda **o: fs.apfl(TASK, LR, **o), twins.apfl, alpha=0.4),
    "apfl, fixed": of_local_sgd(lambda **o: fs.apfl(TASK, LR, **o), twins.apfl, alpha=0.4, adaptive=False),
    "pfedme": of_local_sgd(lambda **o: fs.pfedme(TASK, LR, **o), twins.pfedme, **PFEDME),
    "gossip": Case(fs.gossip(TASK, SGD, MIXING), lambda mistake="": twins.gossip(*LOCAL, MIXING, mistake=mistake)),
    "ifca": Case(IFCA, lambda mistake="": twins.ifca(*LOCAL, FIRST, mistake=mistake)[:2]),
    **{
        f"perfedavg, {order}": Case(
            fs.perfedavg(TASK, 0.05, LR, order),
            lambda mistake="", order=order: twins.perfedavg(*LOCAL[:3], 0.05, *LOCAL[4:], LR, order, mistake),
        )
        for order in ("exact", "first", "hf")
    },
}
MISTAKES = [
    *[("ditto", mistake) for mistake in ("begins anew", "pulled to y", "pulled to itself")],
    *[("apfl", mistake) for mistake in ("the new w", "v alone", "no chain rule", "v becomes the mixture")],
    *[("pfedme", mistake) for mistake in ("theta from w", "its own centre", "theta averaged", "by examples")],
    ("gossip", "one graph for all"),
    *[("gossip", mistake) for mistake in ("the other way", "mixed before training", "only the cohort mixes")],
    *[("ifca", mistake) for mistake in ("the worst", "chosen once", "equal weights", "divided by the cohort")],
    *[("perfedavg, exact", mistake) for mistake in ("one batch", "first order", "Hessian of the first gradient")],
    *[(case, mistake) for case in ("private", "private, pull") for mistake in ("begins anew", "all averaged")],
    ("private, head first", "head last"),
    ("private, pull", "private ones pulled"),
]


@functools.cache
def states(case):
    return simulate(CASES[case].ours, DATA, COHORTS, params=START)


@functools.cache
def models(case):
    """The server's [R, d], and the clients' own [R, K, d] if they have such, ours."""
    algorithm = CASES[case].ours
    server = np.array([flat(algorithm.params(state.server)) for state in states(case)])
    if algorithm.personal is None:
        return (server,)
    return server, np.array([own_models(algorithm, state) for state in states(case)])


def own_models(algorithm, state):
    """[K, d], each client's own."""
    table = jax.tree.map(lambda table: table[: len(SIZES)], state.rows.client)
    return flat(jax.vmap(algorithm.personal, in_axes=(None, 0))(state.server, table))


def gaps(case, mistake=""):
    """How far the two are from the twin's, at most."""
    twin = CASES[case].twin(mistake) if mistake else CASES[case].twin()
    return [np.abs(a - b).max() for a, b in zip(models(case), twin, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_trajectory_is_the_twins(case):
    assert max(gaps(case)) < TOLERANCE
    assert np.ptp(models(case)[0], axis=0)[[0, 1, 2]].min() > 0.01


@pytest.mark.parametrize("case, mistake", MISTAKES)
def test_mistake_is_told_apart(case, mistake):
    assert max(gaps(case, mistake)) > 100 * TOLERANCE


# Private parameters


def test_private_parameters_never_leave():
    """Neither the server's state nor another client's row has a bit of them, nor do bits count them."""
    noise = (fs.aggregate.clip_by_l2(0.5), fs.aggregate.gaussian_noise(0.1))
    chain = fs.aggregate.chain(*noise, reduce=fs.aggregate.mean("uniform"))
    algorithm = fs.fedavg(TASK, SGD, aggregator=chain, private=lambda path: path == "b")
    cohorts, execution = [[0, 2], [1, 2, 3]], fs.Execution(devices=jax.devices()[:1], lanes=2)
    sampler = fs.sampler.fixed(cohorts)._replace(event=fs.sampler.min_separation(2, separation=2).event)
    sim = fs.Simulation(algorithm, DATA, sampler, BATCHING, execution=execution)
    before = sim.init(START)
    for cohort in cohorts:
        after, metrics = sim.step(before)
        moved = np.flatnonzero(np.asarray(after.rows.client.params["b"] != before.rows.client.params["b"]))
        assert set(moved) == {k for k in cohort if SIZES[k]}
        assert after.rows.client.params["w"] is None
        assert after.server.params["b"] is None
        assert after.server.first["b"] == START["b"]
        for way in ("up", "down"):
            assert set(metrics.clients(f"aggregate/{way}link_bits")) <= {0.0, 32 * 4.0}
        before = after


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: fs.fedavg(TASK, SGD, private="head").init(START), r"'head' matches no parameter: .*\['b', 'w'\]"),
        (lambda: fs.fedavg(TASK, SGD, private=".").init(START), r"'.' matches every parameter: .*\['b', 'w'\]"),
        (lambda: fs.fedavg(TASK, SGD, private="("), r"private='\(': is no regular expression"),
        (lambda: fs.fedavg(TASK, SGD, private=3), "private=3: must be a pattern"),
        (lambda: fs.fedavg(TASK, SGD, head_steps=1), "head_steps=1: needs private="),
        (lambda: fs.fedavg(TASK, SGD, private="b", head_steps=-1), "head_steps=-1: must be a whole number"),
        (lambda: fs.fedavg(TASK, SGD, client_optimizer_state="average", private="b"), "moments of private parameters"),
        (
            lambda: fs.fedavg(TASK, SGD, client_optimizer_state="keep", private="b", head_steps=1),
            "head_steps=1: counts the steps of a round",
        ),
    ],
)
def test_what_cannot_be_private_is_refused(build, message):
    with pytest.raises(fs.FedSimError, match=message):
        build()


# Two clients of one scalar, f_k(x) = a_k (x - b_k)^2 / 2, whose numbers are from another program

QUADRATIC = quadratics(np.array([1.0, 10.0]), np.array([0.0, 1.0]))


def quadratic_rounds(build, cohorts, steps=10, state=lambda state: state, start=3.0):
    task, data = QUADRATIC
    execution = fs.Execution(devices=jax.devices()[:1], lanes=2)
    sim = fs.Simulation(build(task), data, fs.sampler.fixed(cohorts), fs.Batching(1, epochs=steps), execution=execution)
    now, found = state(sim.init(np.float32(start))), []
    for _ in cohorts:
        now, _ = sim.step(now)
        found.append(now)
    return found


def close(actual, expected, **tolerance):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, **{"rtol": 2e-6, **tolerance})


def test_dittos_models_after_ten_steps_from_zero():
    def from_zero(state):
        row = state.rows.client
        row = row._replace(params=0 * row.params, rounds=row.rounds + 1)
        return dataclasses.replace(state, rows=dataclasses.replace(state.rows, client=row))

    build = lambda task: fs.ditto(task, optax.sgd(0.05), lam=1.0)
    (state,) = quadratic_rounds(build, [[0, 1]], state=from_zero, start=0.7134422)
    close(state.rows.client.params[:2], [0.2323401, 0.9736176])


def test_apfls_steps_are_in_order():
    states = quadratic_rounds(lambda task: fs.apfl(task, 0.02), [[1]] * 3, steps=1)
    seen = [(state.server.params, state.rows.client.own.params[1], state.rows.client.alpha[1]) for state in states]
    close(seen, [(2.6, 2.8, 0.5), (2.28, 2.63, 0.432), (2.024, 2.5063443, 0.3318160)])


def test_pfedme_ends_where_its_envelopes_do():
    states = quadratic_rounds(lambda task: fs.pfedme(task, 0.01, 0.02, 15.0, 5), [[0, 1]] * 3)
    close([state.server.params for state in states], [2.4106956, 1.9822646, 1.6707905])
    states = quadratic_rounds(lambda task: fs.pfedme(task, 0.05, 0.02, 15.0, 40), [[0, 1]] * 60, steps=1)
    pull = np.array([1.0, 10.0]) * 15 / (np.array([1.0, 10.0]) + 15)  # of the envelope's gradient
    exact = pull[1] / pull.sum()
    assert exact == pytest.approx(0.8648649)
    close(states[-1].server.params, exact, rtol=1e-4)


@pytest.mark.parametrize(
    "order, alpha, expected", [("exact", 0.05, 0.7347539), ("first", 0.05, 0.8403361), ("hf", 0.08, 0.3209243)]
)
def test_perfedavg_ends_where_one_step_from_it_is_best(order, alpha, expected):
    states = quadratic_rounds(lambda task: fs.perfedavg(task, alpha, 0.3, order), [[0, 1]] * 80, steps=1)
    close(states[-1].server.params, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: fs.ditto(TASK, SGD, lam=-1.0), "lam=-1.0: must be zero or more"),
        (lambda: fs.ditto(TASK, SGD, personal_optimizer=0.1), "personal_optimizer=0.1: must be an optax"),
        (lambda: fs.apfl(TASK, LR, alpha=1.5), "alpha=1.5: must lie in"),
        (lambda: fs.pfedme(TASK, 0.1, 0.01), r"client_lr=0.1: client_lr \* lam must be below 1, and lam is 15.0"),
        (lambda: fs.pfedme(TASK, 0.01, 0.1), r"inner_lr=0.1: inner_lr \* lam must be below 1, and lam is 15.0"),
        (lambda: fs.pfedme(TASK, 0.01, 0.01, beta=1.5), r"beta=1.5: must lie in \(0, 1\]"),
        (lambda: fs.perfedavg(TASK, 0.1, 0.1, "second"), "order='second': must be"),
        (lambda: fs.ifca(TASK, SGD, 2, aggregator=fs.aggregate.median()), "clients send zeros for other clusters"),
        (lambda: fs.ifca(TASK, SGD, 0), "k=0: must be a whole number"),
        (lambda: fs.gossip(TASK, SGD, np.eye(4)), "its graph must be connected"),
        (lambda: fs.gossip(TASK, SGD, np.ones((2, 2))), "mixing=2.0: its rows must each sum to 1"),
        (lambda: fs.gossip(TASK, SGD, [[0.5, 0.5], [1, 0]]), "mixing=1.5: its columns must each sum to 1"),
        (lambda: fs.gossip(TASK, SGD, [[2.0, -1.0], [-1.0, 2.0]]), "mixing=-1.0: weights must not be negative"),
        (lambda: fs.gossip(TASK, SGD, np.ones(3)), r"mixing.shape=\(3,\): must be"),
        (lambda: simulate(fs.gossip(TASK, SGD, fs.mixing.ring(4)), DATA, [[0]]), "num_clients=4: the data have 6"),
        (lambda: fs.mixing.erdos_renyi(20, 0.01), "probability=0.01: the graph of seed=0 is not connected"),
        (lambda: fs.reptile(TASK, SGD, 0.0), "server_lr=0.0: must be positive"),
    ],
)
def test_what_the_maths_forbids_is_refused(build, message):
    with pytest.raises(fs.FedSimError, match=message):
        build()


def test_ifca_parts_four_clients_and_leaves_an_empty_cluster():
    task, data = quadratics(np.ones(4), np.array([0, 0.1, 1, 0.9]))
    algorithm = fs.ifca(task, optax.sgd(1.0), 3)
    execution = fs.Execution(devices=jax.devices()[:1], lanes=2)
    sim = fs.Simulation(algorithm, data, fs.sampler.fixed([[0, 1, 2, 3]]), fs.Batching(1), execution=execution)
    state = sim.init(np.float32(0.2))
    server = state.server._replace(params=np.array([0.2, 0.8, 9.0], np.float32))
    after, _ = sim.step(dataclasses.replace(state, server=jax.device_put(server, state.server.share.sharding)))
    np.testing.assert_array_equal(after.rows.client[:4], [0, 0, 1, 1])
    close(after.server.params, [0.05, 0.95, 9.0])
    close(after.server.share, [0.5, 0.5, 0])


def test_graphs_are_doubly_stochastic_and_mix_at_their_rates():
    graphs = [fs.mixing.ring(8), fs.mixing.torus(3, 4), fs.mixing.exponential(8), fs.mixing.erdos_renyi(9, 0.4)]
    for W in (*graphs, fs.mixing.complete(5)):
        assert (W >= 0).all()
        np.testing.assert_allclose([W.sum(0), W.sum(1)], 1, rtol=1e-12)
    assert np.sort(np.linalg.eigvalsh(graphs[0]))[-2] == pytest.approx(0.8047379)
    close(graphs[0] @ np.arange(8), [8 / 3, 1, 2, 3, 4, 5, 6, 13 / 3])
