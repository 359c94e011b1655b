"""Shapes and dtypes that docstrings promise of cohorts, plans and a cohort's results, in any combination of sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float32, Int32, Shaped, jaxtyped

import fedjax_sim as fs
from fedjax_sim.engine.plan.planner import Planner
from fedjax_sim.engine.plan.words import pack_plans, unpack_plan
from fedjax_sim.engine.round.phase import phase_rounds
from tests.engine import toys

A = np.ndarray
COHORT = {"ids": Int32[A, "C"], "valid": Bool[A, "C"], "weight": Float32[A, "C"]}
PLAN = {"order": Int32[A, "D M"], "chunks": Int32[A, "D"], "round": Int32[A, "D"]}
LANES = {
    "weight": Float32[A, "D T L"],
    **dict.fromkeys(("start", "size", "steps", "client_id", "slot", "version", "neighbour"), Int32[A, "D T L"]),
}
RESULT = {
    "weight": Float32[A, ""],
    "count": Float32[A, ""],
    "weights": Float32[A, "D T L"],
    "contributes": Bool[A, "D T L"],
}


def wrong(*pairs) -> list[str]:
    """Names of those, as NumPy has them, whose shape or dtype is not theirs; an axis has one length in all of them."""
    with jaxtyped("context"):
        return [
            f"{name}: {leaf.dtype}{leaf.shape}"
            for shapes, record in pairs
            for name, kind in shapes.items()
            if not isinstance(leaf := np.asarray(getattr(record, name)), kind)
        ]


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    devices=st.integers(1, 3),
    lanes=st.integers(1, 4),
    extra=st.integers(0, 3),
    batch=st.integers(1, 4),
    epochs=st.integers(1, 2),
    homes=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_plans(sizes, devices, lanes, extra, batch, epochs, homes):
    data, capacity = toys.federation(sizes), len(sizes) + extra
    at = np.arange(len(sizes)) % devices if homes else None
    planner = Planner(data, fs.Batching(batch, epochs=epochs), devices, at)
    shape = planner.shape(capacity, lanes)
    cohort, _ = toys.script([range(len(sizes))], capacity).sample([range(len(sizes))], 0, 0)
    plan, _ = planner.plan(cohort, shape, seed=0, round=2)
    assert not wrong((COHORT, cohort), (PLAN, plan), (LANES, plan.lanes))
    words = pack_plans([plan, plan])
    again = jax.tree.map(np.asarray, unpack_plan(jnp.asarray(words[1]), shape))
    assert not wrong((PLAN, again), (LANES, again.lanes))
    jax.tree.map(np.testing.assert_array_equal, again, plan)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "median"])
def test_results_of_a_cohort(name, devices):
    """Sums have the payload's shapes; what is kept of each client is in lane order, messages only where needed."""
    sim = fs.Simulation(
        toys.ALGORITHMS[name](toys.task()),
        toys.federation(),
        fs.sampler.uniform(5),
        fs.Batching(3),
        **toys.executed(lanes=2, devices=jax.devices()[:devices]),
    )
    state = sim.init()
    plans = sim.executor.plan(state, 1, 1)
    plan = unpack_plan(plans.words[0], plans.shape)
    (phase,) = phase_rounds(sim.parts, plans.shape.capacity)

    def run(state, plan, constants):
        return phase.train(
            phase.broadcast(np.zeros(2, np.uint32), state, plan), phase.rows(state.rows), plan, constants
        )

    result = jax.eval_shape(run, state, plan, sim.executor.constants)
    plan = jax.tree.map(np.asarray, plan)
    like = lambda leaf: np.zeros(leaf.shape, leaf.dtype)
    arrays = jax.tree.map(like, result)
    assert not wrong((PLAN, plan), (LANES, plan.lanes), (RESULT, arrays))
    payload, linear = sim.parts.sent[0].payload, name != "median"
    for kept, axes in ((arrays.total, ""), (arrays.messages, "D T L ")):
        if linear == (axes == ""):
            for leaf, own in zip(jax.tree.leaves(kept), jax.tree.leaves(payload), strict=True):
                with jaxtyped("context"):
                    assert isinstance(plan.lanes.steps, Int32[A, "D T L"])
                    assert isinstance(leaf, Shaped[A, axes + " ".join(map(str, own.shape))])
        else:
            assert not jax.tree.leaves(kept)
    for leaf in jax.tree.leaves(arrays.metrics):
        assert leaf.shape[:3] == plan.lanes.steps.shape
    for leaf, row in zip(jax.tree.leaves(result.rows), jax.tree.leaves((state.rows.client, None)), strict=True):
        assert (leaf.shape, leaf.dtype) == (row.shape, row.dtype)


def test_a_wrong_axis_is_seen():
    """The check itself: a plan whose lanes were lost, a cohort of floats, axes that differ between records."""
    planner = Planner(toys.federation(), fs.Batching(2), 1)
    shape = planner.shape(4, 2)
    cohort, _ = toys.script([range(4)]).sample([range(4)], 0, 0)
    plan, _ = planner.plan(cohort, shape, seed=0, round=0)
    assert not wrong((PLAN, plan), (LANES, plan.lanes))
    assert len(wrong((LANES, dataclasses.replace(plan.lanes, steps=plan.lanes.steps[:, :, :1])))) == 1
    cohort = dataclasses.replace(cohort, ids=cohort.ids.astype(np.float32))
    assert wrong((COHORT, cohort)) == ["ids: float32(4,)"]
