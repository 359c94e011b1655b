"""Limits in which one method is another, or is something that JAX and optax can compute on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.client import ClientBatches
from tests.algorithms.problems import COHORTS, SIZES, START, least_squares, simulate

TASK, DATA, CLIENTS = least_squares()
LR = 0.1
SGD = optax.sgd(LR)
FULL = fs.Batching(max(SIZES), shuffle=False)
UNIFORM = fs.aggregate.mean("uniform")


def examples(clients):
    """The clients' examples together, as one batch."""
    rows = np.concatenate([DATA.rows(k) for k in clients])
    batch = {name: jnp.asarray(array[rows]) for name, array in DATA.arrays.items()}
    return {**batch, "mask": jnp.ones(len(rows))}


@jax.jit
def gradient(params, batch):
    key = jax.random.key(0)
    return jax.grad(lambda p: TASK.loss(p, batch, key).mean())(params)


def descend(optimizer, batches):
    """The models of centralised descent, one step a batch."""
    params = jax.tree.map(jnp.asarray, START)
    state, out = optimizer.init(params), []
    for batch in batches:
        updates, state = optimizer.update(gradient(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out


def models(algorithm, cohorts=COHORTS, batching=FULL, **options):
    states = simulate(algorithm, DATA, cohorts, batching, START, **options)
    return [algorithm.params(state.server) for state in states]


def assert_close(actual, expected, tolerance=1e-6):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    jax.tree.map(close, actual, expected)


def test_one_client_one_full_batch_is_gradient_descent():
    expected = descend(SGD, [examples([2])] * 4)
    assert_close(models(fs.fedavg(TASK, SGD), [[2]] * 4, devices=1), expected)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.3), optax.adam(0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("batch_size", [3, 8])
def test_fedsgd_is_centralised_descent_on_the_cohorts_examples(optimizer, batch_size):
    expected = descend(optimizer, [examples(cohort) for cohort in COHORTS])
    batching = fs.Batching(batch_size)  # cut and shuffled in any way
    assert_close(models(fs.fedsgd(TASK, optimizer), batching=batching), expected, 1e-5)


def test_fedprox_without_its_pull_is_fedavg():
    batching = fs.Batching(3, epochs=2)
    expected = models(fs.fedavg(TASK, SGD), batching=batching)
    assert_close(models(fs.fedprox(TASK, SGD, mu=0), batching=batching), expected, 1e-7)


def test_a_clip_above_every_norm_is_the_mean():
    clipped = fs.aggregate.chain(fs.aggregate.clip_by_l2(1e6), reduce=UNIFORM)
    expected = models(fs.fedavg(TASK, SGD, aggregator=UNIFORM))
    assert_close(models(fs.fedavg(TASK, SGD, aggregator=clipped)), expected, 1e-7)


@pytest.mark.parametrize("option", [1, 2])
def test_scaffolds_first_round_is_a_plain_mean_of_fedavg(option):
    batching = fs.Batching(3, epochs=2)
    expected = models(fs.fedavg(TASK, SGD, aggregator=UNIFORM), COHORTS[:1], batching)
    ours = models(fs.scaffold(TASK, LR, len(SIZES), option), COHORTS[:1], batching)
    assert_close(ours, expected)


def test_fedavgm_is_momentum_on_the_negated_deltas():
    deltas = jax.random.normal(jax.random.key(1), (4, 3))
    ours, theirs = fs.server.fedavgm(0.5, 0.9), optax.sgd(0.5, momentum=0.9)
    x = y = jnp.ones(3)
    a, b = ours.init(x), theirs.init(y)
    for delta in deltas:
        x, a = fs.server.step(ours, x, a, delta)
        updates, b = theirs.update(-delta, b, y)
        y = optax.apply_updates(y, updates)
        assert_close(x, y, 1e-7)


def test_any_optax_client_optimizer_starts_anew_each_round():
    batching = fs.Batching(max(SIZES), epochs=3)
    ours = models(fs.fedavg(TASK, optax.adam(0.05)), [[2]] * 2, batching, devices=1)
    params = jax.tree.map(jnp.asarray, START)
    for model in ours:
        state = optax.adam(0.05).init(params)
        for _ in range(3):
            updates, state = optax.adam(0.05).update(gradient(params, examples([2])), state)
            params = optax.apply_updates(params, updates)
        assert_close(model, params, 1e-5)


# Hyperparameters may be traced


def hand_made(client, steps):
    """One client's batches as an engine would make them: `steps` full batches."""
    count = lambda n: jnp.asarray(n, jnp.int32)
    size = SIZES[client]
    return ClientBatches(
        num_steps=count(steps),
        num_examples=jnp.float32(size),
        client_id=count(client),
        info={"weight": jnp.ones(()), "version": count(0)},
        bound=count(steps),
        arrays=jax.tree.map(jnp.asarray, DATA.arrays),
        order=jnp.tile(jnp.asarray(DATA.rows(client), jnp.int32), steps),
        start=count(0),
        stride=count(size),
        batch_size=size,
        longest=steps,
    )


def one_round(algorithm):
    """Init, the client, the chain and the server by hand, as a function that any transformation may trace."""
    aggregator = algorithm.passes()[0].aggregator
    key, params = jax.random.key(0), jax.tree.map(jnp.asarray, START)
    server, row = algorithm.init(params)
    update = algorithm.client(key, server, row, hand_made(2, steps=3))
    states, _ = aggregator.init(update.payload)
    context = fs.aggregate.Context(jnp.int32(2), jnp.int32(0), key, jnp.float32(jnp.inf))
    message, _, _ = aggregator.client(key, states, None, update.payload, context)
    total = fs.Aggregate(message, jnp.ones(()), jnp.ones(()))
    aggregate, _, _ = aggregator.server(key, states, total, None)
    return algorithm.params(algorithm.server(key, server, aggregate))


TRACED = {
    "fedprox mu": lambda h: fs.fedprox(TASK, SGD, mu=h),
    "client lr": lambda h: fs.fedavg(TASK, optax.sgd(h)),
    "scaffold client_lr": lambda h: fs.scaffold(TASK, h, len(SIZES)),
    "scaffold server_lr": lambda h: fs.scaffold(TASK, LR, len(SIZES), option=1, server_lr=h),
    "clip_norm": lambda h: fs.fedavg(TASK, SGD, aggregator=fs.aggregate.chain(fs.aggregate.clip_by_l2(h))),
    "fedavgm lr and momentum": lambda h: fs.fedavg(TASK, SGD, fs.server.fedavgm(h, h)),
    "fedadagrad": lambda h: fs.fedavg(TASK, SGD, fs.server.fedadagrad(h, h, h)),
    "fedadam": lambda h: fs.fedavg(TASK, SGD, fs.server.fedadam(h, h, h, h, initial_accumulator=h)),
    "fedyogi": lambda h: fs.fedavg(TASK, SGD, fs.server.fedyogi(h, h, h, h, bias_correction=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACED)
def test_hyperparameters_may_be_traced(name):
    build, values = TRACED[name], np.array([0.02, 0.1, 0.3], np.float32)
    together = jax.jit(jax.vmap(lambda h: one_round(build(h))))(values)
    # A value at a time, each a Python number, which the constructors then check.
    apart = jax.tree.map(lambda *m: np.stack(m), *[one_round(build(float(h))) for h in values])
    assert_close(together, apart, 1e-5)
    assert np.ptp(together["w"], axis=0).max() > 1e-4
