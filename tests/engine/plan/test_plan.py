"""Plans, read back one example at a time in plain Python, and the laws of their shuffles and dealing."""

import heapq
import math
from collections import Counter
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.core.types import Cohort
from fedjax_sim.engine.plan.planner import Planner, _sort_segments, deal


def federation(sizes, index=None):
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows = int(offsets[-1]) if index is None else max(index, default=-1) + 1
    index = None if index is None else np.array(index, np.int64)
    return fs.data.FederatedData({"x": np.arange(rows)}, offsets, index)


def cohort_of(ids, capacity=None, **extras):
    ids = np.asarray(ids, np.int32)
    valid = np.arange(capacity or len(ids)) < len(ids)
    ids = np.pad(ids, (0, len(valid) - len(ids)), constant_values=-7)  # no client's: must not be read
    return Cohort(ids, valid, valid.astype(np.float32), **extras)


def make_plan(data, batching, cohort, devices=1, lanes=1, homes=None, seed=0, round=0):
    planner = Planner(data, batching, devices, homes)
    shape = planner.shape(len(cohort.ids), lanes)
    return *planner.plan(cohort, shape, seed, round), shape


def own_rows(data, client, batching):
    """The rows that a client may use, in stored order."""
    begin, end = int(data.offsets[client]), int(data.offsets[client + 1])
    rows = list(range(begin, end)) if data.index is None else data.index[begin:end].tolist()
    return rows[: batching.max_examples]


def lanes_of(plan):
    """(device, chunk, lane) of each client in the plan, and its record."""
    names = "start", "size", "steps", "client_id", "slot", "weight", "version"
    for at in np.ndindex(plan.lanes.slot.shape):
        lane = {name: getattr(plan.lanes, name)[at] for name in names}
        if lane["steps"]:
            yield at, lane


def read(plan, batching):
    """`client -> epochs -> batches -> rows`: what `ClientBatches.batch` would gather, step by step."""
    B, epochs_of = batching.batch_size, {}
    for (device, _, _), lane in lanes_of(plan):
        start, size = int(lane["start"]), int(lane["size"])
        each = size // B if batching.drop_remainder else math.ceil(size / B)
        stride = each * B if batching.drop_remainder else size
        epochs = epochs_of.setdefault(int(lane["client_id"]), [])
        for step in range(lane["steps"]):
            epoch, within = divmod(step, each)
            begin = start + epoch * stride + within * B
            end = min(begin + B, start + (epoch + 1) * stride)
            assert end <= plan.order.shape[1], "reads past M"
            if within == 0:
                epochs.append([])
            epochs[epoch].append(plan.order[device, begin:end].tolist())
    return epochs_of


def flat(batches):
    return [row for batch in batches for row in batch]


@st.composite
def cases(draw):
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    total, clients = sum(sizes), len(sizes)
    index = None
    if draw(st.booleans()):
        index = draw(st.permutations(range(total + 3)))[:total]
    batching = fs.Batching(
        draw(st.integers(1, 5)),
        **{draw(st.sampled_from(["epochs", "steps"])): draw(st.integers(1, 7))},
        shuffle=draw(st.booleans()),
        drop_remainder=draw(st.booleans()),
        max_examples=draw(st.none() | st.integers(1, 8)),
    )
    members = draw(st.lists(st.integers(0, clients - 1), unique=True, max_size=clients))
    capacity = len(members) + draw(st.integers(0, 3)) or 1

    def per_place(elements):
        return st.none() | st.lists(elements, min_size=capacity, max_size=capacity).map(np.array)

    cohort = cohort_of(
        members,
        capacity,
        max_steps=draw(per_place(st.integers(0, 9))),
        arrives=draw(per_place(st.booleans())),
        version=draw(per_place(st.integers(0, 5))),
    )
    cohort.weight[:] = cohort.valid * (1 + np.arange(capacity)) / 2
    devices = draw(st.integers(1, 4))
    homes = None
    if draw(st.booleans()):
        home = st.integers(0, devices - 1)
        homes = np.array(draw(st.lists(home, min_size=clients, max_size=clients)))
    lanes, round = draw(st.integers(1, 4)), draw(st.integers(0, 2**20))
    return federation(sizes, index), batching, cohort, devices, lanes, homes, round


