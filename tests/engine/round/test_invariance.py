"""A round depends on (seed, round, cohort) alone: not on lanes, devices, order, padding, neighbours or blocks."""

import dataclasses

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from tests.engine import toys

COHORTS = ((6, 2, 4, 0, 9, 3), (1, 5, 10, 7, 2, 8), (11, 6, 0, 3, 5, 4), (2, 8, 9, 10, 1, 7))
BATCHING = fs.Batching(3, epochs=2)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def simulation(algorithm, lanes=1, devices=1, sampler=None, **kwargs):
    return fs.Simulation(
        toys.watched(toys.ALGORITHMS[algorithm](toys.task(noisy=True))),
        toys.federation(),
        sampler or toys.script(COHORTS),
        BATCHING,
        seed=3,
        **toys.executed(lanes=lanes, devices=jax.devices()[:devices], **kwargs),
    )


def outcome(sim, state=None, rounds=4):
    """The device state after some rounds, and every round's per-client metrics."""
    state, history = sim.run(sim.init() if state is None else state, rounds)
    return toys.on_device(state), [toys.by_client(metrics) for metrics in history.rounds]


def assert_same(a, b, exact):
    """Equal states and per-client metrics: bit for bit, or within tolerance."""
    same = np.testing.assert_array_equal if exact else np.testing.assert_allclose
    kwargs = {} if exact else TOLERANCE
    (state_a, metrics_a), (state_b, metrics_b) = a, b
    for name in state_a:
        same(state_b[name], state_a[name], err_msg=name, **kwargs)
    for r, (clients_a, clients_b) in enumerate(zip(metrics_a, metrics_b, strict=True)):
        assert clients_a.keys() == clients_b.keys()
        for k, values in clients_a.items():
            for name in values:
                what = f"round {r}, client {k}, {name}"
                same(clients_b[k][name], values[name], err_msg=what, **kwargs)


@pytest.fixture(scope="module", params=toys.ALGORITHMS)
def alone(request):
    """An algorithm, its simulation on one device with one lane, and its outcome."""
    sim = simulation(request.param)
    return request.param, sim, outcome(sim)


@pytest.fixture(scope="module", params=toys.ALGORITHMS)
def wide(request):
    """An algorithm and its simulation on two devices with two lanes each; one compilation for many tests."""
    return request.param, simulation(request.param, lanes=2, devices=2)


@pytest.mark.parametrize("lanes, devices", [(3, 1), (6, 1), (4, 2), (1, 8)], ids=str)
def test_lanes_and_devices(alone, lanes, devices):
    algorithm, _, expected = alone
    assert np.isfinite(expected[0]["server"]).all()
    assert_same(expected, outcome(simulation(algorithm, lanes, devices)), exact=False)


def test_order_of_the_cohort(wide):
    _, sim = wide
    draw = np.random.default_rng(0)
    permuted = tuple(tuple(draw.permutation(row).tolist()) for row in COHORTS)
    assert permuted != COHORTS
    expected = outcome(sim)
    assert_same(expected, outcome(sim, toys.with_cohorts(sim.init(), permuted)), exact=True)


def test_empty_places(wide):
    algorithm, sim = wide
    few = tuple(row[:3] for row in COHORTS)
    spread = tuple((None, a, None, b, c, None) for a, b, c in few)
    expected = outcome(sim, toys.with_cohorts(sim.init(), few))
    assert_same(expected, outcome(sim, toys.with_cohorts(sim.init(), spread)), exact=True)
    wider = simulation(algorithm, lanes=2, devices=2, sampler=toys.script(spread, capacity=11))
    assert_same(expected, outcome(wider), exact=False)


def test_neighbours(wide):
    """A client's metrics, payload and row are its own, whoever else takes part."""
    _, sim = wide
    shared = {"client/payload0", "client/size", "client/loss"}
    start = sim.init()
    results = []
    for cohort in ((4, 0, 2, 9), (6, 4, 8, 10, 11, 3), (4,)):
        state, metrics = sim.step(toys.with_cohorts(start, (cohort,)))
        mine = toys.by_client(metrics)[4]
        if "client/payload1" in mine:  # the second phase starts from what the whole cohort made of the first
            mine = {name: mine[name] for name in ("client/payload0", "client/start_loss")}
        else:
            assert shared <= mine.keys()
        rows = jax.tree.map(lambda table: np.asarray(table[4]), state.rows)
        results.append({**mine, "row": toys.flat(rows)})
    for other in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_allclose(other[name], value, **TOLERANCE, err_msg=name)


