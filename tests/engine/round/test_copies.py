"""A client that is in a cohort more than once: what it reads, draws and leaves behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.types import Cohort
from fedjax_sim.engine.plan.planner import Planner
from fedjax_sim.engine.store.row_table import client_row
from tests.engine import toys

COHORTS = [[2, 6, 2, 10, 2, 6], [6, 6, 0, None, 1, 6], [3, 3, 3, 3, 3, 3], [4, 2, 5, 6, 7, 8]]
CAPACITY = 6
STEPS = [[3, 1, 2, 4, 1, 2], [1, 9, 1, 1, 1, 2], [1, 1, 1, 1, 1, 1], [9, 9, 9, 9, 9, 9]]  # the last copy's are not most


def marks(round):
    """A number for each place."""
    return (10.0 * round + np.arange(CAPACITY) + 1).astype(np.float32)


def sampler(cohorts=COHORTS, **changes):
    """Those cohorts, with steps and marks by place."""

    def sample(state, round, seed):
        row = cohorts[round % len(cohorts)]
        ids = np.array([k or 0 for k in row], np.int32)
        valid = np.array([k is not None for k in row])
        own = {"max_steps": np.array(STEPS[round % len(STEPS)]), "columns": {"mark": marks(round)}}
        return Cohort(ids, valid, valid.astype(np.float32), **own), state

    given = dict(
        init=lambda num_clients: None,
        sample=sample,
        capacity=lambda num_clients: CAPACITY,
        expected=lambda num_clients: float(CAPACITY),
        columns={"mark": np.float32(0)},
        repeats=True,
        name="with replacement",
    )
    return fs.sampler.Sampler(**{**given, **changes})


def client(key, server, row, batches):
    """Keeps half of its row and its place's mark; tells what it read and drew."""
    new = {"sum": 0.5 * row["sum"] + batches.info["mark"], "rounds": row["rounds"] + 1}
    first = batches.batch(0)
    drawn = {"draw": jax.random.normal(key), "first": first["x"][0, 0], "read": row["sum"], "rounds": row["rounds"]}
    metrics = {name: fs.metrics.Sum(jnp.asarray(value, jnp.float32)) for name, value in drawn.items()}
    return fs.ClientUpdate(batches.info["mark"], weight=1.0, state=new, metrics=metrics)


def simulation(draw=None, **options):
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: batch["x"][:, 0] * w)
    row = {"sum": np.zeros((), np.float32), "rounds": np.zeros((), np.int32)}
    add = lambda key, server, aggregate: server + aggregate.value
    algorithm = fs.Algorithm(task, lambda w: (w, row), client, add, fs.aggregate.mean("uniform"))
    given = {"lanes": 2, "devices": jax.devices()[:1], **options}
    draw = sampler() if draw is None else draw
    return fs.Simulation(algorithm, toys.federation(), draw, fs.Batching(1), seed=3, **toys.executed(**given))