@settings(max_examples=400, deadline=None)
@given(cases())
def test_plan_holds_exactly_the_cohorts_work(case):
    data, batching, cohort, devices, lanes, homes, round = case
    plan, made, shape = make_plan(data, batching, cohort, devices, lanes, homes, 3, round)
    B = batching.batch_size

    # Shapes are the planner's, whatever the cohort.
    assert plan.order.shape == (devices, shape.rows)
    assert plan.order.dtype == np.int32
    for name in "start", "size", "steps", "client_id", "slot", "weight", "version":
        field = getattr(plan.lanes, name)
        assert field.shape == (devices, shape.chunks, lanes)
        assert field.dtype == (np.float32 if name == "weight" else np.int32)
    assert plan.chunks.shape == plan.round.shape == (devices,)
    assert (plan.round == round).all()

    # Who trains, and for how long.
    expected = {}
    for place in np.flatnonzero(cohort.valid):
        used = len(own_rows(data, cohort.ids[place], batching))
        each = used // B if batching.drop_remainder else math.ceil(used / B)
        steps = (batching.steps or batching.epochs * each) if each else 0
        if cohort.max_steps is not None:
            steps = min(steps, cohort.max_steps[place])
        if steps and (cohort.arrives is None or cohort.arrives[place]):
            expected[int(place)] = used, each, steps
    found = list(lanes_of(plan))
    assert sorted(lane["slot"] for _, lane in found) == sorted(expected)
    assert (plan.lanes.slot[plan.lanes.steps == 0] == shape.capacity).all()
    for (device, chunk, _), lane in found:
        place = int(lane["slot"])
        assert lane["client_id"] == cohort.ids[place]
        assert lane["weight"] == cohort.weight[place]
        assert lane["version"] == (0 if cohort.version is None else cohort.version[place])
        assert (lane["size"], lane["steps"]) == expected[place][::2]
        assert chunk < plan.chunks[device]
        assert homes is None or device == homes[lane["client_id"]]

    # What they train on.
    epochs_of = read(plan, batching)
    for place, (_, each, steps) in expected.items():
        epochs, own = (
            epochs_of[int(cohort.ids[place])],
            own_rows(data, cohort.ids[place], batching),
        )
        assert sum(map(len, epochs)) == steps
        assert all(len(epoch) == each for epoch in epochs[:-1])
        for epoch in epochs:
            rows = flat(epoch)
            assert len(set(rows)) == len(rows)
            assert set(rows) <= set(own)
            assert [len(batch) for batch in epoch] == [
                B if batching.drop_remainder else min(B, len(own) - i * B) for i in range(len(epoch))
            ]
            if len(epoch) == each and not batching.drop_remainder:
                assert sorted(rows) == sorted(own)
            if not batching.shuffle:
                assert rows == own[: len(rows)]
        if steps == each * batching.epochs and not (batching.steps or batching.drop_remainder):
            seen = Counter(row for epoch in epochs for row in flat(epoch))
            assert seen == dict.fromkeys(own, batching.epochs)

    # Statistics.
    longest = [[max(chunk) for chunk in device] for device in plan.lanes.steps.tolist()]
    computed, loads = sum(map(sum, longest)) * lanes, [sum(device) for device in longest]
    total = sum(steps for _, _, steps in expected.values())
    assert (made.clients, made.steps) == (len(expected), total)
    assert made.examples == sum(used for used, _, _ in expected.values())
    assert made.efficiency == pytest.approx(total / computed if total else 1)
    assert made.balance == pytest.approx(sum(loads) / devices / max(loads) if total else 1)


