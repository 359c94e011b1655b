"""Payloads at the edge, through every transform and every reducer: each is right, or an error names what it is not."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from tests.aggregate import robust_twins as twins
from tests.conformance.listing import CASES, NO_REDUCERS, NO_TRANSFORMS, REDUCERS
from tests.engine import toys

A = fs.aggregate
PAYLOADS = {
    "no leaves": {},
    "only empty leaves": {"e": (0,), "f": (0, 2)},
    "an empty leaf among others": {"w": (3, 3), "e": (4, 0, 3)},
    "vectors": {"a": (5,), "b": (2,)},
    "a number": (),
    "leaves of one number": {"a": (), "b": (1,)},
    "a matrix of one number": {"a": (1, 1)},
}
BANDED = r"banded_noise.*the payload \{\} has no leaf"


def tree(shapes, make):
    return jax.tree.map(make, shapes, is_leaf=lambda shape: isinstance(shape, tuple))


def chain(name, shapes):
    if name == "on":
        clips = [A.on(part, A.clip_by_l2(1.0)) for part in shapes] if isinstance(shapes, dict) else [A.clip_by_l2(1.0)]
        return A.chain(*(clips or [A.clip_by_l2(1.0)]), A.gaussian_noise(0.1), reduce=A.mean("uniform"))
    return A.chain(*CASES[name].transforms(), reduce=A.mean("uniform"))


def passed(aggregator, states, rows, payload):
    """A payload of one client through both sides: `(value, what else is made)`."""
    one, key, client = jnp.float32(1), jax.random.key(5), jnp.int32(3)
    context = A.Context(client, jnp.int32(4), key, jnp.float32(jnp.inf), client, one, 4.0)
    encoded = aggregator.encode(jax.random.key(1), states, rows, payload, context)
    message = aggregator.receive(key, states, encoded.message)
    if not aggregator.facts.weighted:
        message = jax.tree.map(lambda m: m.astype(jnp.promote_types(m.dtype, jnp.float32)), message)
    bound, step = aggregator.bound_and_step(states, payload)
    total = fs.Aggregate(message, one, one, bound=bound, step=step, sums=encoded.sums, round_key=key)
    out, after, metrics = aggregator.server(jax.random.key(6), states, total, 4.0)
    return out.value, (after, encoded.rows, {**encoded.metrics, **metrics})


@pytest.mark.parametrize("name", CASES)
def test_every_payload_comes_back_in_its_shapes_or_is_refused(name):
    for shapes in PAYLOADS.values():
        payload = tree(shapes, lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32))
        aggregator = chain(name, shapes)
        if name == "banded_noise" and shapes == {}:
            with pytest.raises(fs.FedSimError, match=BANDED):
                jax.eval_shape(aggregator.init, payload)
            continue
        states, rows = jax.eval_shape(aggregator.init, payload)
        value, (after, kept, _) = jax.eval_shape(
            lambda *given, of=aggregator: passed(of, *given), states, rows, payload
        )
        assert jax.tree.map(jnp.shape, value) == jax.tree.map(jnp.shape, payload)
        assert jax.tree.structure((after, kept)) == jax.tree.structure((states, rows))


@pytest.mark.parametrize("name", CASES)
def test_no_numbers_make_no_number_that_is_not_finite(name):
    """Of means over no numbers, norms and scales of nothing: states, rows and metrics."""
    payload = tree(PAYLOADS["only empty leaves"], jnp.zeros)
    aggregator = chain(name, payload)
    made = jax.jit(lambda payload: passed(aggregator, *aggregator.init(payload), payload))(payload)[1]
    values = [metric.compute() for metric in made[2].values()]
    for leaf in jax.tree.leaves((made[:2], values)):
        assert np.isfinite(leaf).all()


def test_every_reducer_is_listed():
    made = [make() for make in REDUCERS.values()]
    for name in NO_TRANSFORMS - NO_REDUCERS:
        assert inspect.isfunction(getattr(A, name))
        assert any(reducer.name.startswith(name) for reducer in made)


MIXED = {"w": (2, 2), "e": (0,), "f": (3, 0, 2), "s": (), "o": (1,)}
SCALES = np.array([1.0, -2.0, 5.0, 0.5, 8.0], np.float32)  # of the clients, of sizes 1, 2, 3, 1, 2
SIZES = np.array([1, 2, 3, 1, 2])
ROWS = np.tile(SCALES[:, None].astype(np.float64), 6)  # of the numbers in MIXED
RIGHT = {
    "mean": np.average(SCALES, weights=SIZES),
    "mean of equals": SCALES.mean(),
    "median": np.median(SCALES),
    "trimmed_mean": (0.5 + 1 + 5) / 3,
    "krum": 0.5,
    "multi_krum": (1 - 2 + 5 + 0.5) / 4,
    "bulyan": SCALES.mean(),
    "geometric_median": twins.geometric_median(ROWS)[0],
    "centered_clipping": twins.centered_clipping(ROWS, 1.0)[0],
    "norm_bound": twins.norm_bound(ROWS, "median")[0],
    "dnc": (1 - 2 + 5 + 0.5) / 4,
    "fltrust": 2.0,  # all that point its way, scaled to its length
    "bucketing": (0.5 + 1 + 5) / 3,
    "nnm": np.median(twins.nnm_mixed(ROWS, 1), axis=0)[0],
}


def reduced(reducer, shapes, **options):
    """What a round makes of payloads that are full of each client's scale, in the server's state."""
    like = lambda key: tree(shapes, jnp.zeros)

    def client(key, server, row, batches):
        scale = batches.batch(0)["x"][0]
        return fs.ClientUpdate(jax.tree.map(lambda p: jnp.full(p.shape, scale), server), batches.num_examples)

    server = lambda key, server, aggregate: jax.tree.map(jnp.add, server, aggregate.value)
    task = fs.Task(like, lambda params, batch, key: batch["x"])
    algorithm = fs.Algorithm(task, lambda params: (params, None), client, server, aggregator=reducer)
    data = fs.FederatedData({"x": np.repeat(SCALES, SIZES)}, np.concatenate([[0], np.cumsum(SIZES)]))
    sim = fs.Simulation(algorithm, data, fs.sampler.uniform(5), fs.Batching(3), **toys.executed(**options))
    return sim.step(sim.init())[0].server


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", REDUCERS)
def test_every_reducer_reduces_leaves_of_any_size(name, exact):
    value = reduced(REDUCERS[name](), MIXED, exact=exact)
    assert jax.tree.map(jnp.shape, value) == MIXED
    for leaf in jax.tree.leaves(value):
        np.testing.assert_allclose(leaf, np.full(leaf.shape, RIGHT[name]), rtol=1e-5)


@pytest.mark.parametrize("shapes", [{}, ()], ids=["no leaves", "a number"])
def test_reducers_of_less_than_a_vector(shapes):
    for name in ("median", "trimmed_mean", "krum", "geometric_median", "centered_clipping", "dnc", "nnm"):
        value = reduced(REDUCERS[name](), shapes)
        assert value == shapes if shapes == {} else np.isfinite(value), name
        assert name != "median" or shapes == {} or float(value) == 1.0
