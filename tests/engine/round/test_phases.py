"""Algorithms of several phases, collecting reducers and rows, against small NumPy twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from tests.engine import toys

DATA = toys.federation()
BATCHING = fs.Batching(4, shuffle=False)
COHORTS = ((0, 2, 4, 9), (6, 1, 3, 10), (2, 6, 11, 8))


def simulation(algorithm, lanes=2, devices=2, sampler=None, **kwargs):
    return fs.Simulation(
        algorithm,
        DATA,
        sampler or toys.script(COHORTS),
        BATCHING,
        **toys.executed(lanes=lanes, devices=jax.devices()[:devices], **kwargs),
    )


# NumPy: params are one matrix [4, 2], the last row being the bias.


def example_gradient(params, rows):
    """The mean gradient over some rows of the data."""
    x = np.concatenate([DATA.arrays["x"][rows], np.ones((len(rows), 1))], axis=1)
    return x.T @ (x @ params - DATA.arrays["y"][rows]) / len(rows)


def batches(client):
    rows = DATA.rows(client)
    return [rows[i : i + BATCHING.batch_size] for i in range(0, len(rows), BATCHING.batch_size)]


def as_matrix(params):
    return np.concatenate([params["w"], params["b"][None]]).astype(np.float64)


def numpy_mime(x, cohorts):
    for cohort in cohorts:
        real = [k for k in cohort if len(DATA.rows(k))]
        full = example_gradient(x, np.concatenate([DATA.rows(k) for k in real]))
        total = 0
        for k in real:
            y = x
            for rows in batches(k):
                y = y - toys.LR * (example_gradient(y, rows) - example_gradient(x, rows) + full)
            total = total + len(DATA.rows(k)) * (y - x)
        x = x + total / sum(len(DATA.rows(k)) for k in real)
    return x, full


def test_two_phases_against_numpy():
    sim = simulation(toys.two_phase(toys.task()))
    start = sim.init()
    state, history = sim.run(start, 3)
    expected, gradient = numpy_mime(as_matrix(start.server["x"]), COHORTS)
    np.testing.assert_allclose(as_matrix(state.server["x"]), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(as_matrix(state.server["gradient"]), gradient, rtol=1e-4, atol=1e-5)
    assert {"client/start_loss", "client/loss"} <= set(history)  # of the first phase, of the second
    assert history["cohort/contributed"].tolist() == [4, 3, 4]
    assert history["cohort/weight"].tolist() == [sum(toys.SIZES[k] for k in row) for row in COHORTS]


def test_phases_draw_their_own_keys():
    def draw(name):
        def client(key, server, row, batches):
            return fs.ClientUpdate(0.0, metrics={name: fs.metrics.Sum(jax.random.uniform(key))})

        return fs.Phase(client, lambda key, server, aggregate: server)

    phases = (draw("first"), draw("second"))
    algorithm = fs.Algorithm(toys.task(), lambda params: (params, None), phases=phases)
    sim = simulation(algorithm)
    _, history = sim.run(sim.init(), 2)
    draws = [m.clients(f"client/{name}") for m in history.rounds for name in ("first", "second")]
    draws = np.concatenate(draws)
    assert len(set(draws[draws > 0].tolist())) == 4 + 4 + 3 + 3  # client 1 is empty


@pytest.mark.parametrize("cohort", [(0, 2, 4, 9), (0, 1, 4, 9), (2,)], ids=["even", "odd", "one"])
def test_median_against_numpy(cohort):
    def client(key, server, row, batches):
        value = jnp.sin(batches.client_id * jnp.arange(1.0, 4.0))
        return fs.ClientUpdate({"v": value, "s": value[0]}, weight=batches.num_examples)

    algorithm = fs.Algorithm(
        toys.task(),
        lambda params: ({"v": jnp.zeros(3), "s": jnp.zeros(())}, None),
        client,
        lambda key, server, aggregate: aggregate.value,
        fs.aggregate.median(),
    )
    sim = simulation(algorithm)
    state, _ = sim.step(toys.with_cohorts(sim.init(), (cohort,)))
    values = np.sin(np.outer([k for k in cohort if toys.SIZES[k]], np.arange(1.0, 4.0)))
    np.testing.assert_allclose(state.server["v"], np.median(values, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.server["s"], np.median(values[:, 0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduce", ["examples", "uniform"])
def test_effective_weights(reduce):
    """A mean by the update's weight, or by 1, times the cohort's importance weight."""
    ids, importance = np.array([0, 2, 1, 4], np.int32), np.array([0.5, 2.0, 9.0, 1.0], np.float32)

    def client(key, server, row, batches):
        return fs.ClientUpdate(batches.client_id + 1.0, weight=batches.num_examples)

    algorithm = fs.Algorithm(
        toys.task(),
        lambda params: (jnp.zeros(()), None),
        client,
        lambda key, server, aggregate: aggregate.value,
        fs.aggregate.mean(reduce),
    )
    cohort = fs.Cohort(ids, np.ones(4, bool), importance)
    drawn = fs.sampler.uniform(4)._replace(sample=lambda state, round, seed: (cohort, state))
    sim = simulation(algorithm, sampler=drawn)
    state, metrics = sim.step(sim.init())
    own = np.array(toys.SIZES)[ids] if reduce == "examples" else np.array([1, 1, 0, 1])
    np.testing.assert_allclose(state.server, np.average(ids + 1.0, weights=own * importance))
    assert metrics["cohort/weight"] == (own * importance).sum()


# Rows


def counting(template):
    """Clients that count their rounds in a row, beside a constant; two phases, each adding one."""

    def client(key, server, row, batches):
        new = {**row, "rounds": row["rounds"] + 1}
        seen = {"rounds": fs.metrics.Sum(row["rounds"]), "mark": fs.metrics.Sum(row["mark"])}
        return fs.ClientUpdate(jnp.zeros(()), state=new, metrics=seen)

    phase = fs.Phase(client, lambda key, server, aggregate: server)
    init = lambda params: (params, template)
    return fs.Algorithm(toys.task(), init, phases=(phase, phase))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_rows_start_from_the_template_and_stay_their_clients_own(devices):
    template = {"rounds": jnp.int32(10), "mark": jnp.array([1.5, -2.0])}
    sim = simulation(counting(template), devices=devices)
    start = sim.init()
    np.testing.assert_array_equal(start.rows.client["rounds"][:12], 10)
    np.testing.assert_array_equal(start.rows.client["mark"][:12], np.tile([1.5, -2.0], (12, 1)))
    state, history = sim.run(start, 3)
    drawn = [sum(k in row for row in COHORTS) * (toys.SIZES[k] > 0) for k in range(12)]
    assert state.rows.client["rounds"].dtype == jnp.int32
    np.testing.assert_array_equal(state.rows.client["rounds"][:12], 10 + 2 * np.array(drawn))
    np.testing.assert_array_equal(state.rows.client["mark"], start.rows.client["mark"])
    # The last phase of round 2 has seen what the first one, and rounds before, have left.
    assert history.rounds[2].clients("client/rounds").tolist() == [13, 13, 11, 11]
    assert len(state.rows.client["rounds"].sharding.device_set) == devices


@pytest.mark.parametrize("devices", [1, 2])
def test_empty_lanes_write_no_row(devices):
    """An empty lane's client id is 0: client 0 in the same chunk must keep what it has learnt."""
    sim = simulation(counting({"rounds": 0, "mark": jnp.zeros(2)}), lanes=4, devices=devices)
    state, _ = sim.run(toys.with_cohorts(sim.init(), ((0,), (0, 6, 4), (11,))), 3)
    expected = np.zeros(12)
    expected[[0, 4, 6, 11]] = [4, 2, 2, 2]
    np.testing.assert_array_equal(state.rows.client["rounds"][:12], expected)


