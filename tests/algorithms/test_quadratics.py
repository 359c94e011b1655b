r"""Two clients of one scalar, f_k(x) = a_k (x - b_k)^2 / 2 with a = (1, 10), b = (0, 1), from x = 3 at the rate 0.05.

Numbers with six or more digits are from another program; formulas are derived here. The optimum of the plain mean is
10 / 11. K steps from z move a client by s_k (b_k - z), s_k = 1 - (1 - 0.05 a_k)^K.
"""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.algorithms.afl import moved
from tests.algorithms.problems import quadratics, simulate

A, B, LR, START, OPTIMUM = np.array([1.0, 10.0]), np.array([0.0, 1.0]), 0.05, np.float32(3), 10 / 11
UNIFORM = fs.aggregate.mean("uniform")
SGD = optax.sgd(LR)
TASK, DATA = quadratics(A, B)


def servers(algorithm, rounds, steps=10, copies=(1, 1), cohorts=None):
    """The server's states; each client takes `steps` steps of its one example, or one step of each of its copies."""
    data = quadratics(A, B, copies)[1]
    batching = fs.Batching(1, epochs=1 if max(copies) > 1 else steps)
    made = simulate(algorithm, data, cohorts or [[0, 1]] * rounds, batching, START, devices=1)
    return [state.server for state in made]


def close(actual, expected, **tolerance):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, **{"rtol": 2e-6, **tolerance})


def test_fednova_with_two_and_twenty_steps():
    nova = fs.fednova(TASK, LR, aggregator=UNIFORM)
    first, *_, last = servers(nova, 150, copies=(2, 20))
    close(first.params, 1.6456255)
    for wrong in (7.7206255, -10.5437):  # models averaged; scaled by 20 clients over the cohort's 2
        assert abs(first.params - wrong) > 1
    speed = (1 - (1 - LR * A) ** (2, 20)) / (2, 20)  # of the normalised update: the fixed point that it has
    close(last.params, (speed @ B) / speed.sum(), rtol=1e-5)
    assert abs(last.params - OPTIMUM) > 0.3


def test_feddyn_ends_at_the_optimum():
    last = servers(fs.feddyn(TASK, LR, alpha=1.0), 300, steps=50)[-1]
    close([last.params, last.sent], OPTIMUM, rtol=1e-5)
    close(last.h, 0, atol=1e-5)
    third = servers(fs.feddyn(TASK, LR, alpha=0.1), 3, steps=50)[-1]
    close([third.params, third.sent], [0.5564189, 0.6177184])


def test_fedexp_steps_and_overshoots():
    states = servers(fs.fedexp(TASK, SGD), 4)
    close([s.server_lr for s in states], [1, 1, 1.640611, 30.08606], rtol=1e-5)
    close([s.params for s in states], [1.399082, 0.919036, 0.682878, 1.326699], rtol=1e-5)


def test_fedexp_of_three_vectors():
    """(1, 0), (0, 1), (-1, 0.2): 3.04 / (6 x 0.16)."""
    vectors = np.array([[1, 0], [0, 1], [-1, 0.2]], np.float32)
    task = fs.Task(lambda key: np.zeros(2, np.float32), lambda w, batch, key: -batch["v"] @ w)
    data = fs.data.FederatedData({"v": vectors}, [0, 1, 2, 3])
    (state,) = simulate(fs.fedexp(task, optax.sgd(1.0), eps=1e-9), data, [[0, 1, 2]], fs.Batching(1), devices=1)
    close(state.server.server_lr, 3.1666667)
    close(state.server.params, vectors.mean(0) * 3.1666667, atol=1e-6)


def test_mime_ends_at_the_optimum_and_mimelite_beside_it():
    """MimeLite rests where m = mean a (x - b), and clients that stop short of their own optimum for that cancel."""
    beta = 0.9
    momentum = optax.sgd((1 - beta) * LR, momentum=beta)  # the paper's moving average at the rate LR
    close(servers(fs.mime(TASK, momentum), 300)[-1].params, OPTIMUM, rtol=1e-5)
    s = 1 - (1 - LR * (1 - beta) * A) ** 10
    # sum s (b - x) = beta / (1 - beta) m sum s / a, with m = mean(a) x - mean(a b)
    pull = beta / (1 - beta) * (s / A).sum()
    rest = (s @ B + pull * (A * B).mean()) / (s.sum() + pull * A.mean())
    assert rest == pytest.approx(0.9075, abs=1e-4)
    close(servers(fs.mimelite(TASK, momentum), 300)[-1].params, rest, rtol=1e-5)


@pytest.mark.parametrize("q, expected", [(0, 1.399082), (1, 2.659646), (5, 2.904732)])
def test_qfedavgs_first_round(q, expected):
    close(servers(fs.qfedavg(TASK, LR, q), 1)[0], expected)


@pytest.mark.parametrize("q", [0.5, 1.0, 0.0])
def test_qfedavg_of_clients_without_a_loss_stays(q):
    """F^(q - 1) of a loss of 0 is infinite below 1."""
    task, data = quadratics(np.array([1.0, 10.0]), np.array([3.0, 3.0]))
    (state,) = simulate(fs.qfedavg(task, LR, q), data, [[0, 1]], fs.Batching(1), START, devices=1)
    assert state.server == START


