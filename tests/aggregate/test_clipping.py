"""Clips by layer and by a quantile that is followed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.aggregate import adaptive_clip, chain, clip_by_l2, clip_by_layer, gaussian_noise, mean, on

NORMS = np.exp(np.random.default_rng(5).normal(0, 0.5, 101))


def adapt(rounds, transform, sign=1.0, expected=101.0):
    """The C of each round, for clients of fixed norms: `(traced by the transform, by the paper's rule)`."""
    aggregator = chain(transform, reduce=mean("uniform"))
    context = fs.aggregate.Context(jnp.int32(0), jnp.int32(0), jax.random.key(0), jnp.float32(jnp.inf))
    payloads = jnp.asarray(NORMS, jnp.float32)[:, None]

    @jax.jit
    def one(states, r):
        encoded = jax.vmap(lambda p: aggregator.encode(jax.random.key(0), states, None, p, context))(payloads)
        total = fs.Aggregate(
            jnp.sum(encoded.message, 0), 101.0, 101.0, sums=(jnp.sum(encoded.sums[0]),), bound=states[0]
        )
        return aggregator.server(jax.random.fold_in(jax.random.key(1), r), states, total, expected)[1]

    states, _ = aggregator.init(payloads[0])
    found, rule = [float(states[0])], [float(states[0])]
    for r in range(rounds):
        states = one(states, r)
        found.append(float(states[0]))
        rule.append(rule[-1] * np.exp(-sign * 0.2 * ((rule[-1] >= NORMS).mean() - 0.5)))
    return np.array(found), np.array(rule)


def test_the_clip_follows_the_papers_rule_to_its_quantile():
    found, rule = adapt(80, adaptive_clip(bit_noise=0))
    np.testing.assert_allclose(found, rule, rtol=1e-4)
    np.testing.assert_allclose(found[-1], np.median(NORMS), rtol=0.03)
    _, wrong = adapt(60, adaptive_clip(bit_noise=0), sign=-1.0)
    assert wrong[-1] < 1e-3  # with the other sign C collapses, far from what was found
    assert found[60] > 0.5


def test_the_bits_noise_has_its_own_scale_over_the_expected_cohort():
    """One round from many keys: log C moves by 0.2 (b + noise - 1/2), of standard deviation 0.2 x 0.05."""
    transform = adaptive_clip(initial=1.0, bit_noise=0.05)
    sums = jnp.float32((NORMS <= 1).sum() - 101 / 2)
    total = fs.Aggregate(jnp.zeros(1), 101.0, 101.0, sums=sums, expected=200.0)
    move = jax.vmap(lambda key: jnp.log(transform.server(key, jnp.float32(1.0), total)[1]))
    steps = np.asarray(move(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(steps.std(), 0.2 * 0.05, rtol=0.05)
    np.testing.assert_allclose(steps.mean(), -0.2 * float(sums) / 200, atol=0.001)


def test_noise_is_scaled_by_the_clip_that_clipped():
    """Not by the one that the round's bits lead to."""
    aggregator = chain(adaptive_clip(initial=0.5, learning_rate=3.0), gaussian_noise(1.0), reduce=mean("uniform"))
    shapes = jnp.zeros(20_000)
    states, _ = aggregator.init(shapes)
    total = fs.Aggregate(
        jnp.zeros(20_000), 9.0, 9.0, bound=aggregator.bound(states, shapes), sums=(jnp.float32(-4.5), None)
    )
    out, after, metrics = aggregator.server(jax.random.key(0), states, total, 9.0)
    assert float(after[0]) > 1.5
    np.testing.assert_allclose(np.std(out.value), 0.5 / 9, rtol=0.03)
    assert metrics["clip_norm"].compute() == 0.5


def test_the_bit_is_a_mechanism_of_its_own():
    bit, value = chain(adaptive_clip(), gaussian_noise(1.0), reduce=mean("uniform")).mechanisms(100.0)
    assert (bit.of, bit.multiplier) == ("statistic", 10.0)
    assert (value.of, value.multiplier) == ("value", 1.0)
    with pytest.raises(fs.FedSimError, match="without noise"):
        chain(adaptive_clip(bit_noise=0), gaussian_noise(1.0), reduce=mean("uniform"))
    with pytest.raises(fs.FedSimError, match="statistic only"):
        chain(adaptive_clip(), reduce=mean("uniform"))