WAYS = {
    "one lane": {"lanes": 1},
    "devices": {"lanes": 2, "devices": jax.devices()[:3]},
    "more lanes than clients, in place": {"lanes": 8, "on_nonfinite": "drop", "rounds_per_dispatch": 4},
    "rows on the host": {"rows": "host", "lanes": 1, "devices": jax.devices()[:2]},
    "streamed, exact": {"residency": "stream", "lanes": 2, "devices": jax.devices()[:2], "exact": True},
    "debug": {"debug": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_copies_read_the_row_of_the_rounds_start_and_the_last_is_kept(way):
    sim = simulation(**WAYS[way])
    state, history = sim.run(sim.init(), 4)
    sums, rounds, model = np.zeros(toys.NUM_CLIENTS), np.zeros(toys.NUM_CLIENTS), 0.0
    for r, metrics in enumerate(history.rounds):
        at = [i for i, k in enumerate(COHORTS[r]) if k is not None and toys.SIZES[k]]
        valid = [i for i, k in enumerate(COHORTS[r]) if k is not None]
        places = [valid.index(i) for i in at]
        ids = np.array([COHORTS[r][i] for i in at])
        np.testing.assert_allclose(metrics.clients("client/read")[places], sums[ids], rtol=1e-6)
        np.testing.assert_array_equal(metrics.clients("client/rounds")[places], rounds[ids])
        before = sums.copy()
        for i, k in zip(at, ids, strict=True):  # the last one stays
            sums[k] = 0.5 * before[k] + marks(r)[i]
        rounds[np.unique(ids)] += 1
        model += marks(r)[at].mean()
    rows = [client_row(state.rows, k) for k in range(toys.NUM_CLIENTS)]
    np.testing.assert_allclose([row["sum"] for row in rows], sums, rtol=1e-6)
    np.testing.assert_array_equal([row["rounds"] for row in rows], rounds)
    np.testing.assert_allclose(state.server, model, rtol=1e-6)
    assert sim.compile_count() == 1


def drawn(cohort, name="draw", **options):
    sim = simulation(sampler([cohort + [None] * (CAPACITY - len(cohort))]), **options)
    return sim.step(sim.init())[1].clients(f"client/{name}")


@pytest.mark.parametrize("name", ["draw", "first"])
def test_copies_draw_for_themselves_and_the_last_as_if_alone(name):
    several = drawn([10, 6, 6, 6, 10, 2], name)
    alone = drawn([2, 6, 10], name)
    np.testing.assert_array_equal(several[[5, 3, 4]], alone)
    assert len({*several.tolist()}) >= 6 - (name == "first")  # two copies may begin with the same example
    np.testing.assert_array_equal(
        several[[4, 1, 3, 0, 2, 5]], drawn([10, 6, 6, 10, 6, 2], name, lanes=8)[[3, 1, 4, 0, 2, 5]]
    )


def test_a_copy_is_a_client_of_twice_the_weight_where_nothing_is_drawn():
    batching = fs.Batching(12, shuffle=False)
    run = lambda draw: fs.Simulation(toys.fedavg(toys.task()), toys.federation(), draw, batching)

    def twice(state, round, seed):
        return Cohort(np.array([2, 6], np.int32), np.ones(2, bool), np.array([2, 1], np.float32)), state

    weighted = fs.sampler.fixed([[2, 6]])._replace(sample=twice)
    copied, once = run(fs.sampler.fixed([[2, 6, 2]], repeats=True)), run(weighted)
    a, b = (sim.step(sim.init())[0].server.params for sim in (copied, once))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize("devices, homes", [(1, False), (3, False), (3, True)])
def test_there_is_room_for_the_largest_client_so_many_times(devices, homes):
    data, batching = toys.federation((1, 40, 2, 3, 1)), fs.Batching(4, epochs=2)
    at_home = np.arange(5) * devices // 5 if homes else None
    planner = Planner(data, batching, devices, at_home, sampler=sampler()._replace(columns=None))
    shape = planner.shape(8, 2)
    cohort = Cohort(np.full(8, 1, np.int32), np.ones(8, bool), np.ones(8, np.float32))
    plan, stats = planner.plan(cohort, shape, seed=0, round=0)
    assert stats.trained == 8 * 80
    lanes = plan.lanes
    orders = set()
    for at in np.argwhere(lanes.steps > 0):
        start = lanes.start[tuple(at)]
        rows = plan.order[at[0], start : start + 80].reshape(2, 40)
        np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(1, 41), (2, 1)))
        orders.add(rows.tobytes())
    assert len(orders) == 8  # each copy's batches are shuffled for it


# Where it may not be


A = fs.aggregate
CHAINS = {
    "central noise": (A.clip_by_l2(1.0), A.gaussian_noise(1.0)),
    "local noise": (A.clip_by_l2(1.0), A.local_gaussian_noise(1.0)),
    "masks": (A.clip_by_l2(1.0), A.quantize(8), A.secure_sum()),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_copies_under_noise_and_masks_are_refused(chain):
    aggregator = A.chain(*CHAINS[chain], reduce=A.mean("uniform"))
    draw = fs.sampler.poisson(0.5)._replace(repeats=True)
    with pytest.raises(ArgumentError, match=r"poisson\(0.5\) may draw a client twice in a round, and chain.*twice"):
        fs.Simulation(toys.fedavg(toys.task(), aggregator=aggregator), toys.federation(), draw, fs.Batching(2))


def test_a_sampler_says_that_it_repeats():
    sim = simulation(sampler(repeats=False))
    with pytest.raises(ArgumentError, match=r"more than once: .*Sampler\(repeats=True\)"):
        sim.step(sim.init())
    with pytest.raises(ArgumentError, match=r"cohorts\[0\].*repeats=True"):
        fs.sampler.fixed([[1, 1]])


def test_rows_of_transforms_go_the_same_way():
    algorithm = toys.fedavg(toys.task(), aggregator=A.error_feedback(A.top_k(0.5)))
    draw, batching = fs.sampler.fixed([[2, 6, 2], [6, 6, 10]], repeats=True), fs.Batching(2)

    def state(lanes, devices):
        where = toys.executed(lanes=lanes, devices=jax.devices()[:devices])
        sim = fs.Simulation(algorithm, toys.federation(), draw, batching, **where)
        return toys.on_device(sim.run(sim.init(), 2)[0])

    one, other = state(1, 1), state(4, 2)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6, err_msg=name)
