"""Aggregation: clipping, chains, reducers, weights, facts, bounds, metrics and rows, alone and in the engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.aggregate import Collected, Context, Facts, Mechanism, Transform, chain, clip_by_l2, mean, median
from fedjax_sim.aggregate.collecting import reduced
from tests.engine import toys

VECTORS = np.array([[3, 4, 0], [0, 0, 0], [1, -2, 2], [-8, 1, 4], [0.5, 0, 1], [6, 6, -7], [9, 9, 9]], np.float32)
SIZES = np.array([2, 1, 4, 3, 1, 2, 0])  # client 6 has no examples, so that its vector is never sent


def tree(u):
    return {"a": u[..., :2], "b": u[..., 2]}


def flat(payload):
    a, b = np.asarray(payload["a"]), np.asarray(payload["b"])
    return np.concatenate([a, b[..., None]], axis=-1)


def context(client_id=0, bound=jnp.inf):
    key = jax.random.key(0)
    return Context(jnp.int32(client_id), jnp.int32(0), key, jnp.asarray(bound, jnp.float32))


def encode(aggregator, payload, rows=None):
    """One client's side of a chain, by hand: `(message, rows, metrics)`."""
    states, _ = aggregator.init(payload)
    return aggregator.client(jax.random.key(0), states, rows, payload, context())


# A federation whose clients send the vectors above; the server's state is what the aggregator handed it.


def emit(aggregator):
    task = fs.Task(lambda key: tree(jnp.zeros(3)), lambda params, batch, key: batch["u"][:, 0])

    def init(params):
        zero = jnp.zeros(())
        return {"value": params, "weight": zero, "count": zero, "calls": zero}, None

    def client(key, server, row, batches):
        return fs.ClientUpdate(tree(batches.batch(0)["u"][0]), weight=batches.num_examples)

    def server(key, server, aggregate):
        value, weight, count = aggregate.value, aggregate.weight, aggregate.count
        return {"value": value, "weight": weight, "count": count, "calls": server["calls"] + 1}

    return fs.Algorithm(task, init, client, server, aggregator, params=lambda s: s["value"])


def data(vectors=VECTORS):
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    return fs.data.FederatedData({"u": np.repeat(vectors, SIZES, axis=0)}, offsets)


def simulation(aggregator, sampler, vectors=VECTORS, **options):
    if not isinstance(sampler, fs.sampler.Sampler):
        sampler = fs.sampler.fixed(sampler)
    algorithm = emit(aggregator)
    options = {"lanes": 2, "devices": jax.devices()[:2], **options}
    return fs.Simulation(algorithm, data(vectors), sampler, fs.Batching(4), **toys.executed(**options))


def rounds(sim, count):
    """`(states, metrics)` of so many rounds."""
    state, states, seen = sim.init(), [], []
    for _ in range(count):
        state, metrics = sim.step(state)
        states.append(state)
        seen.append(metrics)
    return states, seen


def weighted(sampler, weights):
    """A sampler whose cohorts carry importance weights, by client id."""

    def sample(state, round, seed):
        cohort, state = sampler.sample(state, round, seed)
        weight = np.where(cohort.valid, np.asarray(weights, np.float32)[cohort.ids], 0)
        return fs.Cohort(cohort.ids, cohort.valid, weight), state

    return sampler._replace(sample=sample)


# Clipping


@pytest.mark.parametrize("clip_norm", [0.5, 3.0, 5.0, 100.0])
@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_clip_bounds_the_norm_over_all_leaves_together(clip_norm, vector):
    message, _, metrics = encode(chain(clip_by_l2(clip_norm)), tree(jnp.asarray(vector)))
    norm = np.linalg.norm(vector)
    np.testing.assert_allclose(flat(message), vector * min(1, clip_norm / max(norm, 1e-9)), rtol=1e-6)
    assert metrics["clip_fraction"].compute() == float(norm > clip_norm)
    np.testing.assert_allclose(metrics["update_norm"].compute(), norm, rtol=1e-6)