@pytest.mark.parametrize("norms", [2.0, {"a": 1.0, "b": 3.0}])
def test_each_layer_has_its_own_bound(norms):
    draw = np.random.default_rng(0)
    for scale in (0.1, 1.0, 100.0):
        payload = {"a": jnp.asarray(scale * draw.normal(size=5), jnp.float32), "b": jnp.float32(scale)}
        limits = {"a": 2 / 2**0.5, "b": 2 / 2**0.5} if norms == 2.0 else norms
        aggregator = chain(clip_by_layer(norms))
        start = fs.aggregate.Context(jnp.int32(0), jnp.int32(0), jax.random.key(0), jnp.float32(jnp.inf))
        states, _ = aggregator.init(payload)
        message, _, _ = aggregator.client(jax.random.key(0), states, None, payload, start)
        for name, leaf in payload.items():
            norm = np.linalg.norm(leaf)
            np.testing.assert_allclose(message[name], leaf * min(1, limits[name] / norm), rtol=1e-5)
        np.testing.assert_allclose(aggregator.bound(states, payload), np.linalg.norm(list(limits.values())), rtol=1e-6)


@pytest.mark.parametrize("norms", [{"a": 1.0}, {"a": 1.0, "c": 1.0}, [1.0, 1.0]])
def test_norms_that_do_not_fit_the_payload_are_refused(norms):
    with pytest.raises(fs.FedSimError, match="clip_norms have structure"):
        chain(clip_by_layer(norms)).init({"a": jnp.zeros(2), "b": jnp.zeros(1)})


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: clip_by_layer({}), "clip_norms="),
        (lambda: clip_by_layer({"a": -1.0}), "clip_norms=-1.0"),
        (lambda: adaptive_clip(initial=0.0), "initial=0.0"),
        (lambda: adaptive_clip(quantile=1.0), "quantile=1.0"),
        (lambda: adaptive_clip(learning_rate=-0.2), "learning_rate=-0.2"),
        (lambda: adaptive_clip(bit_noise=-1), "bit_noise=-1"),
        (
            lambda: chain(clip_by_l2(1.0), gaussian_noise(1.0), clip_by_layer(1.0), reduce=mean("uniform")),
            "after noise",
        ),
        (lambda: chain(clip_by_l2(1.0), gaussian_noise(1.0), adaptive_clip(), reduce=mean("uniform")), "after noise"),
        (lambda: chain(gaussian_noise(1.0), clip_by_l2(1.0), reduce=mean("uniform")), "clip first"),
        (lambda: chain(clip_by_l2(1.0), gaussian_noise(1.0)), "uniform"),
        (lambda: chain(clip_by_l2(1.0), gaussian_noise(1.0), reduce=fs.aggregate.median()), "not a sum"),
        (lambda: chain(clip_by_l2(1.0), gaussian_noise(1.0), gaussian_noise(1.0), reduce=mean("uniform")), "keep one"),
        (
            lambda: chain(
                clip_by_l2(1.0), fs.aggregate.local_gaussian_noise(1.0), gaussian_noise(1.0), reduce=mean("uniform")
            ),
            "no L2 bound",
        ),
        (lambda: chain(clip_by_l2(1.0), fs.aggregate.skellam_noise(1.0), reduce=mean("uniform")), "gets floats"),
        (lambda: chain(clip_by_l2(1.0), WHOLE, gaussian_noise(1.0), reduce=mean("uniform")), "after a quantiser"),
        (lambda: chain(clip_by_l2(1.0), WHOLE, fs.aggregate.tree_noise(1.0, 4), reduce=mean("uniform")), "a quantiser"),
        (lambda: chain(clip_by_l2(1.0), WHOLE, fs.aggregate.skellam_noise(1.0), reduce=mean("uniform")), "secure_sum"),
        (lambda: chain(WHOLE, fs.aggregate.skellam_noise(1.0), reduce=mean("uniform")), "clip first"),
        (lambda: chain(clip_by_l2(1.0), gaussian_noise(1.0), UNBOUNDED, reduce=mean("uniform")), "no L2 bound"),
        (lambda: chain(clip_by_l2(1.0), ROWS, gaussian_noise(1.0), reduce=mean("uniform")), "keeps rows"),
        (lambda: gaussian_noise(0.0), "multiplier=0.0"),
        (lambda: on("a", on("b", clip_by_l2(1.0))), "applies to a part already"),
        (lambda: on(3, clip_by_l2(1.0)), "part=3"),
        (lambda: chain(clip_by_l2(1.0), on("a", gaussian_noise(1.0)), reduce=mean("uniform")), "one part"),
        (lambda: chain(WHOLE, on("a", fs.aggregate.secure_sum()), reduce=mean("uniform")), "one part"),
    ],
)
def test_wrong_combinations_are_refused(build, words):
    with pytest.raises(fs.FedSimError, match=words):
        build()