def test_rows_live_where_their_clients_train():
    """A row's block is on one device, and stays there after a round."""
    sim = simulation(counting({"rounds": 0.0, "mark": jnp.zeros(2)}), devices=8)
    start = sim.init()
    state, _ = sim.step(start)
    for table in (start.rows.client["mark"], state.rows.client["mark"]):
        blocks = [shard.data.shape for shard in table.addressable_shards]
        assert blocks == [(2, 2)] * 8
        assert not table.is_fully_replicated


def test_a_client_that_returns_no_state_keeps_its_row():
    def client(key, server, row, batches):
        return fs.ClientUpdate(row["mark"], metrics={"mark": fs.metrics.Sum(row["mark"])})

    algorithm = fs.Algorithm(
        toys.task(),
        lambda params: (jnp.zeros(()), {"mark": jnp.float32(3.0)}),
        client,
        lambda key, server, aggregate: aggregate.value,
    )
    sim = simulation(algorithm)
    state, _ = sim.run(sim.init(), 2)
    assert state.server == 3
    np.testing.assert_array_equal(state.rows.client["mark"], 3.0)


def test_rows_of_transforms():
    """Error feedback's door: a transform's row, beside the algorithm's own, one for each phase."""

    def client(key, state, row, payload, context):
        return jax.tree.map(lambda p: p + row, payload), row + 1, {}

    lag = fs.aggregate.Transform("lag", init=lambda shapes: (None, jnp.zeros(())), client=client)
    aggregator = fs.aggregate.chain(lag, reduce=fs.aggregate.mean("uniform"))
    phase = fs.Phase(
        lambda key, server, row, batches: fs.ClientUpdate(jnp.zeros(()), state=row + 2),
        lambda key, server, aggregate: {"first": aggregate.value, "second": server["first"]},
        aggregator,
    )
    init = lambda params: ({"first": jnp.zeros(()), "second": jnp.zeros(())}, jnp.zeros(()))
    sim = simulation(fs.Algorithm(toys.task(), init, phases=(phase, phase._replace(aggregator=None))))
    state, _ = sim.run(sim.init(), 3)
    drawn = np.array([sum(k in row for row in COHORTS) * (toys.SIZES[k] > 0) for k in range(12)])
    np.testing.assert_array_equal(state.rows.client[:12], 4 * drawn)
    (first,), second = state.rows.aggregator
    np.testing.assert_array_equal(first[:12], drawn)
    assert not jax.tree.leaves(second)
    # Round 2 draws clients 2 and 6, lagging 1 each, and 8 and 11, lagging 0.
    assert float(state.server["second"]) == pytest.approx(0.5)


