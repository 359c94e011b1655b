"""What clients know: the round's number, and whatever columns a sampler gives, through all that carries a plan."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.types import Cohort
from fedjax_sim.engine.plan.planner import Planner
from fedjax_sim.engine.plan.words import pack_plans, unpack_plan
from tests.engine import toys

COLUMNS = {
    "speed": np.float32(1.0),
    "late": np.bool_(True),
    "code": np.zeros(3, np.uint8),
    "words": np.zeros((2, 2), np.int16),
    "large": np.uint32(0),
    "half": np.zeros(1, ml_dtypes.bfloat16),
    "count": 7,
}
KINDS = {
    "speed": ("float32", ()),
    "late": ("bool", ()),
    "code": ("uint8", (3,)),
    "words": ("int16", (2, 2)),
    "large": ("uint32", ()),
    "half": ("bfloat16", (1,)),
    "count": ("int32", ()),
    "weight": ("float32", ()),
    "version": ("int32", ()),
    "round": ("int32", ()),
}
CAPACITY = 6


def drawn(places, round, seed):
    """Columns that differ in every place and round."""
    draw = np.random.default_rng([seed, round])
    made = {
        "speed": draw.normal(size=places),
        "late": draw.random(places) < 0.5,
        "code": draw.integers(0, 256, (places, 3)),
        "words": draw.integers(-(2**15), 2**15, (places, 2, 2)),
        "large": draw.integers(2**31, 2**32, places) // 512 * 512,  # as float32 holds them
        "half": draw.integers(-8, 8, (places, 1)),
        "count": draw.integers(-9, 9, places),
    }
    return {name: values.astype(np.asarray(COLUMNS[name]).dtype) for name, values in made.items()}


def sampler(**changes):
    """Some clients, in another order each round, with an empty place and one that does not arrive."""

    def sample(state, round, seed):
        ids = np.random.default_rng([seed, round, 1]).permutation(toys.NUM_CLIENTS)[:CAPACITY].astype(np.int32)
        valid, arrives = np.arange(CAPACITY) != round % CAPACITY, np.arange(CAPACITY) != (round + 2) % CAPACITY
        columns = drawn(CAPACITY, round + int(state), seed)
        return Cohort(ids, valid, valid.astype(np.float32), arrives=arrives, columns=columns), state + 1

    given = dict(
        init=lambda num_clients: np.int64(0),
        sample=sample,
        capacity=lambda num_clients: CAPACITY,
        expected=lambda num_clients: float(CAPACITY),
        columns=COLUMNS,
        name="told",
    )
    return fs.sampler.Sampler(**{**given, **changes})


def client(key, server, row, batches):
    """Reports all that it knows, and sends its `speed`."""
    info = batches.info
    assert {name: (str(value.dtype), value.shape) for name, value in info.items()} == KINDS
    metrics = {name: fs.metrics.Sum(value.astype(jnp.float32)) for name, value in info.items()}
    new = None if row is None else row + info["speed"]
    return fs.ClientUpdate(info["speed"] * info["round"], metrics=metrics, state=new)


def algorithm(row=None, rate=1.0):
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: batch["x"][:, 0] * w)
    add = lambda key, server, aggregate: server + rate * aggregate.value
    return fs.Algorithm(task, lambda w: (w, row), client, add, fs.aggregate.mean("uniform"))


def simulation(row=None, draw=None, rate=1.0, **options):
    given = {"lanes": 2, "devices": jax.devices()[:1], **options}
    draw = sampler() if draw is None else draw
    return fs.Simulation(
        algorithm(row, rate), toys.federation(), draw, fs.Batching(3), seed=5, **toys.executed(**given)
    )


def check_rounds(rounds):
    """Each client that trained said what its place in the cohort was told."""
    model = 0.0
    for metrics in rounds:
        cohort, trained = metrics.cohort, metrics.clients("client/loss") if "client/loss" in metrics else None
        assert trained is None
        sizes = np.asarray(toys.SIZES)[cohort.ids]
        on = (cohort.valid & cohort.arrives & (sizes > 0))[cohort.valid]
        assert on.sum() >= 3
        told = {**cohort.columns, "weight": cohort.weight, "round": np.full(CAPACITY, metrics.round)}
        for name, column in told.items():
            seen = metrics.clients(f"client/{name}")
            np.testing.assert_array_equal(seen[on], np.asarray(column, np.float32)[cohort.valid][on], err_msg=name)
            assert not seen[~on].any()
        model += np.mean(cohort.columns["speed"][cohort.valid][on]) * metrics.round
    return model


WAYS = {
    "one lane": {"lanes": 1},
    "devices": {"lanes": 2, "devices": jax.devices()[:3]},
    "streamed": {"lanes": 4, "residency": "stream", "rounds_per_dispatch": 2},
    "debug": {"debug": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_clients_find_their_columns(way):
    sim = simulation(**WAYS[way])
    state, history = sim.run(sim.init(), 4)
    np.testing.assert_allclose(state.server, check_rounds(history.rounds), rtol=1e-5)
    assert sim.compile_count() == 1


@pytest.mark.parametrize("rows", ["device", "host"])
def test_beside_rows(rows):
    sim = simulation(np.zeros((), np.float32), rows=rows, devices=jax.devices()[:2])
    state, history = sim.run(sim.init(), 3)
    check_rounds(history.rounds)
    kept = np.zeros(toys.NUM_CLIENTS, np.float32)
    for metrics in history.rounds:
        np.add.at(kept, metrics.client_ids, metrics.clients("client/speed"))
    from fedjax_sim.engine.store.row_table import client_row

    np.testing.assert_allclose([client_row(state.rows, k) for k in range(toys.NUM_CLIENTS)], kept, rtol=1e-5)


def test_resumed_and_as_a_pure_function(tmp_path):
    sim = simulation(rounds_per_dispatch=2)
    straight, history = sim.run(sim.init(), 4)
    paused, _ = sim.run(sim.init(), 2)
    sim.save(tmp_path, paused)
    resumed, later = sim.run(sim.restore(tmp_path), 2)
    np.testing.assert_array_equal(resumed.server, straight.server)
    np.testing.assert_array_equal(later["client/speed"], history["client/speed"][2:])
    plans, arrays = sim.round_plan(sim.init(), rounds=4)
    f = sim.round_function(static=True)
    pure, _ = jax.lax.scan(lambda state, plan: f(state, plan, arrays), sim.pure_state(sim.init()), plans)
    np.testing.assert_allclose(pure.server, straight.server, rtol=1e-6)


def test_in_sweeps():
    swept = fs.sweep(lambda rate: simulation(rate=rate), {"rate": [1.0, 2.0]}, rounds=3, seeds=[5, 6])
    for setting, row in zip(swept.settings, swept.members, strict=True):
        sim = simulation(**setting)
        for seed, member in zip(swept.seeds, row, strict=True):
            state, _ = sim.run(dataclasses.replace(sim.init(), seed=seed), 3)
            np.testing.assert_allclose(member.params, state.server, rtol=1e-5)


def test_map_clients_know_the_round():
    seen = fs.map_clients(lambda key, server, row, batches: batches.info["round"], None, toys.federation(), 2, round=9)
    assert set(seen.tolist()) == {0, 9}  # a client without examples is not computed


def test_packed_plans_are_unpacked_to_the_same():
    planner = Planner(toys.federation(), fs.Batching(2), devices=3, sampler=sampler())
    shape = planner.shape(CAPACITY, 2)
    plans = [planner.plan(sampler().sample(0, r, 0)[0], shape, 0, r)[0] for r in range(3)]
    words = pack_plans(plans)
    for plan, packed in zip(plans, words, strict=True):
        jax.tree.map(np.testing.assert_array_equal, unpack_plan(jnp.asarray(packed), shape), plan)


# Bad input


def changed(**columns):
    def sample(state, round, seed):
        cohort, state = sampler().sample(state, round, seed)
        kept = {name: value for name, value in {**cohort.columns, **columns}.items() if value is not None}
        return dataclasses.replace(cohort, columns=kept), state

    return sampler(sample=sample)


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: changed(speed=None), r"told: the cohort has columns \['code'.*declares \['code'.*'speed'"),
        (lambda: changed(more=np.zeros(CAPACITY)), r"columns .*'more'.*must be the same in every round"),
        (lambda: changed(count=np.zeros(CAPACITY, np.float32)), r"'count' is float32\[6\]: must be int32\[6\]"),
        (lambda: changed(code=np.zeros((CAPACITY, 4), np.uint8)), r"'code' is uint8\[6, 4\]: must be uint8\[6, 3\]"),
        (lambda: changed(speed=np.zeros(5, np.float32)), r"'speed' is float32\[5\]"),
        (lambda: sampler(columns={"round": 1}), "batches.info has a 'round' of its own"),
        (lambda: sampler(columns={"name": "word"}), r"sampler.columns\['name'\]='word': must be a number"),
        (lambda: sampler(columns={"none": np.zeros((0, 2))}), "at least one number"),
    ],
)
def test_what_is_no_column(draw, message):
    plain = fs.Algorithm(
        algorithm().task,
        lambda w: (w, None),
        lambda key, server, row, batches: fs.ClientUpdate(server),
        lambda k, s, a: s,
    )

    def train():
        sim = fs.Simulation(plain, toys.federation(), draw(), fs.Batching(3))
        sim.step(sim.init())

    with pytest.raises(ArgumentError, match=message):
        train()
