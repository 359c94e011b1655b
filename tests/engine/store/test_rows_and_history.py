"""What rounds report, to the history, to callbacks and to samplers that observe."""

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from tests.engine import toys

DATA = toys.federation()
COHORTS = ((0, 2, 4), (6, 1, 8), (2, None, 9))


@pytest.fixture(scope="module")
def sim():
    return fs.Simulation(
        toys.watched(toys.fedavg(toys.task())),
        DATA,
        toys.script(COHORTS),
        fs.Batching(4),
        execution=fs.Execution(lanes=2, devices=jax.devices()[:2]),
    )


@pytest.fixture(scope="module")
def history(sim):
    def evaluate(params):
        return {"test/norm": float(np.linalg.norm(toys.flat(params)))}

    _, history = sim.run(sim.init(), 3, evaluate=evaluate, eval_every=2)
    return history


def test_columns(history):
    assert history["round"].tolist() == [0, 1, 2]
    assert history["cohort/clients"].tolist() == [3, 2, 2]
    examples = [sum(toys.SIZES[k] for k in row if k is not None) for row in COHORTS]
    assert history["cohort/examples"].tolist() == examples == history["cohort/weight"].tolist()
    assert history["cohort/contributed"].tolist() == [3, 2, 2]
    assert history["cohort/nonfinite"].tolist() == [0, 0, 0]
    steps = [sum(-(-toys.SIZES[k] // 4) for k in row if k is not None) for row in COHORTS]
    assert history["plan/steps"].tolist() == steps
    for name in ("plan/efficiency", "plan/balance"):
        assert ((history[name] > 0) & (history[name] <= 1)).all()
    assert history["client/payload0"].shape == (3, 8)
    assert set(history) == {"round", "test/norm", *history.rounds[0]}
    assert len(history) == len(history.rounds)
    with pytest.raises(KeyError, match="'client/lost': the history has"):
        history["client/lost"]


def test_evaluations_are_columns_with_gaps(history):
    norm = history["test/norm"]
    assert np.isnan(norm).tolist() == [True, False, False]  # after two rounds, and after the last


def test_pandas(history):
    frame = history.to_pandas()
    assert frame.index.tolist() == [0, 1, 2]
    assert list(frame.columns) == [name for name in history if name != "round"]
    np.testing.assert_array_equal(frame["client/loss"], history["client/loss"])


def test_per_client_metrics_are_the_merged_ones_parts(history):
    for metrics, row in zip(history.rounds, COHORTS, strict=True):
        row = [k for k in row if k is not None]
        assert metrics.client_ids.tolist() == row
        sizes = np.array([toys.SIZES[k] for k in row])
        loss, real = metrics.clients("client/loss"), sizes > 0
        assert np.isnan(loss).tolist() == (~real).tolist()
        mean = np.average(loss[real], weights=sizes[real])
        assert metrics["client/loss"] == pytest.approx(mean, rel=1e-5)
        payloads = metrics.clients("client/payload0")
        np.testing.assert_allclose(payloads[real].sum(0), metrics["client/payload0"], rtol=1e-5, atol=1e-6)
        with pytest.raises(KeyError, match="kept per client are"):
            metrics.clients("cohort/clients")


def test_round_metrics_are_a_mapping(history):
    metrics = history.rounds[1]
    assert metrics.round == 1
    assert dict(metrics)["cohort/clients"] == 2
    assert "client/loss" in metrics
    assert "nothing" not in metrics
    assert "after round 2" in repr(metrics)
    assert "3 rounds" in repr(history)
    assert fs.History()["round"].tolist() == []


def test_evaluate_without_a_period_comes_last(sim):
    calls = []
    _, history = sim.run(sim.init(), 3, evaluate=lambda params: calls.append(1) or {"score": 1.0})
    assert len(calls) == 1
    assert np.isnan(history["score"]).tolist() == [True, True, False]


def test_no_rounds(sim):
    start = sim.init()
    state, history = sim.run(start, 0, evaluate=lambda params: {"score": 1.0})
    assert state is start
    assert len(history.rounds) == 0


@pytest.mark.parametrize("block, eval_every", [(1, None), (4, None), (4, 3)])
def test_callbacks_are_called_once_a_round_in_order(block, eval_every):
    sim = fs.Simulation(
        toys.fedavg(toys.task()),
        DATA,
        fs.sampler.uniform(3),
        fs.Batching(4),
        execution=fs.Execution(devices=jax.devices()[:1], rounds_per_dispatch=block),
    )
    events = []
    evaluate = lambda params: events.append("evaluate") or {}
    callbacks = [lambda m: events.append(("a", m.round)), lambda m: events.append(("b", m.round))]
    _, history = sim.run(sim.init(), 6, evaluate=evaluate, eval_every=eval_every, callbacks=iter(callbacks))
    called = [event for event in events if event != "evaluate"]
    assert called == [(name, r) for r in range(6) for name in "ab"]
    due = [2, 5] if eval_every else [5]
    assert events.count("evaluate") == len(due)
    at = [i for i, event in enumerate(events) if event == "evaluate"]
    for i, r, before in zip(at, due, [-1, *due], strict=False):  # before its round's callbacks, which see it
        assert i < events.index(("a", r))
        assert before == -1 or i > events.index(("b", before))
    assert history["round"].tolist() == list(range(6))


# Samplers that observe


def greedy(size, seen):
    """Draws the clients of the greatest last loss; those never seen come first."""

    def sample(state, round, seed):
        ids = np.argsort(-np.asarray(state), kind="stable")[:size].astype(np.int32)
        return fs.Cohort(ids, np.ones(size, bool), np.ones(size, np.float32)), state

    def observe(state, cohort, metrics):
        assert all(type(values) is np.ndarray for values in metrics.values())
        loss = metrics["client/loss"]
        assert loss.shape == (size,)
        seen.append((cohort.ids.tolist(), loss))
        state = list(state)
        for k, value in zip(cohort.ids.tolist(), loss, strict=True):
            state[k] = -1.0 if np.isnan(value) else float(value)
        return tuple(state)

    return fs.sampler.Sampler(
        init=lambda num_clients: (np.inf,) * num_clients,
        sample=sample,
        capacity=lambda num_clients: size,
        expected=lambda num_clients: float(size),
        observe=observe,
        name="greedy",
    )


def test_a_sampler_chooses_by_what_it_has_observed():
    seen = []
    sim = fs.Simulation(
        toys.fedavg(toys.task()),
        DATA,
        greedy(4, seen),
        fs.Batching(4),
        execution=fs.Execution(devices=jax.devices()[:1], rounds_per_dispatch=4),
    )
    assert sim.rounds_per_dispatch == 1
    state, history = sim.run(sim.init(), 5)
    drawn = [metrics.client_ids.tolist() for metrics in history.rounds]
    assert drawn[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [ids for ids, _ in seen] == drawn
    for (_, loss), metrics in zip(seen, history.rounds, strict=True):
        np.testing.assert_array_equal(loss, metrics.clients("client/loss"))
    last = {}
    for ids, loss in seen[:3]:
        last |= dict(zip(ids, np.nan_to_num(loss, nan=-1), strict=True))
    assert drawn[3] == sorted(last, key=lambda k: -last[k])[:4]
    assert 1 not in drawn[3] + drawn[4]

    by_steps, steps = sim.init(), []
    for _ in range(5):
        by_steps, metrics = sim.step(by_steps)
        steps.append(metrics.client_ids.tolist())
    assert steps == drawn
    assert by_steps.sampler == state.sampler
    np.testing.assert_array_equal(toys.flat(by_steps.server), toys.flat(state.server))
