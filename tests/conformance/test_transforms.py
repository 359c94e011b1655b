"""One suite of laws that every transform passes, alone and in the engine, and every reducer that collects."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from tests.conformance.listing import CASES, COLLECTING, NO_TRANSFORMS, REDUCERS, Case
from tests.engine import toys

K = 11
SIZES = np.array([2, 1, 3, 0, 1, 2, 1, 4, 1, 2, 1])
COHORTS = [[0, 1, 2, 5], [3, 4], [9, 2, 10, 8, 7], [], [6, 0, 3, 1, 2]]
ROOM = [0, 1, 2, 3, 4, 5, 7, 8]  # makes a program that has room for so many
SHAPES = {"w": (3, 3), "b": (), "empty": (0,)}  # one with one element, one with none


def test_every_transform_is_listed():
    made = {name for name, value in vars(fs.aggregate).items() if inspect.isfunction(value)}
    missing = made - NO_TRANSFORMS - set(CASES)
    assert not missing, f"no laws for {missing}: add a line to tests/conformance/listing.py"


def case_of(name):
    return CASES.get(name, Case(lambda: ()))


def aggregator_of(name):
    if name in REDUCERS:
        return fs.aggregate.chain(reduce=REDUCERS[name]())
    return fs.aggregate.chain(*CASES[name].transforms(), reduce=fs.aggregate.mean("uniform"))


def payload(kind, dtype=jnp.float32):
    draw = np.random.default_rng(0)
    scale = {"zero": 0.0, "small": 0.1, "large": 1e4}[kind]
    return {name: jnp.asarray(scale * draw.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def listed(name, tree):
    """What a chain takes: only `on` wants no part beside its two."""
    return {"w": tree["w"], "b": tree["b"]} if name == "on" else tree


def passed(aggregator, states, rows):
    """Encode, receive and decode what one client of a ring of one sends, compiled."""

    @jax.jit
    def run(key, client, tree):
        context = fs.aggregate.Context(client, jnp.int32(4), jax.random.key(5), jnp.float32(jnp.inf))
        context = context._replace(neighbour=client, weight=jnp.float32(1), expected=4.0)
        encoded = aggregator.encode(key, states, rows, tree, context)
        message = aggregator.receive(key, states, encoded.message)
        if not aggregator.facts.weighted:
            message = jax.tree.map(lambda m: m.astype(jnp.promote_types(m.dtype, jnp.float32)), message)
        one, (bound, step) = jnp.float32(1), aggregator.bound_and_step(states, tree)
        known = {"bound": bound, "step": step, "sums": encoded.sums, "round_key": jax.random.key(5)}
        total = fs.Aggregate(message, one, one, **known)
        return encoded, bound, aggregator.server(jax.random.key(6), states, total, 4.0)

    return run


@pytest.mark.parametrize("name", CASES)
def test_a_chain_gives_back_the_payloads_shapes_and_stays_finite(name):
    """All-zero, small and huge payloads; leaves of one element and of none; and zero sends zero but for noise."""
    aggregator = aggregator_of(name)
    tree = listed(name, payload("small"))
    states, rows = jax.jit(aggregator.init)(tree)
    assert jax.tree.structure(jax.eval_shape(lambda: aggregator.init(tree))) == jax.tree.structure((states, rows))
    run = passed(aggregator, states, rows)
    messages = []
    for kind in ("zero", "small", "large"):
        encoded, bound, (out, after, metrics) = run(jax.random.key(1), jnp.int32(3), listed(name, payload(kind)))
        assert jax.tree.map(jnp.shape, out.value) == jax.tree.map(jnp.shape, tree)
        assert jax.tree.structure(after) == jax.tree.structure(states)
        for leaf in jax.tree.leaves((out.value, after, encoded.rows)):
            assert np.isfinite(leaf).all()
        assert float(encoded.metrics["uplink_bits"].total) > 0
        assert jax.tree.structure(encoded.rows) == jax.tree.structure(rows)
        for metric in {**encoded.metrics, **metrics}.values():
            assert np.isfinite(metric.compute()).all()
        if np.isfinite(bound) and kind == "large" and not aggregator.facts.noisy:
            norm = np.sqrt(sum(np.sum(np.square(4.0 * leaf)) for leaf in jax.tree.leaves(out.value)))
            assert norm <= 4 * float(bound) * 1.0001
        messages.append(jax.device_get(encoded.message))
    again = jax.device_get(run(jax.random.key(1), jnp.int32(3), listed(name, payload("large")))[0].message)
    jax.tree.map(np.testing.assert_array_equal, messages[-1], again)  # the key decides, and nothing else


# In the engine


def simulation(name, cohorts, lanes, devices, poison=(), empty=(), traces=None):
    """Clients whose payload depends on the client and on the model; poisoned ones send NaN and infinity."""

    def init(key):
        return listed(name, {n: jnp.full(shape, 0.1, jnp.float32) for n, shape in SHAPES.items()})

    def client(key, server, row, batches):
        if traces is not None:
            traces.append(1)
        size = batches.batch(0)["u"][0]
        # Numbers without symmetries: a rotation of equal ones has zeros, whose signs rounding decides.
        uneven = lambda p: jnp.linspace(0.71, 1.37, p.size).reshape(p.shape)
        move = jax.tree.map(lambda p: 0.3 * size * uneven(p) - 0.5 * p, server)
        return fs.ClientUpdate(move, batches.num_examples)

    task = fs.Task(init, lambda params, batch, key: batch["u"])
    algorithm = fs.Algorithm(
        task,
        init=lambda params: (params, None),
        client=client,
        server=lambda key, server, aggregate: jax.tree.map(jnp.add, server, aggregate.value),
        aggregator=aggregator_of(name),
    )
    # Reducers choose clients: equal distances would leave the choice to rounding.
    sizes = np.arange(1, K + 1, dtype=np.float32) ** (1.3 if name in REDUCERS else 1)
    for i, k in enumerate(poison):
        sizes[k] = (np.nan, np.inf)[i % 2]
    held = np.where(np.isin(np.arange(K), empty), 0, SIZES)
    data = fs.FederatedData({"u": np.repeat(sizes, held)}, np.concatenate([[0], np.cumsum(held)]))
    sampler = fs.sampler.fixed(cohorts)._replace(event=case_of(name).event, expected=lambda n: 4.0)
    sampler = sampler._replace(sample=lambda *at: fs.sampler.fixed(cohorts).sample(*at))  # they may change later
    options = {"lanes": lanes, "devices": jax.devices()[:devices], "on_nonfinite": "drop"}
    return fs.Simulation(algorithm, data, sampler, fs.Batching(4), **toys.executed(**options))


def states_of(sim):
    state, found = sim.init(), []
    for _ in COHORTS:
        state, _ = sim.step(state)
        found.append(jax.device_get((state.server, state.aggregator, trimmed(state.rows))))
    return found, state


def trimmed(rows):
    return jax.tree.map(lambda table: table[:K], rows)


def same(name, a, b):
    def close(x, y):
        if case_of(name).exact:
            np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)

    jax.tree.map(close, a, b)


@pytest.mark.parametrize("name", [*CASES, *COLLECTING])
def test_padding_order_lanes_devices_and_lost_clients_change_nothing(name, tmp_path):
    """One trace for all cohorts; a resumed run ends in the same bits.

    NaN and infinity are as if not drawn; where clients add noise, as if without examples: their noise is sent.
    """
    traces = []
    given = [*COHORTS]
    reference = simulation(name, given, 1, 1, traces=traces)
    before = len(traces)
    found, state = states_of(reference)
    assert reference.compile_count() == 1
    assert len(traces) - before <= 4  # once, and once for the shapes of what the program keeps

    middle, _ = reference.run(reference.init(), rounds=2)
    reference.save(tmp_path, middle)
    resumed, _ = reference.run(reference.restore(tmp_path), rounds=len(COHORTS) - 2)
    whole = lambda s: jax.device_get((s.server, s.aggregator, trimmed(s.rows)))
    jax.tree.map(np.testing.assert_array_equal, whole(resumed), whole(state))

    lost = (6, 10)
    shuffled = [[*row[::-1]] for row in COHORTS]
    other, _ = states_of(simulation(name, [*shuffled, ROOM], 3, 2, poison=lost))
    if any(m.where != "central" for m in reference.algorithm.aggregator.facts.noise):
        expected, _ = states_of(simulation(name, COHORTS, 1, 1, empty=lost))
    else:
        without = [[k for k in row if k not in lost] for row in COHORTS]
        given[:] = without
        expected, _ = states_of(reference)
        assert reference.compile_count() == 1
    rows = lambda made: [(s, a, jax.tree.map(lambda t: np.delete(t, lost, 0), r)) for s, a, r in made]
    for a, b in zip(rows(other), rows(expected), strict=True):
        same(name, a, b)
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