def test_clip_leaves_a_tiny_payload_as_it_is():
    """Squares of 1e-25 vanish in float32, the payload need not."""
    message, _, _ = encode(chain(clip_by_l2(0.5)), jnp.full(3, 1e-25))
    np.testing.assert_allclose(message, 1e-25, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_clipped_payload_obeys_the_bound_in_every_dtype(dtype):
    """The bound is what noise is scaled by: a rounded factor must not lift the norm over it."""
    for seed in range(20):
        payload = (10 * jax.random.normal(jax.random.key(seed), (7,))).astype(dtype)
        message, _, _ = encode(chain(clip_by_l2(1.0)), payload)
        assert np.linalg.norm(np.asarray(message, np.float64)) <= 1 + 1e-6


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), None])
def test_a_wrong_clip_norm_is_named(value):
    with pytest.raises(fs.FedSimError, match="clip_norm="):
        clip_by_l2(value)


# Chains


def affine(name, factor, shift, log):
    """u -> factor u + shift on the client, undone on the sum."""

    def client(key, state, row, payload, context):
        log.append(f"{name} client")
        return jax.tree.map(lambda p: factor * p + shift, payload), row, {}

    def receive(key, state, message):
        log.append(f"{name} receive")
        return message

    def server(key, state, aggregate):
        log.append(f"{name} server")
        undo = lambda total: (total - shift * aggregate.weight) / factor
        return (
            fs.Aggregate(jax.tree.map(undo, aggregate.value), aggregate.weight, aggregate.count),
            state,
            {},
        )

    return Transform(name, client=client, receive=receive, server=server)


def test_chain_runs_clients_in_order_and_servers_in_reverse():
    log = []
    aggregator = chain(affine("A", 2.0, 0.0, log), affine("B", 1.0, 3.0, log), reduce=mean("uniform"))
    assert aggregator.name == "chain(A > B > mean(uniform))"
    key, payload = jax.random.key(0), tree(jnp.asarray(VECTORS[0]))
    states, rows = aggregator.init(payload)
    assert rows is None
    log.clear()
    message, _, _ = aggregator.client(key, states, None, payload, context())
    message = aggregator.receive(key, states, message)
    np.testing.assert_allclose(flat(message), 2 * VECTORS[0] + 3)
    total = fs.Aggregate(message, jnp.ones(()), jnp.ones(()))
    aggregate, _, _ = aggregator.server(key, states, total, None)
    np.testing.assert_allclose(flat(aggregate.value), VECTORS[0])
    assert log == ["A client", "B client", "B receive", "A receive", "B server", "A server"]


def test_chain_in_the_engine_undoes_itself():
    """In any other order than the reverse one the mean would not come back."""
    chained = chain(affine("A", 2.0, 0.0, []), affine("B", 1.0, 3.0, []), reduce=mean())
    states, _ = rounds(simulation(chained, [[0, 2, 3, 6], [5, 1]]), 2)
    for state, cohort in zip(states, ([0, 2, 3], [5, 1]), strict=True):
        expected = np.average(VECTORS[cohort], axis=0, weights=SIZES[cohort])
        np.testing.assert_allclose(flat(state.server["value"]), expected, rtol=1e-5)


def test_each_transform_client_and_round_draws_its_own():
    def client(key, state, row, payload, context):
        return jax.tree.map(lambda p: p + jax.random.normal(key, p.shape), payload), row, {}

    draw = Transform("draw", client=client)
    states, _ = rounds(simulation(chain(draw, reduce=mean("uniform")), [[1], [0], [1]]), 3)
    drawn = [flat(s.server["value"]) - VECTORS[k] for s, k in zip(states, (1, 0, 1), strict=True)]
    twice = flat(encode(chain(draw, draw), tree(jnp.zeros(3)))[0])
    once = flat(encode(chain(draw), tree(jnp.zeros(3)))[0])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(drawn[a] - drawn[b]).max() > 1e-3
    assert np.abs(twice - 2 * once).max() > 1e-3


def test_one_name_for_two_metrics_is_refused_when_built():
    with pytest.raises(fs.FedSimError, match="clip_fraction"):
        simulation(chain(clip_by_l2(2.0), clip_by_l2(1.0)), [[0]])


