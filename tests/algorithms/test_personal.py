"""Methods with models of clients' own against their NumPy twins, over ragged rounds; and the known mistakes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.algorithms import personal_twins as twins
from tests.algorithms.problems import BATCHING, COHORTS, SIZES, START, flat, least_squares, simulate

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


CASES = {
    "private": private_case(fs.fedavg(TASK, SGD, private="^b$")),
    "private, head first": private_case(fs.fedavg(TASK, SGD, private="b", head_steps=2), head_steps=2),
    "private, head as it is": private_case(fs.fedavg(TASK, SGD, private="b", head_steps=0), head_steps=0),
    "private, pull": private_case(fs.fedprox(TASK, SGD, mu=1.5, private="b"), mu=1.5),
}
MISTAKES = [
    *[(case, mistake) for case in ("private", "private, pull") for mistake in ("begins anew", "all averaged")],
    ("private, head first", "head last"),
    ("private, pull", "private ones pulled"),
]


@functools.cache
def states(case):
    return simulate(CASES[case].ours, DATA, COHORTS, params=START)


@functools.cache
def models(case):
    """The server's [R, d] and the clients' own [R, K, d], ours."""
    algorithm = CASES[case].ours
    server = np.array([flat(algorithm.params(state.server)) for state in states(case)])
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
