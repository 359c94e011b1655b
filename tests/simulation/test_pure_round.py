"""A round as a pure function: what `step` does, under `jit`, `vmap` and `grad`, against a loop that is written out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.engine import toys

ROUNDS = 2
LOSSES: Any = toys.task().loss
KEY = jax.random.key(0)  # of which nothing is drawn
CLIPPED = fs.aggregate.chain(
    fs.aggregate.adaptive_clip(0.5), fs.aggregate.gaussian_noise(0.1), reduce=fs.aggregate.mean("uniform")
)
REMEMBERED = fs.aggregate.chain(fs.aggregate.error_feedback(fs.aggregate.top_k(0.5)))
ALGORITHMS = {
    "fedavg": lambda task: toys.fedavg(task, server_optimizer=fs.server.fedadam(0.1)),
    "scaffold": lambda task: fs.scaffold(task, 0.1),
    "two phases": toys.two_phase,
    "noise and a state": lambda task: toys.fedavg(task, aggregator=CLIPPED),
    "error feedback": lambda task: toys.fedavg(task, aggregator=REMEMBERED),
}


def simulation(algorithm, sampler=None, devices=1, lanes=2, **kwargs):
    execution = fs.Execution(lanes=lanes, devices=jax.devices()[:devices])
    sampler = fs.sampler.uniform(5) if sampler is None else sampler
    return fs.Simulation(algorithm, toys.federation(), sampler, fs.Batching(2, epochs=2), execution=execution, **kwargs)


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


# What a round is


@pytest.mark.parametrize("devices, lanes, static", [(1, 1, True), (2, 2, False)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_equals_step(name, devices, lanes, static):
    sim = simulation(ALGORITHMS[name](toys.task(noisy=True)), devices=devices, lanes=lanes, noise_seed=3)
    state, f = sim.init(), sim.round_function(static)
    programs: Any = f
    pure = sim.pure_state(state)
    for _ in range(ROUNDS):
        plan, arrays = sim.round_plan(state)
        state, metrics = sim.step(state)
        pure, numbers = f(pure, plan, arrays)
        close({name: metrics[name] for name in numbers}, numbers)
        close((state.server, state.aggregator, state.rows), (pure.server, pure.aggregator, pure.rows))
        assert pure.round == state.round
    assert programs._cache_size() == 1


def test_draws_are_keyed_by_the_states_round():
    sim = simulation(toys.fedavg(toys.task(noisy=True)))
    state = sim.init()
    plan, arrays = sim.round_plan(state)
    pure, f = sim.pure_state(state), sim.round_function()
    later = dataclasses.replace(plan, round=plan.round + 7)
    of = lambda start, plan: f(start, plan, arrays)[0].server.params["w"]
    np.testing.assert_array_equal(of(pure, plan), of(pure, later))
    assert np.abs(of(pure, plan) - of(dataclasses.replace(pure, round=pure.round + 7), plan)).max() > 1e-3


def test_cohorts_beyond_the_capacity():
    sampler = fs.sampler.poisson(0.2)
    small = sampler._replace(capacity=lambda num_clients: 1)
    sim = simulation(toys.fedavg(toys.task()), small)
    state = sim.init()
    while len(np.unique(sim.executor.pack(state, 1, 1).cohorts[0].ids)) < 3:
        state, _ = sim.step(state)
    plan, arrays = sim.round_plan(state)
    pure, numbers = sim.round_function()(sim.pure_state(state), plan, arrays)
    after, metrics = sim.step(state)
    close(after.server, pure.server)
    assert numbers["cohort/contributed"] == metrics["cohort/contributed"]


def test_clients_that_are_not_finite_are_told_of():
    sim = simulation(fs.fedavg(toys.task(), optax.sgd(1e30)), on_nonfinite="drop")
    plan, arrays = sim.round_plan(sim.init())
    after, numbers = sim.round_function()(sim.pure_state(sim.init()), plan, arrays)
    assert numbers["cohort/nonfinite"] > 0
    assert np.isfinite(after.server.params["w"]).all()


# Transformations


def test_rounds_under_scan():
    sim = simulation(fs.scaffold(toys.task(noisy=True), 0.1))
    plans, arrays = sim.round_plan(sim.init(), rounds=4)
    f = sim.round_function()
    run = jax.jit(lambda state: jax.lax.scan(lambda s, plan: f(s, plan, arrays), state, plans))
    pure, numbers = run(sim.pure_state(sim.init()))
    state, history = sim.run(sim.init(), rounds=4)
    close((state.server, state.rows), (pure.server, pure.rows))
    close(history["client/loss"], numbers["client/loss"])


@pytest.mark.parametrize("static", [False, True])
def test_seeds_under_vmap_are_a_loop(static):
    sim = simulation(toys.fedavg(toys.task(noisy=True)))
    (plan, arrays), first, f = sim.round_plan(sim.init()), sim.pure_state(sim.init()), sim.round_function(static)
    after = lambda seeds: f(dataclasses.replace(first, seeds=seeds), plan, arrays)
    seeds = jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)
    together, each = jax.vmap(after)(seeds), [after(s) for s in seeds]
    close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
    assert np.ptp(together[0].server.params["w"], axis=0).max() > 1e-3


# Derivatives


def evaluated(params):
    data = toys.federation()
    batch = {**jax.tree.map(jnp.asarray, data.arrays), "mask": jnp.ones(data.num_examples)}
    return jnp.mean(LOSSES(params, batch, KEY)[0])


def trained(sim, plans, arrays, params, rate, name):
    """The model after the planned rounds, of an algorithm that is built with these numbers."""
    task = toys.task()
    made = fs.fedavg(task, optax.sgd(rate)) if name == "fedavg" else fs.scaffold(task, rate)
    inner = simulation(made, devices=sim.parts.mesh.size, lanes=sim.lanes)
    first = sim.pure_state(sim.init())
    state = dataclasses.replace(first, server=first.server._replace(params=params))
    f = inner.round_function(static=True)
    state, _ = jax.lax.scan(lambda s, plan: f(s, plan, arrays), state, plans)
    return inner.params(state)


def by_hand(sim, params, rate, name):
    """The same rounds as Python loops over clients and steps, from the plans' batches."""
    data, state = toys.federation(), sim.init()
    gradient = jax.jit(jax.grad(lambda p, b: jnp.mean(LOSSES(p, b, KEY)[0])))
    zeros = jax.tree.map(jnp.zeros_like, params)
    control, rows = zeros, {}
    add = jax.jit(lambda a, b, scale: jax.tree.map(lambda x, y: x + scale * y, a, b))
    for plan in sim.executor.pack(state, ROUNDS, ROUNDS).rounds:
        sent = []
        for lane in np.argwhere(plan.lanes.steps > 0):
            at = tuple(lane)
            client, size, start = (int(leaf[at]) for leaf in (plan.lanes.client_id, plan.lanes.size, plan.lanes.start))
            row = rows.get(client, zeros)
            drift = add(control, row, -1.0) if name == "scaffold" else zeros
            model, steps = params, 0
            for epoch in range(2):
                for first in range(0, size, 2):
                    places = start + epoch * size + np.arange(first, min(first + 2, size))
                    batch = {k: v[plan.order[at[0], places]] for k, v in data.arrays.items()}
                    model, steps = add(model, add(gradient(model, batch), drift, 1.0), -rate), steps + 1
            moved = add(model, params, -1.0)
            new = add(jax.tree.map(jnp.negative, drift), moved, -1 / (steps * rate))
            sent.append((size if name == "fedavg" else 1.0, moved, add(new, row, -1.0)))
            rows[client] = new
        total = sum(weight for weight, _, _ in sent)
        for weight, moved, change in sent:
            params = add(params, moved, weight / total)
            control = add(control, change, 1 / toys.NUM_CLIENTS)
    return params