def test_one_name_for_a_clients_and_a_servers_metric_is_refused():
    def client(key, state, row, payload, context):
        return payload, row, {"level": fs.metrics.Mean(1.0, 1.0)}

    def server(key, state, aggregate):
        return aggregate, state, {"level": fs.metrics.Sum(7.0)}

    both = Transform("both", client=client, server=server)
    with pytest.raises(fs.FedSimError, match="level"):
        rounds(simulation(chain(both), [[0]]), 1)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: chain(mean()), "reducers go to reduce="),
        (lambda: chain(reduce=clip_by_l2(1.0)), "reduce="),
        (lambda: fs.aggregate.as_aggregator("mean"), "aggregator='mean'"),
        (lambda: mean("size"), "weight='size'"),
    ],
)
def test_what_is_no_part_of_a_chain_is_refused(build, message):
    with pytest.raises(fs.FedSimError, match=message):
        build()


# Receiving: per message, before the sum


def signs():
    """A message is signs and one scale: the server must multiply them before it adds clients up."""

    def client(key, state, row, payload, context):
        leaves = jnp.concatenate([payload["a"], payload["b"][None]])
        return {"signs": jnp.sign(leaves), "scale": jnp.abs(leaves).mean()}, row, {}

    def receive(key, state, message):
        return tree(message["scale"] * message["signs"])

    return Transform("signs", client=client, receive=receive)


@pytest.mark.parametrize("reduce", [mean("uniform"), median()], ids=lambda r: r.name)
def test_receive_sees_each_message(reduce):
    cohort = [0, 2, 3, 5]
    (state,), _ = rounds(simulation(chain(signs(), reduce=reduce), [cohort]), 1)
    u = VECTORS[cohort]
    sent = np.sign(u) * np.abs(u).mean(axis=1, keepdims=True)
    expected = sent.mean(axis=0) if reduce.linear else np.median(sent, axis=0)
    np.testing.assert_allclose(flat(state.server["value"]), expected, rtol=1e-5)


# Reducers and weights

COHORTS = ([0, 2, 3], [6, 5, 1, 0], [], [6], [4])


@pytest.mark.parametrize("importance", [None, np.array([1, 2, 0.5, 3, 1, 0.25, 9])], ids=["1", "w"])
@pytest.mark.parametrize("weight", ["examples", "uniform"])
def test_mean_weighs_by_examples_or_plainly_times_importance(weight, importance):
    sampler = fs.sampler.fixed(COHORTS)
    if importance is not None:
        sampler = weighted(sampler, importance)
    states, seen = rounds(simulation(chain(clip_by_l2(6.0), reduce=mean(weight)), sampler), len(COHORTS))
    norms = np.linalg.norm(VECTORS, axis=1, keepdims=True)
    clipped = VECTORS * np.minimum(1, 6.0 / np.maximum(norms, 1))
    effective = np.where(SIZES > 0, SIZES if weight == "examples" else 1, 0)
    effective = effective * (1 if importance is None else importance)
    for state, metrics, cohort in zip(states, seen, COHORTS, strict=True):
        members = [k for k in cohort if SIZES[k]]
        assert metrics["cohort/contributed"] == len(members)
        assert metrics["cohort/weight"] == pytest.approx(effective[members].sum())
        fraction = (norms[members] > 6).mean() if members else np.nan
        np.testing.assert_allclose(metrics["aggregate/clip_fraction"], fraction)
        if members:
            expected = np.average(clipped[members], axis=0, weights=effective[members])
            assert float(state.server["weight"]) == pytest.approx(effective[members].sum())
            assert float(state.server["count"]) == len(members)
        # A round to which nobody contributed leaves the server as it is.
        np.testing.assert_allclose(flat(state.server["value"]), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen[1].clients("aggregate/update_norm"), [np.nan, 11, 0, 5], rtol=1e-6)
    np.testing.assert_allclose(seen[1].clients("aggregate/clip_fraction"), [np.nan, 1, 0, 0])
    assert float(states[-1].server["calls"]) == 3


@pytest.mark.parametrize("weight", ["examples", "uniform"])
def test_an_empty_sum_is_zero_not_nan(weight):
    aggregate = fs.Aggregate(tree(jnp.zeros(3)), jnp.zeros(()), jnp.zeros(()))
    assert not flat(mean(weight).result(aggregate, None)).any()
    gradient = jax.grad(lambda w: mean(weight).result(fs.Aggregate(w, w, w), None))(0.0)
    assert np.isfinite(gradient)