def test_afl_makes_the_losses_alike():
    """min max(x^2 / 2, 5 (x - 1)^2) is where both are equal, at sqrt(10) / (1 + sqrt(10))."""
    data = fs.data.FederatedData({**DATA.arrays, "domain": np.array([0, 1])}, DATA.offsets)
    for rule in ("exponentiated", "projected"):
        algorithm = fs.afl(TASK, SGD, 2, gamma=0.1, rule=rule)
        *_, last = simulate(algorithm, data, [[0, 1]] * 200, fs.Batching(1), START, devices=1)
        x = np.sqrt(10) / (1 + np.sqrt(10))
        close(last.server.params, x, rtol=1e-3)
        close(last.server.domain_weights @ (A * (x - B)), 0, atol=5e-3)  # a stationary mixture


def test_domain_weights_are_projected_or_exponentiated():
    everyone = np.ones(3, bool)
    of = lambda *given: moved(*(np.asarray(each) for each in given[:3]), given[3])
    close(of([0.5, 0.5, 0.0], [0.0, 0.4, -0.3], everyone, "projected"), [0.3, 0.7, 0], atol=1e-7)
    for rule in ("projected", "exponentiated"):
        weights = np.array([0.2, 0.5, 0.3])
        close(of(weights, np.full(3, 1.7), everyone, rule), weights, rtol=1e-6)  # equal losses
        two = of(weights, [0.2, 0.0, 0.1], np.array([True, False, True]), rule)
        assert two[1] == np.float32(0.5)
        assert two[0] > 0.2
        close(two.sum(), 1, rtol=1e-6)
    huge = of([0.5, 0.5, 0.0], [1e4, 0.0, 0.0], everyone, "exponentiated")
    np.testing.assert_array_equal(huge, [1, 0, 0])


def test_scaffnew_meets_at_the_steps_that_coins_say():
    """The third, fourth and twelfth number of NumPy's default_rng(0) are below 0.2; then each tenth is a coin's."""
    ends = 1 + np.flatnonzero(np.random.default_rng(0).random(12) < 0.2)
    lengths = [*np.diff(ends, prepend=0), *[10] * 60]
    fixed = fs.sampler.fixed([[0, 1]] * len(lengths))

    def sample(state, round, seed):
        cohort, state = fixed.sample(state, round, seed)
        return dataclasses.replace(cohort, max_steps=np.full(2, lengths[round], np.int32)), state

    algorithm = fs.scaffnew(TASK, 0.2, LR)
    execution = fs.Execution(devices=jax.devices()[:1], lanes=2)
    sim = fs.Simulation(algorithm, DATA, fixed._replace(sample=sample), fs.Batching(1, epochs=10), execution=execution)
    state, seen = sim.init(START), []
    for _ in lengths:
        state, _ = sim.step(state)
        seen.append(state.server)
    assert lengths[:3] == [3, 1, 8]
    close(seen[:3], [1.9110625, 1.6355203, 0.7078126])
    close(seen[-1], OPTIMUM, rtol=1e-5)
    shifts = state.rows.client + 0.2 / LR * state.server
    close(shifts, A * (OPTIMUM - B), rtol=1e-4)


def test_scaffnew_ends_at_the_optimum_by_coins():
    execution = fs.Execution(devices=jax.devices()[:1], lanes=2)
    algorithm, batching = fs.scaffnew(TASK, 0.2, LR), fs.Batching(1, steps=60)
    sim = fs.Simulation(algorithm, DATA, fs.sampler.coins(0.2), batching, execution=execution)
    state, history = sim.run(sim.init(START), rounds=200)
    close(sim.params(state), OPTIMUM, rtol=1e-5)
    assert 3.5 < history["plan/steps"].mean() / 2 < 6.5


def test_fedsams_first_step():
    for client, expected in enumerate([2.8475, 1.975]):
        close(servers(fs.fedsam(TASK, LR), 1, steps=1, cohorts=[[client]])[0].params, expected)


@pytest.mark.parametrize("adaptive", [False, True])
def test_fedsam_of_a_zero_gradient_stays(adaptive):
    task, data = quadratics(np.array([1.0]), np.array([3.0]))
    algorithm = fs.fedsam(task, LR, adaptive=adaptive)
    (state,) = simulate(algorithm, data, [[0]], fs.Batching(1), START, devices=1)
    assert state.server.params == START


def test_fedacgs_rounds():
    states = servers(fs.fedacg(TASK, SGD, beta=0.0), 3)
    close([s.params for s in states], [1.399082, 0.510997, 0.426384], rtol=5e-6)


def test_dilocos_outer_steps():
    x = jax.numpy.float32(1)
    outer = optax.sgd(0.7, 0.9, nesterov=True)
    state, seen = outer.init(x), []
    for delta in (-0.3, 0.1, -0.05):
        x, state = fs.server.step(outer, x, state, np.float32(delta))
        seen.append(x)
    close(seen, [0.601, 0.5639, 0.40101])
    # With workers of one step each the deltas are their gradients': the same steps by way of the algorithm.
    states = servers(fs.diloco(TASK, SGD), 3, steps=1)
    x, state = jax.numpy.float32(3), outer.init(x)
    for made in states:
        x, state = fs.server.step(outer, x, state, -LR * np.float32((A * (x - B)).mean()))
        close(made.params, x)
