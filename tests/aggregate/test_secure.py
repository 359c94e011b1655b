"""The simulated secure sum: equal to the integers' own sum bit for bit, and uniform to look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.aggregate import chain, mean, secure_sum
from tests.engine import toys

K = 12
SIZES = np.array([2, 1, 4, 3, 1, 2, 0, 5, 1, 1, 3, 2])  # client 6 has nothing


def integers(largest):
    """A quantiser for payloads that are whole already."""
    return fs.aggregate.Transform(
        "whole",
        client=lambda key, state, row, payload, context: (payload.astype(jnp.int32), row, {}),
        server=lambda key, state, aggregate: (aggregate, state, {}),
        facts=lambda facts: facts._replace(integers=True, largest=float(largest)),
    )


def uploads(values, bits=32, seed=0, weights=None):
    """[C, D] what each of a ring of clients sends, and the server's sum of it."""
    aggregator = chain(integers(1), secure_sum(bits, max_weight=4), reduce=mean("uniform"))
    count = len(values)
    ids = np.random.default_rng(1).permutation(10 * count)[:count]
    order = np.argsort(ids)
    following = np.empty(count, int)
    following[order] = np.roll(ids[order], -1)
    weights = np.ones(count) if weights is None else weights

    @jax.jit
    @jax.vmap
    def send(k, neighbour, value, weight):
        start = fs.aggregate.Context(
            k, jnp.int32(0), jax.random.key(seed), jnp.float32(jnp.inf), neighbour=neighbour, weight=weight
        )
        return aggregator.encode(jax.random.key(7), (None, None), None, value, start).message

    sent = send(jnp.asarray(ids), jnp.asarray(following), jnp.asarray(values, jnp.float32), jnp.float32(weights))
    total = fs.Aggregate(jnp.sum(sent, 0, dtype=jnp.uint32), jnp.float32(count), jnp.float32(count))
    centre = aggregator.transforms[1].server(jax.random.key(0), None, total)[0].value
    return np.asarray(sent), np.asarray(centre)


@pytest.mark.parametrize("bits, clients", [(32, 1024), (20, 1024), (8, 3), (32, 1)])
def test_the_sum_is_the_integers_own_at_the_ranges_edge(bits, clients):
    most = (2 ** (bits - 1) - 1) // clients
    most = min(most, 2**24)  # float32 payloads are whole up to there
    draw = np.random.default_rng(0)
    values = draw.integers(-most, most + 1, (clients, 33))
    values[:, 0], values[:, 1] = most, -most
    sent, total = uploads(values, bits)
    np.testing.assert_array_equal(total, values.sum(0))
    assert total.dtype == np.int32
    assert sent.max() < 2**bits


def test_past_the_edge_it_wraps():
    """What the build's check is for."""
    _, total = uploads(np.full((4, 1), 2**6), bits=8)
    assert total[0] != 2**8