def test_error_feedback_knows_what_the_server_decodes():
    """The server draws as it decodes, and all that it adds up is what clients sent, less what they still hold."""
    noise = lambda key, state, message: message + jax.random.normal(key, message.shape)
    channel = fs.aggregate.Transform("channel", receive=noise)
    halved = fs.aggregate.Transform("halved", client=lambda key, state, row, p, context: (p / 2, row, {}))
    aggregator = fs.aggregate.chain(halved, fs.aggregate.error_feedback(channel), reduce=fs.aggregate.mean("uniform"))
    algorithm = fs.Algorithm(
        toys.task(),
        lambda params: (jnp.zeros(3), None),
        lambda key, server, row, batches: fs.ClientUpdate(2 * jnp.arange(3.0)),
        lambda key, server, aggregate: server + aggregate.value * aggregate.count,
        aggregator,
    )
    sim = simulation(algorithm)
    state, _ = sim.run(sim.init(), 3)
    (memory,) = jax.tree.leaves(state.rows.aggregator)
    assert np.abs(memory).max() > 0.1
    sent = sum(toys.SIZES[k] > 0 for cohort in COHORTS for k in cohort) * np.arange(3.0)
    np.testing.assert_allclose(state.server + np.sum(memory, 0), sent, atol=1e-4)