def test_randomness_is_of_seed_round_and_client(alone):
    """Clients 3 and 5 hold the same single example: only the noise of their keys can tell them apart."""
    _, sim, _ = alone
    start = toys.with_cohorts(sim.init(), ((3, 5),))

    def payloads(**changes):
        _, metrics = sim.step(dataclasses.replace(start, **changes))
        return {k: v["client/payload0"] for k, v in toys.by_client(metrics).items()}

    first = payloads()
    np.testing.assert_array_equal(payloads()[3], first[3])
    # A few steps of coarse dropout may agree by chance: compare several rounds.
    rounds = [payloads(round=r) for r in range(4)]
    seeds = [payloads(seed=s) for s in range(4)]
    assert any((r[3] != r[5]).any() for r in rounds)
    assert any((r[3] != first[3]).any() for r in rounds[1:])
    assert any((s[3] != seeds[0][3]).any() for s in seeds[1:])


def test_blocks_of_rounds(alone):
    """Four rounds a dispatch, the last of three, are the very same rounds."""
    algorithm, sim, _ = alone
    blocks = simulation(algorithm, rounds_per_dispatch=4)
    assert_same(outcome(sim, rounds=7), outcome(blocks, rounds=7), exact=True)


def test_run_is_steps_and_continues(alone):
    _, sim, _ = alone
    expected, metrics = outcome(sim, rounds=10)
    state, first = sim.run(sim.init(), 5)
    state, second = sim.run(state, 5)
    assert state.round == 10
    assert [m.round for m in first.rounds + second.rounds] == list(range(10))
    seen = [toys.by_client(m) for m in first.rounds + second.rounds]
    assert_same((expected, metrics), (toys.on_device(state), seen), exact=True)
    state = sim.init()
    for _ in range(10):
        state, _ = sim.step(state)
    assert_same((expected, []), (toys.on_device(state), []), exact=True)


@pytest.mark.parametrize("on_nonfinite", ["raise", "drop"])
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_given_states_stay_usable(algorithm, on_nonfinite):
    sim = simulation(algorithm, lanes=2, devices=2, on_nonfinite=on_nonfinite)
    start = sim.init()
    kept = toys.on_device(start)
    after_step, _ = sim.step(start)
    after_run, _ = sim.run(start, 3)
    middle = toys.on_device(after_step)
    end, _ = sim.run(after_step, 2)
    assert_same((kept, []), (toys.on_device(start), []), exact=True)
    assert_same((middle, []), (toys.on_device(after_step), []), exact=True)
    assert_same((toys.on_device(after_run), []), (toys.on_device(end), []), exact=True)


@pytest.mark.parametrize("on_nonfinite", ["raise", "drop"])
def test_params_given_to_evaluate_stay_usable(on_nonfinite):
    """Keeping the best model is what many `evaluate` functions do."""
    sim = simulation("scaffold", on_nonfinite=on_nonfinite)
    kept = []
    sim.run(sim.init(), 3, evaluate=lambda params: kept.append(params) or {}, eval_every=1)
    values = [toys.flat(params) for params in kept]
    assert len(values) == 3
    assert (values[0] != values[1]).any()


def test_a_state_that_holds_an_array_twice():
    """A server state, and a row, may name the same array twice where rounds are donated their state."""

    def client(key, server, row, batches):
        moved = jax.tree.map(lambda leaf: leaf + 1, row["a"])
        return fs.ClientUpdate(server["x"], state={"a": moved, "b": moved})

    algorithm = fs.Algorithm(
        toys.task(),
        lambda params: ({"x": params, "y": params}, {"a": params, "b": params}),
        client,
        lambda key, server, aggregate: {"x": aggregate.value, "y": aggregate.value},
    )
    sampler = fs.sampler.fixed([[0, 2, 4]] * 3)
    devices = jax.devices()[:2]
    sim = fs.Simulation(
        algorithm, toys.federation(), sampler, BATCHING, on_nonfinite="drop", execution=fs.Execution(devices=devices)
    )
    start = sim.init()
    state, _ = sim.run(start, 3)
    for name in ("x", "y"):
        np.testing.assert_allclose(toys.flat(state.server[name]), toys.flat(start.server["x"]), **TOLERANCE)
    for name in ("a", "b"):
        moved = toys.flat(jax.tree.map(lambda table: table[2], state.rows.client[name]))
        np.testing.assert_allclose(moved, toys.flat(start.server["x"]) + 3, **TOLERANCE)