def test_an_upload_is_uniform_and_another_under_a_new_seed():
    sent, _ = uploads(np.zeros((3, 60_000)))
    other, _ = uploads(np.zeros((3, 60_000)), seed=1)
    for upload in sent:
        for shift in (0, 24):  # the lowest and the highest byte
            counts = np.bincount((upload >> shift) & 255, minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-4
    assert (sent != other).mean() > 0.99
    assert abs(np.corrcoef(sent[0], sent[1])[0, 1]) < 0.02
    plain = np.bincount(np.zeros(60_000, int), minlength=256)
    assert stats.chisquare(plain).pvalue < 1e-9  # the bare payload would not pass


def test_weights_multiply_before_the_masks_and_a_dropped_client_sends_its_mask_alone():
    values = np.random.default_rng(0).integers(-50, 50, (5, 9))
    weights = np.array([1, 0, 3, 2, 0])
    sent, total = uploads(values, weights=weights)
    np.testing.assert_array_equal(total, (weights[:, None] * values).sum(0))
    assert len(np.unique(sent[1])) == 9


# In the engine


def simulation(values, aggregator, cohorts, sampler=None, **options):
    """Clients that send given numbers, `x` a leaf of 3; a cohort's value is what the aggregator made of it."""
    task = fs.Task(lambda key: jnp.zeros(3), lambda params, batch, key: batch["u"][:, 0])
    algorithm = fs.Algorithm(
        task,
        init=lambda params: (params, None),
        client=lambda key, server, row, batches: fs.ClientUpdate(batches.batch(0)["u"][0], batches.num_examples),
        server=lambda key, server, aggregate: aggregate.value,
        aggregator=aggregator,
    )
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    data = fs.FederatedData({"u": np.repeat(values, SIZES, axis=0).astype(np.float32)}, offsets)
    sampler = fs.sampler.fixed(cohorts) if sampler is None else sampler
    return fs.Simulation(algorithm, data, sampler, fs.Batching(4), on_nonfinite="drop", **toys.executed(**options))


COHORTS = [[0, 2, 6, 5, 9, 11, 3], [7, 3, 4], [6], [8], [10, 7, 6, 1, 0, 2, 3, 4]]


@pytest.mark.parametrize("weight", ["uniform", "examples"])
def test_in_the_engine_lanes_devices_and_order_change_nothing(weight):
    """Clients without examples, and one whose update is NaN, leave the others' sum as it is."""
    values = np.random.default_rng(2).integers(-1000, 1000, (K, 3)).astype(np.float64)
    values[3] = np.nan
    masked = chain(integers(1000), secure_sum(max_weight=4 if weight == "examples" else 1), reduce=mean(weight))
    plain = chain(integers(1000), reduce=mean(weight))
    made = []
    for aggregator, cohorts, lanes, devices in (
        (masked, COHORTS, 1, 1),
        (masked, [row[::-1] for row in COHORTS], 3, 2),
        (plain, COHORTS, 2, 2),
    ):
        sim = simulation(values, aggregator, cohorts, lanes=lanes, devices=jax.devices()[:devices])
        state, seen = sim.init(), []
        for _ in cohorts:
            state, metrics = sim.step(state)
            seen.append((np.asarray(state.server), metrics["cohort/weight"]))
        made.append(seen)
        assert sim.compile_count() == 1
    for cohort, a, b, c in zip(COHORTS, *made, strict=True):
        members = [k for k in cohort if k not in (3, 6)]
        np.testing.assert_array_equal(a[0], b[0])
        if weight == "uniform":
            np.testing.assert_array_equal(a[0], c[0])
        if members:
            w = np.minimum(SIZES[members], 4) if weight == "examples" else np.ones(len(members))
            assert a[1] == w.sum()
            np.testing.assert_allclose(a[0], np.average(values[members], axis=0, weights=w), rtol=1e-6)


def test_bits_are_counted_for_every_client_that_sends():
    sim = simulation(np.ones((K, 3)), chain(integers(1), secure_sum(20), reduce=mean("uniform")), [[0, 1, 6]])
    _, metrics = sim.step(sim.init())
    assert metrics["aggregate/uplink_bits"] == 2 * 3 * 20
    assert metrics["aggregate/downlink_bits"] == 0  # the clients read nothing of the server's state
    np.testing.assert_array_equal(metrics.clients("aggregate/uplink_bits"), [60, 60, 0])


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: chain(secure_sum(), reduce=mean("uniform")), "gets floats"),
        (lambda: chain(integers(1), secure_sum(), secure_sum(), reduce=mean("uniform")), "another secure sum"),
        (lambda: chain(integers(1), secure_sum(), fs.aggregate.median().name), "must be a fs.aggregate.Transform"),
        (lambda: chain(integers(1), secure_sum(), reduce=fs.aggregate.median()), "median needs each"),
        (lambda: chain(integers(1), secure_sum()), "max_weight"),
        (
            lambda: chain(integers(1), secure_sum(), fs.aggregate.Transform("t"), reduce=mean("uniform")),
            "put it before",
        ),
        (lambda: chain(integers(1), secure_sum(), fs.aggregate.clip_by_l2(1.0), reduce=mean("uniform")), "integers"),
        (lambda: secure_sum(33), "modulus_bits=33"),
        (lambda: secure_sum(max_weight=0.5), "max_weight=0.5"),
    ],
)
def test_wrong_combinations_are_refused(build, words):
    with pytest.raises(fs.FedSimError, match=words):
        build()


def test_decoding_message_by_message_is_refused_under_a_secure_sum():
    alone = fs.aggregate.Transform("alone", receive=lambda key, state, message: message)
    for stages in ((alone, integers(1), secure_sum()), (integers(1), alone, secure_sum())):
        with pytest.raises(fs.FedSimError, match="alone decodes messages one by one"):
            chain(*stages, reduce=mean("uniform"))


@pytest.mark.parametrize("clients, fits", [(31, True), (32, False)])
def test_a_cohort_that_could_pass_the_modulus_is_refused(clients, fits):
    """n largest < modulus / 2, with the sampler's capacity for n: 31 x 4 = 124 < 128."""
    task = fs.Task(lambda key: jnp.zeros(3), lambda w, batch, key: jnp.sum((w[None] - batch["x"]) ** 2, 1))
    data = fs.FederatedData({"x": np.zeros((40, 3), np.float32)}, np.arange(41))
    aggregator = chain(integers(4), secure_sum(8), reduce=mean("uniform"))
    algorithm = fs.fedsgd(task, fs.server.fedavgm(1.0), aggregator)
    build = lambda: fs.Simulation(algorithm, data, fs.sampler.uniform(clients), fs.Batching(1))
    if fits:
        build()
    else:
        with pytest.raises(fs.FedSimError, match=r"32 clients of integers up to 4.*reach 128"):
            build()


def test_importance_weights_that_are_not_whole_are_refused():
    sampler = fs.sampler.uniform(3)

    def sample(state, round, seed):
        cohort, state = sampler.sample(state, round, seed)
        return fs.Cohort(cohort.ids, cohort.valid, 0.5 * cohort.weight), state

    aggregator = chain(integers(1), secure_sum(), reduce=mean("uniform"))
    sim = simulation(np.ones((K, 3)), aggregator, None, sampler._replace(sample=sample))
    with pytest.raises(fs.FedSimError, match="whole weights"):
        sim.step(sim.init())