def test_reading_is_the_engines():
    """`read` above gathers what the client's view of the plan gathers."""
    batching = fs.Batching(3, epochs=2)
    data = federation([5, 0, 7, 3])
    plan, _, _ = make_plan(data, batching, cohort_of(range(4)), lanes=2)
    epochs_of = read(plan, batching)
    for (device, _, _), lane in lanes_of(plan):
        batches = fs.client.ClientBatches(
            lane["steps"],
            jnp.float32(lane["size"]),
            lane["client_id"],
            {},
            bound=lane["steps"],
            arrays=jax.tree.map(jnp.asarray, data.arrays),
            order=jnp.asarray(plan.order[device]),
            start=lane["start"],
            stride=lane["size"],
            batch_size=3,
        )
        steps = [batches.batch(jnp.int32(s)) for s in range(lane["steps"])]
        gathered = [np.asarray(b["x"])[np.asarray(b["mask"]) == 1].tolist() for b in steps]
        assert gathered == [batch for epoch in epochs_of[int(lane["client_id"])] for batch in epoch]


# Shuffles


def order_of(client, sizes=(20, 30, 20, 25), others=(), seed=0, round=0, batch_size=7, **options):
    """A client's rows, epoch by epoch, counted from its first."""
    batching = fs.Batching(batch_size, epochs=2)
    data = federation(sizes)
    plan, _, _ = make_plan(data, batching, cohort_of([*others, client]), seed=seed, round=round, **options)
    epochs = read(plan, batching)[client]
    return [[row - int(data.offsets[client]) for row in flat(epoch)] for epoch in epochs]


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"others": [0, 1]},
        {"others": [3, 1, 0]},
        {"devices": 3, "others": [3]},
        {"lanes": 4, "others": [3, 0]},
        {"devices": 2, "homes": np.array([0, 0, 1, 1]), "others": [3]},
        {"batch_size": 4},
        {"sizes": (3, 0, 20)},
    ],
    ids=str,
)
def test_shuffle_depends_on_seed_round_and_client_alone(elsewhere):
    assert order_of(2, **elsewhere) == order_of(2)


def test_shuffles_differ():
    first, second = order_of(2)
    assert first != second  # between epochs
    assert first not in order_of(0)  # clients
    assert first not in order_of(2, round=1)
    assert first not in order_of(2, seed=1)


def shuffles(n, count, over):
    """`count` shuffles of n examples, drawn over clients, rounds or epochs."""
    clients, rounds, epochs = (count if over == name else 1 for name in ("client", "round", "epoch"))
    data, batching = federation([n] * clients), fs.Batching(n, epochs=epochs)
    planner, cohort = Planner(data, batching), cohort_of(range(clients))
    shape = planner.shape(clients, 1)
    plans = [planner.plan(cohort, shape, 11, round)[0].order[0] for round in range(rounds)]
    return np.concatenate(plans).reshape(-1, n) % n


def p_uniform(values, kinds):
    counts = Counter(values)
    assert set(counts) <= set(kinds)
    return stats.chisquare([counts[kind] for kind in kinds]).pvalue


