"""One suite of laws that every algorithm passes in the engine."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from tests.algorithms.problems import BATCHING, SIZES, START, least_squares
from tests.conformance.methods import EQUAL, METHODS, NO_COLLECTIONS, NO_METHODS, OTHER_MEANS
from tests.engine import toys

K = len(SIZES)
COHORTS = [[0, 2, 4], [1, 2, 3], [], [5, 0], [3], [4, 1, 5, 2]]
EMPTY = SIZES.index(0)
STEPS = {k: 2 * -(-SIZES[k] // BATCHING.batch_size) for k in COHORTS[0]}  # of the first round
IDLE = (2, 4)  # rounds without anybody, and with nobody but the client without examples


def test_every_algorithm_is_listed():
    made = {name for name, value in vars(fs.algorithms).items() if inspect.isfunction(value)}
    missing = made - NO_METHODS - {name.split(",")[0] for name in METHODS}
    assert not missing, f"no laws for {missing}: add a line to tests/conformance/methods.py"


def counting(traces):
    """The least squares with a frozen constant, and with a collection that counts steps, where one may be."""
    task, data, _ = least_squares()

    def loss(params, batch, key, *, frozen):
        traces.append(1)
        value = frozen["scale"] * task.loss(params, batch, key)
        if "stats" not in params:
            return value
        return fs.Loss(value, variables={"stats": {"steps": params["stats"]["steps"] + 1}})

    return task._replace(loss=loss, frozen={"scale": jnp.float32(1.1)}), data


def first_model(name):
    return START if name in NO_COLLECTIONS else {**START, "stats": {"steps": np.float32(0)}}


def simulation(name, cohorts, lanes, devices, traces=None):
    task, data = counting([] if traces is None else traces)
    first = first_model(name)
    task = task._replace(init=lambda key: jax.tree.map(jnp.zeros_like, first))
    task = task._replace(collections=tuple(set(first) - set(START)))
    options = toys.executed(lanes=lanes, devices=jax.devices()[:devices])
    return fs.Simulation(METHODS[name](task), data, fs.sampler.fixed(cohorts), BATCHING, **options)


def states_of(sim, first):
    state, found = sim.init(first), []
    found.append(seen(state))
    for _ in COHORTS:
        state, _ = sim.step(state)
        found.append(seen(state))
    return found, state


def seen(state):
    return jax.device_get((state.server, jax.tree.map(lambda table: table[:K], state.rows)))


@pytest.mark.parametrize("name", METHODS)
def test_padding_order_lanes_devices_and_clients_without_examples_change_nothing(name, tmp_path):
    """One trace for all cohorts; a resumed run ends in the same bits; nobody's round leaves all as it was."""
    traces, first = [], first_model(name)
    sim = simulation(name, COHORTS, 1, 1, traces)
    before = len(traces)
    found, state = states_of(sim, first)
    assert sim.compile_count() == 1
    traced = len(traces) - before
    sim.run(sim.init(first), rounds=len(COHORTS))
    assert len(traces) - before == traced, "traced again for the same shapes"

    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found[0])
    for each in found[1:]:
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each) == like
        for leaf in jax.tree.leaves(each):
            assert np.isfinite(leaf).all()
        jax.tree.map(lambda new, old: np.testing.assert_array_equal(new[EMPTY], old[EMPTY]), each[1], found[0][1])
    for r in IDLE:
        jax.tree.map(np.testing.assert_array_equal, found[r + 1], found[r])
    assert jnp.abs(sim.params(state)["w"] - START["w"]).max() > 1e-3
    if name not in NO_COLLECTIONS | OTHER_MEANS:  # averaged plainly, as the clients weigh
        weights = [1 if name in EQUAL else SIZES[k] for k in STEPS]
        steps = sim.parts.algorithm.params(found[1][0])["stats"]["steps"]
        assert steps == pytest.approx(np.average([*STEPS.values()], weights=weights))

    middle, _ = sim.run(sim.init(first), rounds=3)
    sim.save(tmp_path, middle)
    resumed, _ = sim.run(sim.restore(tmp_path), rounds=len(COHORTS) - 3)
    jax.tree.map(np.testing.assert_array_equal, seen(resumed), seen(state))

    # The other way round, with the client without examples in all cohorts.
    other = simulation(name, [[*row[::-1], *([] if EMPTY in row else [EMPTY])] for row in COHORTS], 3, 2)
    for a, b in zip(states_of(other, first)[0], found, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-5, atol=5e-6), a, b)
