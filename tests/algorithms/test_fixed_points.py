r"""Clients f_k(x) = a_k (x - b_k)^2 / 2 in one scalar: closed forms of where each method ends.

From x, K gradient steps at rate η give :math:`y = b + r^K (x - b)`, r = 1 - η a, so that the delta is
:math:`s (b - x)` with :math:`s = 1 - r^K`. With FedProx's pull :math:`μ (y - x)` the local recursion is contracted by
:math:`r = 1 - η (a + μ)` towards :math:`(a b + μ x) / (a + μ)`: the delta is :math:`s (b - x)` once more, with
:math:`s = (1 - r^K) a / (a + μ)`. A weighted mean of such deltas vanishes at :math:`\sum w s b / \sum w s`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.algorithms.problems import least_squares, quadratics, simulate

A, B = np.array([1.0, 10.0]), np.array([10.0, 0.0])
OPTIMUM = (A * B).sum() / A.sum()  # of the plain mean of the clients: 10 / 11
LR = 0.04


def final(algorithm, data, batching, rounds=160):
    sim = fs.Simulation(
        algorithm,
        data,
        fs.sampler.fixed([[0, 1]] * rounds),
        batching,
        execution=fs.Execution(devices=jax.devices()[:1]),
    )
    state, _ = sim.run(sim.init(), rounds)
    return float(sim.params(state))


@pytest.mark.parametrize("copies", [(1, 1), (3, 1)], ids=str)
@pytest.mark.parametrize("steps, mu", [(1, 0), (5, 0), (5, 0.1), (5, 1), (5, 10), (200, 10)])
def test_fedavg_and_fedprox_end_at_their_own_fixed_points(steps, mu, copies):
    task, data = quadratics(A, B, copies)  # copies of an example weigh its client
    sgd = optax.sgd(LR)
    algorithm = fs.fedprox(task, sgd, mu=mu) if mu else fs.fedavg(task, sgd)
    share = (1 - (1 - LR * (A + mu)) ** steps) * A / (A + mu)
    weight = np.array(copies) * share
    expected = (weight * B).sum() / weight.sum()
    assert final(algorithm, data, fs.Batching(4, epochs=steps)) == pytest.approx(expected, rel=1e-5)
    if steps == 1 and copies == (1, 1) and not mu:
        assert expected == pytest.approx(OPTIMUM)  # one step is gradient descent
    if steps == 5 and copies == (1, 1) and not mu:
        assert abs(expected - OPTIMUM) > 0.5  # the drift that SCAFFOLD removes
    if steps == 200:  # the exact proximal operator
        exact = np.array(copies) * A / (A + mu)
        assert expected == pytest.approx((exact * B).sum() / exact.sum())


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize(
    "copies, rounds",
    [((1, 1), [[0, 1]] * 80), ((4, 2), [[0, 1]] * 80), ((4, 2), [[0], [1], [0, 1]] * 40)],
    ids=["equal steps", "unequal steps", "partial participation"],
)
def test_scaffold_reaches_the_optimum(option, copies, rounds):
    """With any K_k, as its copies are batches of one; and with every client's variate at its own gradient."""
    task, data = quadratics(A, B, copies)
    algorithm = fs.scaffold(task, LR, num_clients=2, option=option)
    states = simulate(algorithm, data, rounds, fs.Batching(1, epochs=2), devices=1)
    for state in states:
        np.testing.assert_allclose(state.rows.client.mean(), state.server.control, atol=1e-5)
    assert float(states[-1].server.params) == pytest.approx(OPTIMUM, rel=1e-5)
    np.testing.assert_allclose(states[-1].rows.client, A * (OPTIMUM - B), rtol=1e-4)
    np.testing.assert_allclose(states[-1].server.control, 0, atol=1e-4)


def test_scaffold_as_measured_by_hand():
    """Three rounds of option 2 from x = 3 with K = 10 and η = 0.05, as DESIGN.md has them of another program."""
    task, data = quadratics(A, B[::-1] / 10)
    algorithm = fs.scaffold(task, 0.05, num_clients=2)
    batching = fs.Batching(1, epochs=10)
    states = simulate(algorithm, data, [[0, 1]] * 40, batching, params=np.float32(3), devices=1)
    x = [float(state.server.params) for state in states]
    np.testing.assert_allclose(x[:3], [1.399082, 0.799357, 0.704021], atol=1e-6)
    assert x[-1] == pytest.approx(0.909091, rel=1e-5)


# DESIGN.md 4 (c), as a user writes it, to the letter.
# fmt: off
def scaffold(task, lr, num_clients, server_lr=1.0):
    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"x": params, "c": zeros}, zeros        # server state, one client's private row

    def client(key, server, c_i, batches):
        def step(y, batch, key):
            grads, metrics = fs.grad(task)(y, batch, key)
            return jax.tree.map(lambda y, g, ci, c: y - lr * (g - ci + c), y, grads, c_i, server["c"]), metrics
        y, metrics = fs.local_steps(step, server["x"], batches, key)
        delta = jax.tree.map(jnp.subtract, y, server["x"])
        scale = 1.0 / (lr * jnp.maximum(batches.num_steps, 1))
        c_new = jax.tree.map(lambda ci, c, d: ci - c - scale * d, c_i, server["c"], delta)
        payload = {"delta": delta, "dc": jax.tree.map(jnp.subtract, c_new, c_i)}
        return fs.ClientUpdate(payload, weight=1.0, state=c_new, metrics=metrics)

    def server(key, server, aggregate):
        step = lambda scale: lambda s, d: s + scale * d
        return {"x": jax.tree.map(step(server_lr), server["x"], aggregate.value["delta"]),
                "c": jax.tree.map(step(aggregate.count / num_clients), server["c"], aggregate.value["dc"])}

    return fs.Algorithm(task, init, client, server, aggregator=fs.aggregate.mean(weight="uniform"),
                        params=lambda server: server["x"])
# fmt: on


def test_a_users_scaffold_is_ours():
    task, data, clients = least_squares()
    cohorts = [[0, 1, 2, 3], [4, 2], [5, 0, 1], [2, 4, 3]]
    batching = fs.Batching(3, epochs=2)  # shuffled: both draw the same orders
    theirs = simulate(scaffold(task, 0.1, len(clients), 0.5), data, cohorts, batching)
    ours = simulate(fs.scaffold(task, 0.1, len(clients), 2, 0.5), data, cohorts, batching)
    for a, b in zip(ours, theirs, strict=True):
        pairs = (
            (a.server.params, b.server["x"]),
            (a.server.control, b.server["c"]),
            (a.rows.client, b.rows.client),
        )
        for mine, yours in pairs:
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), mine, yours)