@pytest.mark.parametrize("over", ["client", "round", "epoch"])
def test_shuffles_are_uniform_and_independent(over):
    kinds = list(permutations(range(3)))
    orders = [tuple(order) for order in shuffles(3, 3600, over).tolist()]
    assert p_uniform(orders, kinds) > 1e-3
    assert p_uniform(zip(orders[::2], orders[1::2], strict=True), [(a, b) for a in kinds for b in kinds]) > 1e-3
    # The test has teeth: one order in twenty replaced is seen.
    assert p_uniform([kinds[0] if i % 20 == 0 else o for i, o in enumerate(orders)], kinds) < 1e-3


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    draws=st.randoms(use_true_random=False),
)
def test_packed_and_plain_sorts_agree(sizes, draws):
    segment = np.repeat(np.arange(len(sizes)), sizes)
    position = np.concatenate([np.arange(size) for size in sizes])
    draw = np.array([draws.choice([0, 1, 2**32 - 1]) for _ in segment], np.uint64)  # with ties
    wide = 1 << 32  # too wide to pack
    expected = [p for _, _, p in sorted(zip(segment, draw, position, strict=True))]
    for by in 1, 7, wide:
        assert _sort_segments(segment * by + by - 1, draw, position).tolist() == expected
        assert (_sort_segments(segment, draw, position * by) // by).tolist() == expected


# Dealing


@given(
    st.lists(st.integers(1, 12), max_size=40).map(lambda s: sorted(s, reverse=True)),
    st.integers(1, 6),
)
def test_deal_is_longest_first_to_the_least_loaded(steps, devices):
    heap = [0] * devices
    for each in steps:
        heapq.heapreplace(heap, heap[0] + each)
    dealt = deal(np.array(steps, np.int64), devices)
    loads = np.bincount(dealt, weights=steps, minlength=devices)
    assert sorted(loads) == sorted(heap)
    assert loads.max() - loads.min() <= max(steps, default=0)


@pytest.mark.parametrize("cut", [{}, {"max_steps": np.array([9, 9, 1])}], ids=["whole", "cut"])
def test_efficiency_and_balance_by_hand(cut):
    # Steps 4, 2, 1 (or 4, 2 and 1 of 3) on two devices: {4} and {2, 1}; two lanes compute 2 x 4 and 2 x 2.
    data = federation([4, 2, 3 if cut else 1])
    _, made, _ = make_plan(data, fs.Batching(1), cohort_of(range(3), **cut), devices=2, lanes=2)
    assert made.efficiency == pytest.approx(7 / 12)
    assert made.balance == pytest.approx(3 / 4)


# Refusals and limits


@pytest.mark.parametrize(
    "ids, message",
    [([0, 1, 0], "more than once"), ([0, 4], r"0\.\.4.*0\.\.3"), ([-1, 2], r"-1\.\.2")],
)
def test_cohorts_that_cannot_be_planned(ids, message):
    with pytest.raises(fs.FedSimError, match=message):
        make_plan(federation([1, 2, 3, 4]), fs.Batching(1), cohort_of(ids))


@pytest.mark.parametrize("devices, lanes", [(1, 1), (3, 2)])
@pytest.mark.parametrize("ids", [[], [1]], ids=["nobody", "no examples"])
def test_an_empty_round_is_a_plan(devices, lanes, ids):
    cohort = cohort_of(ids, capacity=4)
    plan, made, _ = make_plan(federation([3, 0]), fs.Batching(2), cohort, devices, lanes)
    assert not plan.lanes.steps.any()
    assert not plan.chunks.any()
    assert made == (0, 0, 0, 0, 1.0, 1.0, len(ids), 0)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_size": 1, "epochs": 0},
        {"batch_size": 1, "steps": 0},
        {"batch_size": 1, "max_examples": 0},
        {"batch_size": 1, "epochs": 2, "steps": 3},
    ],
    ids=str,
)
def test_batchings_that_cannot_be(options):
    with pytest.raises(fs.FedSimError, match="="):
        fs.Batching(**options)


def test_a_million_clients_need_no_generator_each(monkeypatch):
    made = Counter()
    for name in "Generator", "PCG64", "SeedSequence", "default_rng", "RandomState":
        original = getattr(np.random, name)

        def counted(*args, name=name, original=original, **kwargs):
            made[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(np.random, name, counted)
    clients = 1_000_000
    data = fs.data.FederatedData({"x": np.zeros(3 * clients, np.uint8)}, 3 * np.arange(clients + 1))
    sampler = fs.sampler.uniform(1000)
    cohort, _ = sampler.sample(sampler.init(clients), round=5, seed=0)
    plan, stats_, _ = make_plan(data, fs.Batching(2), cohort, devices=2, lanes=4)
    assert stats_.clients == 1000
    assert plan.order.shape[1] < 10_000  # the plan is as large as the cohort, not the population
    assert sum(made.values()) <= 4