@pytest.mark.parametrize("devices, lanes", [(1, 1), (2, 2), (3, 3)])
def test_median_is_numpys_over_those_who_contribute(devices, lanes):
    """Odd and even counts, clients without examples, one whose update is NaN, and nobody at all."""
    vectors = VECTORS.copy()
    vectors[4] = np.nan
    cohorts = ([0, 2, 3], [0, 2, 3, 5], [6, 1, 0, 4, 5, 3], [4, 6, 2, 1], [4, 6])
    sim = simulation(
        median(),
        cohorts,
        vectors,
        lanes=lanes,
        devices=jax.devices()[:devices],
        on_nonfinite="drop",
    )
    states, _ = rounds(sim, len(cohorts))
    for state, cohort in zip(states, cohorts, strict=True):
        members = [k for k in cohort if k not in (4, 6)]
        if members:
            expected = np.median(VECTORS[members], axis=0)
        np.testing.assert_allclose(flat(state.server["value"]), expected, rtol=1e-6)
    assert sim.compile_count() == 1


@pytest.mark.parametrize("count", range(6))
def test_median_alone(count):
    messages = jax.random.normal(jax.random.key(count), (5, 2, 3))
    contributes = np.random.default_rng(count).permutation(np.arange(5) < count)
    poisoned = jnp.where(contributes[:, None, None], messages, jnp.nan)
    middle = reduced(median(), Collected({"a": poisoned}, jnp.ones(5), jnp.asarray(contributes))).value["a"]
    expected = np.median(messages[contributes], axis=0) if count else np.zeros((2, 3))
    np.testing.assert_allclose(middle, expected, rtol=1e-6)


# Facts: what may not be combined, and the denominator under noise


def noise(name="noise", shift=0.0):
    """Says that it adds noise, and adds a constant to the sum instead, which can be computed by hand."""

    def server(key, state, aggregate):
        value = jax.tree.map(lambda total: total + shift, aggregate.value)
        return fs.Aggregate(value, aggregate.weight, aggregate.count), state, {}

    mechanism = Mechanism("gaussian", 1.0, transform=name)
    return Transform(name, server=server, facts=lambda facts: facts._replace(noise=(*facts.noise, mechanism)))


def test_wrong_combinations_are_refused_by_name():
    with pytest.raises(fs.FedSimError, match=r"clip_by_l2\(1.0\), noise.*mean\(examples\).*uniform"):
        chain(clip_by_l2(1.0), noise(), reduce=mean("examples"))
    with pytest.raises(fs.FedSimError, match="noise"):
        chain(noise())  # a mean by examples is the default
    with pytest.raises(fs.FedSimError, match=r"clip_by_l2\(1.0\).*after noise"):
        chain(noise(), clip_by_l2(1.0), reduce=mean("uniform"))
    with pytest.raises(fs.FedSimError, match=r"noise.*median"):
        chain(noise(), reduce=median())
    integers = Transform("bits", facts=lambda facts: facts._replace(integers=True, bits=8))
    with pytest.raises(fs.FedSimError, match=r"clip_by_l2\(1.0\).*quantiser"):
        chain(integers, clip_by_l2(1.0))
    private = chain(clip_by_l2(1.0), noise(), reduce=mean("uniform"))
    with pytest.raises(fs.FedSimError, match=r"fixed.*no accounting event.*noise"):
        simulation(private, [[0]])
    assert private.facts == Facts(clipped=True, bound="1.0", noise=(Mechanism("gaussian", 1.0, transform="noise"),))
    assert chain(clip_by_l2(1.0), integers).facts == Facts(bits=8, integers=True, clipped=True, bound="1.0")


def test_noise_divides_by_the_expected_cohort():
    """Also for an empty cohort, whose noise must be released; never by who happened to come."""
    sampler = fs.sampler.poisson(0.3)
    sim = simulation(chain(clip_by_l2(100.0), noise(shift=2.0), reduce=mean("uniform")), sampler)
    states, seen = rounds(sim, 8)
    counts = []
    for state, metrics in zip(states, seen, strict=True):
        members = [k for k in metrics.client_ids if SIZES[k]]
        counts.append(len(members))
        expected = (VECTORS[members].sum(axis=0) + 2.0) / (0.3 * len(SIZES))
        np.testing.assert_allclose(flat(state.server["value"]), expected, rtol=1e-5, atol=1e-6)
    assert len(set(counts)) > 2
    assert 0 in counts, "the seed should draw an empty cohort too"
    assert float(states[-1].server["calls"]) == 8


