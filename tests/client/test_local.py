"""Local steps: the traced loop, the static one, and derivatives through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.client import ClientBatches
from fedjax_sim.engine.plan.planner import Planner

SIZES = (7, 4, 0, 9)
DRAW = np.random.default_rng(0)
DATA = fs.data.FederatedData(
    {
        "x": DRAW.normal(size=(20, 2)).astype(np.float32),
        "y": DRAW.normal(size=20).astype(np.float32),
    },
    np.concatenate([[0], np.cumsum(SIZES)]),
)
BATCHING = fs.Batching(3, epochs=2)
LONGEST = 6  # client 3: two epochs of three batches


def batches_of(client, bound=None, alone=True, batching=BATCHING):
    """A client's batches from the real plan; all in one lane."""
    planner = Planner(DATA, batching)
    cohort = fs.Cohort(np.array([client]), np.array([True]), np.ones(1, np.float32))
    plan, _ = planner.plan(cohort, planner.shape(1, 1), seed=0, round=0)
    lane = {name: jnp.asarray(getattr(plan.lanes, name)[0, 0, 0]) for name in ("start", "size", "steps")}
    return ClientBatches(
        num_steps=lane["steps"],
        num_examples=lane["size"].astype(jnp.float32),
        client_id=jnp.int32(client),
        info={},
        bound=lane["steps"] if bound is None else jnp.int32(bound),
        arrays=jax.tree.map(jnp.asarray, DATA.arrays),
        order=jnp.asarray(plan.order[0]),
        start=lane["start"],
        stride=lane["size"],
        batch_size=batching.batch_size,
        longest=planner.longest,
        alone=alone,
    )


def loss(params, batch, key):
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    return (batch["x"] @ params - batch["y"] + noise) ** 2


TASK = fs.Task(lambda key: jnp.zeros(2), loss)
START, KEY = jnp.array([0.3, -0.2]), jax.random.key(1)


def train(batches, start=START, lr=0.1, **kwargs):
    def step(y, batch, key):
        grads, metrics = fs.grad(TASK)(y, batch, key)
        return y - lr * grads, metrics

    return fs.local_steps(step, start, batches, KEY, **kwargs)


def by_hand(batches, start=START, lr=0.1):
    """The same loop in Python, on unpadded batches."""
    y, total, count = np.asarray(start, np.float64), 0.0, 0.0
    for s in range(int(batches.num_steps)):
        batch = batches.batch(s)
        real = np.asarray(batch["mask"]) > 0
        noise = 0.1 * np.asarray(jax.random.normal(jax.random.fold_in(KEY, s), real.shape))
        x, target = np.asarray(batch["x"])[real], np.asarray(batch["y"])[real]
        error = x @ y - target + noise[real]
        total, count = total + (error**2).sum(), count + real.sum()
        y = y - lr * 2 * error @ x / real.sum()
    return y, total / max(count, 1)


@pytest.mark.parametrize("client", [0, 1, 3])
def test_loop_is_the_plain_loop(client):
    batches = batches_of(client)
    y, metrics = train(batches)
    expected, mean = by_hand(batches)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].compute(), mean, rtol=1e-5)
    assert metrics["loss"].weight == 2 * SIZES[client]


@pytest.mark.parametrize("kwargs", [{"static_steps": LONGEST}, {"static_steps": 9}, {"bound": 8}], ids=str)
@pytest.mark.parametrize("client", [0, 1, 3])
def test_steps_past_the_clients_own_change_nothing(client, kwargs):
    bound = kwargs.pop("bound", None)
    kwargs = dict(kwargs)
    batches = batches_of(client, bound=bound, alone=bound is None)
    y, metrics = train(batches, **kwargs)
    expected, own = train(batches_of(client))
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"].total, own["loss"].total, rtol=1e-6)
    assert metrics["loss"].weight == own["loss"].weight


def test_a_client_without_steps():
    none = batches_of(2, bound=5, alone=False)
    for kwargs in ({}, {"static_steps": LONGEST}):
        y, metrics = train(none, **kwargs)
        np.testing.assert_array_equal(y, START)
        assert metrics["loss"].weight == metrics["loss"].total == 0