WHOLE = fs.aggregate.Transform("whole", facts=lambda facts: facts._replace(integers=True, largest=9.0))
UNBOUNDED = fs.aggregate.Transform("unbounded", facts=lambda facts: facts._replace(clipped=False))
ROWS = fs.aggregate.Transform("rows", facts=lambda facts: facts._replace(rows=True))


# Parts


def scaffold(*transforms, sampler=None):
    task = fs.Task(lambda key: jnp.zeros(2), lambda w, batch, key: jnp.sum((w[None] - batch["x"]) ** 2, 1))
    data = fs.FederatedData({"x": 10 * np.ones((6, 2), np.float32)}, np.arange(7))
    aggregator = chain(*transforms, reduce=mean("uniform"))
    algorithm = fs.scaffold(task, 0.1, num_clients=6, aggregator=aggregator)
    return fs.Simulation(algorithm, data, sampler or fs.sampler.min_separation(3, 2), fs.Batching(1))


def test_a_transform_on_one_part_leaves_the_others():
    sim = scaffold(on("delta", clip_by_l2(0.5)))
    state, metrics = sim.step(sim.init())
    np.testing.assert_allclose(np.linalg.norm(state.server.params), 0.5, rtol=1e-5)
    assert np.linalg.norm(state.server.control) > 5
    assert metrics["aggregate/delta/clip_fraction"] == 1
    assert metrics["aggregate/uplink_bits"] == 3 * 4 * 32
    assert metrics["aggregate/downlink_bits"] == 3 * 4 * 32  # x and c


def test_noise_needs_every_part_clipped_and_takes_the_root_of_their_squares():
    with pytest.raises(fs.FedSimError, match="every part"):
        scaffold(on("delta", clip_by_l2(0.5)), gaussian_noise(1.0))
    both = on("delta", clip_by_l2(3.0)), on("control", clip_by_l2(4.0))
    for sampler in (fs.sampler.uniform(3), fs.sampler.poisson(0.5)):
        with pytest.raises(fs.FedSimError, match=r"clients keep rows and .* adds noise"):
            scaffold(*both, gaussian_noise(1e-6), sampler=sampler)
    sim = scaffold(*both, gaussian_noise(1e-6))
    sim.step(sim.init())
    shapes = {"delta": jnp.zeros(2), "control": jnp.zeros(2)}
    aggregator = chain(*both, gaussian_noise(1.0), reduce=mean("uniform"))
    np.testing.assert_allclose(aggregator.bound((None, None, None), shapes), 5.0)


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(fs.FedSimError, match=r"no part 'theta'.*'control', 'delta'"):
        scaffold(on("theta", clip_by_l2(1.0)))
    with pytest.raises(fs.FedSimError, match="without parts"):
        chain(on("a", clip_by_l2(1.0))).init(jnp.zeros(3))


def test_bits_add_up_over_parts():
    half = lambda message, incoming: incoming / 2
    aggregator = chain(
        on("a", fs.aggregate.Transform("h", bits=half)),
        on("b", fs.aggregate.Transform("q", bits=lambda message, incoming: 8.0)),
        on("a", fs.aggregate.Transform("h", bits=half)),
    )
    start = fs.aggregate.Context(jnp.int32(0), jnp.int32(0), jax.random.key(0), jnp.float32(jnp.inf))
    payload = {"a": jnp.zeros(4), "b": jnp.zeros(3), "c": jnp.zeros(2, jnp.bfloat16)}
    metrics = aggregator.encode(jax.random.key(0), (None,) * 3, None, payload, start).metrics
    assert metrics["uplink_bits"].compute() == 4 * 32 / 4 + 8 + 2 * 16


def test_importance_weights_are_refused_under_noise():
    sampler = fs.sampler.min_separation(3, 2)

    def sample(state, round, seed):
        cohort, state = sampler.sample(state, round, seed)
        return fs.Cohort(cohort.ids, cohort.valid, 2 * cohort.weight), state

    sim = scaffold(clip_by_l2(1.0), gaussian_noise(1.0), sampler=sampler._replace(sample=sample))
    with pytest.raises(fs.FedSimError, match=r"importance weight is 2\.0"):
        sim.step(sim.init())