def test_scaffolds_controls_stay_the_mean_of_rows_under_an_expected_denominator():
    """c += 1/N sum (c_k+ - c_k): count / N times a mean that was divided by something else is not that."""
    data = fs.data.FederatedData({"b": np.arange(6, dtype=np.float32)}, np.arange(7))
    task = fs.Task(lambda key: jnp.zeros(()), lambda x, batch, key: (x - batch["b"]) ** 2 / 2)
    aggregator = chain(clip_by_l2(1000.0), noise(shift=0.0), reduce=mean("uniform"))
    algorithm = fs.scaffold(task, 0.1, num_clients=6, aggregator=aggregator)
    cohorts = fs.sampler.fixed([[0, 1, 2, 3, 4], [5]])  # rows under noise need a law without amplification
    sampler = cohorts._replace(event=fs.sampler.min_separation(3, separation=2).event, expected=lambda k: 3.0)
    sim = fs.Simulation(algorithm, data, sampler, fs.Batching(1), execution=fs.Execution(devices=jax.devices()[:1]))
    state = sim.init()
    for _ in range(2):
        state, _ = sim.step(state)
        np.testing.assert_allclose(state.server.control, state.rows.client.mean(), rtol=1e-5)


# Bounds


def test_the_l2_bound_folds_along_the_chain():
    seen = []

    def spy(name):
        def client(key, state, row, payload, context):
            return payload, row, {name: fs.metrics.Mean(context.bound, jnp.ones(()))}

        return Transform(name, client=client)

    double = Transform("double", bound=lambda state, incoming, dim: 2 * incoming + dim, init=init_seven)
    aggregator = chain(spy("none"), clip_by_l2(4.0), spy("clipped"), double, spy("doubled"))
    _, _, metrics = encode(aggregator, tree(jnp.ones(3)))
    seen = {name: float(metrics[name].compute()) for name in ("none", "clipped", "doubled")}
    assert seen == {"none": np.inf, "clipped": 4.0, "doubled": 11.0}
    assert clip_by_l2(4.0).bound(None, jnp.float32(3.0), 5) == 3.0  # a bound never grows


def init_seven(payload_shapes):
    return jnp.float32(7.0), None


# Rows and states


def rounding():
    """Error feedback: sends the nearest whole numbers, and keeps what it owes."""

    def init(payload_shapes):
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), payload_shapes)
        return jnp.zeros(()), zeros

    def client(key, state, row, payload, context):
        owed = jax.tree.map(jnp.add, row, payload)
        sent = jax.tree.map(jnp.round, owed)
        return sent, jax.tree.map(jnp.subtract, owed, sent), {}

    def server(key, state, aggregate):
        return aggregate, state + aggregate.count, {"served": fs.metrics.Sum(state)}

    return Transform("rounding", init, client, server=server)


def test_a_transforms_rows_and_state_persist():
    """Each client's debt waits for its next round; nothing is lost: all sent and owed is all given."""
    vectors = VECTORS * np.float32(0.3) + np.float32(0.17)
    cohorts = [[0, 2], [2, 3, 6], [], [5, 0, 2, 6], [2], [0, 1, 5, 4]]
    aggregator = chain(Transform("nothing"), rounding(), reduce=mean("uniform"))
    states, seen = rounds(simulation(aggregator, cohorts, vectors), len(cohorts))
    owed, served = np.zeros_like(vectors), 0
    for state, metrics, cohort in zip(states, seen, cohorts, strict=True):
        members = [k for k in cohort if SIZES[k]]
        before = owed[members] + vectors[members]
        sent = np.round(before)
        owed[members] = before - sent
        rows = state.rows.aggregator[0][1]
        np.testing.assert_allclose(flat(rows)[: len(SIZES)], owed, atol=1e-5)
        if members:
            np.testing.assert_allclose(flat(state.server["value"]), sent.mean(axis=0), atol=1e-5)
        assert metrics["aggregate/served"] == served
        served += len(members)
    assert float(states[-1].aggregator[0][1]) == served
    assert states[0].rows.client is None