@pytest.mark.parametrize("client", [1, 2, 3])
def test_derivatives_through_local_training(client):
    """Against finite differences; a client without steps has derivative one in its start, zero in its rate."""
    batches = batches_of(client)

    def after(start, lr):
        return jnp.sum(train(batches, start, lr, static_steps=LONGEST)[0])

    grads = jax.jit(jax.grad(after, argnums=(0, 1)))(START, 0.1)
    if client == 2:
        np.testing.assert_array_equal(grads[0], np.ones(2))
        assert grads[1] == 0
        return
    value = lambda start, lr: by_hand(batches, start, lr)[0].sum()
    for i, direction in enumerate(np.eye(2) * 1e-4):
        slope = (value(START + direction, 0.1) - value(START - direction, 0.1)) / 2e-4
        np.testing.assert_allclose(grads[0][i], slope, rtol=2e-3, atol=2e-3)
    slope = (value(START, 0.1 + 1e-4) - value(START, 0.1 - 1e-4)) / 2e-4
    np.testing.assert_allclose(grads[1], slope, rtol=2e-3, atol=2e-3)


def test_static_steps_inside_a_simulation():
    """Per-FedAvg: a client that differentiates through its own training runs in the engine's lanes."""

    def client(key, server, row, batches):
        def after(start):
            def step(y, batch, key):
                grads, metrics = fs.grad(TASK)(y, batch, key)
                return y - 0.1 * grads, metrics

            y, metrics = fs.local_steps(step, start, batches, key, static_steps=LONGEST)
            return jnp.sum(y), metrics

        meta, metrics = jax.grad(after, has_aux=True)(server)
        return fs.ClientUpdate(meta, metrics={"meta": fs.metrics.Sum(meta), **metrics})

    algorithm = fs.Algorithm(TASK, lambda p: (p, None), client, lambda key, server, a: a.value)
    found = []
    for lanes in (1, 3):
        devices = jax.devices()[:1]
        sampler = fs.sampler.fixed([[0, 1, 2, 3]])
        sim = fs.Simulation(algorithm, DATA, sampler, BATCHING, execution=fs.Execution(lanes=lanes, devices=devices))
        _, metrics = sim.step(sim.init())
        found.append(metrics.clients("client/meta"))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert (found[0][[0, 1, 3]] != 0).all()


def test_too_few_static_steps():
    with pytest.raises(fs.FedSimError, match="static_steps=5: the longest client takes 6 steps"):
        train(batches_of(1), static_steps=5)


def test_value_may_be_any_pytree_and_keeps_its_dtypes():
    def step(value, batch, key):
        count, (total, nothing), flag = value
        return (count + 1, (total + jnp.dot(batch["y"], batch["mask"]), nothing), ~flag), {}

    init = (0, (0.0, None), jnp.array(False))
    (count, (total, _), flag), metrics = fs.local_steps(step, init, batches_of(1), KEY)
    assert (int(count), bool(flag), metrics) == (4, False, {})
    np.testing.assert_allclose(total, 2 * DATA.client(1)["y"].sum(), rtol=1e-5)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_hold_each_example_once_an_epoch(shuffle, drop):
    """And padding repeats one of the client's own examples."""
    batching = fs.Batching(3, epochs=2, shuffle=shuffle, drop_remainder=drop)
    batches = batches_of(0, batching=batching)
    if drop:
        import dataclasses

        batches = dataclasses.replace(batches, stride=jnp.int32(6))
    own = {tuple(row) for row in DATA.client(0)["x"]}
    steps, each = (4, 6) if drop else (6, 7)
    assert int(batches.num_steps) == steps
    epochs = [[], []]
    for s in range(steps):
        batch = jax.device_get(batches.batch(s))
        assert {tuple(row) for row in batch["x"]} <= own
        epochs[s // (steps // 2)] += [tuple(row) for row in batch["x"][batch["mask"] > 0]]
    for seen in epochs:
        assert len(seen) == len(set(seen)) == each
    assert (epochs[0] == epochs[1]) == (not shuffle)