@pytest.mark.parametrize("name, devices, lanes", [("fedavg", 1, 1), ("scaffold", 2, 2)])
def test_derivatives_of_two_rounds(name, devices, lanes):
    made = toys.task()
    algorithm = fs.fedavg(made, optax.sgd(0.1)) if name == "fedavg" else fs.scaffold(made, 0.1)
    sim = simulation(algorithm, devices=devices, lanes=lanes)
    plans, arrays = sim.round_plan(sim.init(), rounds=ROUNDS)
    params, rate = sim.params(sim.init()), jnp.float32(0.1)

    loss = jax.jit(lambda p, r: evaluated(trained(sim, plans, arrays, p, r, name)))
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, rate)
    value_by_hand, by_hand_grads = jax.value_and_grad(lambda p, r: evaluated(by_hand(sim, p, r, name)), (0, 1))(
        params, rate
    )
    close(value, value_by_hand)
    close(grads, by_hand_grads, rtol=1e-5, atol=1e-5)

    step = 1e-2
    towards = jax.tree.map(lambda g: g / optax.tree.norm(grads[0]), grads[0])
    shifted = lambda by: jax.tree.map(lambda p, t: p + by * t, params, towards)
    slope = (loss(shifted(step), rate) - loss(shifted(-step), rate)) / (2 * step)
    np.testing.assert_allclose(slope, optax.tree.norm(grads[0]), rtol=1e-3)
    by_rate = lambda by: (loss(params, rate + by) - loss(params, rate - by)) / (2 * by)
    slope = (4 * by_rate(step / 2) - by_rate(step)) / 3  # Richardson's
    np.testing.assert_allclose(slope, grads[1], rtol=1e-3)


def test_derivative_by_a_server_state_entry():
    sim = simulation(ALGORITHMS["fedavg"](toys.task()))
    (plan, arrays), first = sim.round_plan(sim.init()), sim.pure_state(sim.init())
    f = sim.round_function(static=True)

    @jax.jit
    def loss(shift):
        optimizer = first.server.optimizer._replace(m=jax.tree.map(lambda m: m + shift, first.server.optimizer.m))
        state = dataclasses.replace(first, server=first.server._replace(optimizer=optimizer))
        return evaluated(f(state, plan, arrays)[0].server.params)

    slope = (loss(0.01) - loss(-0.01)) / 0.02
    np.testing.assert_allclose(jax.grad(loss)(0.0), slope, rtol=1e-3)


def test_without_static_there_is_no_reverse_mode():
    sim = simulation(toys.fedavg(toys.task()))
    (plan, arrays), first = sim.round_plan(sim.init()), sim.pure_state(sim.init())

    def loss(params):
        state = dataclasses.replace(first, server=first.server._replace(params=params))
        return evaluated(sim.round_function()(state, plan, arrays)[0].server.params)

    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(loss)(first.server.params)


# Refusals


@pytest.mark.parametrize("execution", [fs.Execution(residency="stream"), fs.Execution(rows="host")])
def test_rounds_that_need_the_host_are_refused(execution):
    sim = fs.Simulation(
        fs.scaffold(toys.task(), 0.1), toys.federation(), fs.sampler.uniform(5), fs.Batching(2), execution=execution
    )
    for refused in (sim.round_function, lambda: sim.round_plan(sim.init())):
        with pytest.raises(fs.FedSimError, match='="device"'):
            refused()


def test_static_sums_in_fixed_point_are_refused():
    with pytest.raises(fs.FedSimError, match="exact=True"):
        simulation(toys.fedavg(toys.task()), exact=True).round_function(static=True)
