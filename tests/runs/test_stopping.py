"""Callbacks that end a run, and that keep its best model."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.simulation.history import History, RoundMetrics
from tests.engine import toys


def simulation(**options) -> fs.Simulation:
    algorithm = fs.fedavg(toys.task(), optax.sgd(0.1))
    return fs.Simulation(
        algorithm, toys.federation(), fs.sampler.uniform(4), fs.Batching(3), **toys.executed(**options)
    )


@pytest.fixture(scope="module")
def sim():
    return simulation()


def ends_at(round: int):
    return lambda metrics: fs.runs.Stop("enough") if metrics.round + 1 == round else None


@pytest.mark.parametrize("eval_every", [None, 1, 3, 4])
def test_an_ended_run_is_one_of_so_many_rounds(sim, eval_every, tmp_path):
    """Bit for bit, whether or not a dispatch was in flight, evaluation too; its folder goes on as any other."""
    evaluate = lambda params: {"w": float(jnp.sum(params["w"]))}
    options = {"evaluate": evaluate, "eval_every": eval_every}
    state, history = sim.run(sim.init(), 8, run_dir=tmp_path / "run", callbacks=[ends_at(3)], **options)
    expected, whole = sim.run(sim.init(), 3, **options)
    assert (state.round, history.stopped, whole.stopped) == (3, "enough", None)
    np.testing.assert_array_equal(toys.flat(state.server), toys.flat(expected.server))
    for name in ("client/loss", "w"):
        np.testing.assert_array_equal(history[name], whole[name])
    assert fs.runs.read(tmp_path / "run").metrics["w"][2] == whole["w"][2]
    again, _ = sim.run(sim.restore(tmp_path / "run"), 2, run_dir=tmp_path / "run", **options)
    straight, _ = sim.run(sim.init(), 5)
    np.testing.assert_array_equal(toys.flat(again.server), toys.flat(straight.server))
    assert list(fs.runs.read(tmp_path / "run").metrics["round"]) == [0, 1, 2, 3, 4]


def test_rounds_that_are_dispatched_together_end_together():
    sim = simulation(rounds_per_dispatch=4)
    state, history = sim.run(sim.init(), 12, callbacks=[ends_at(2)])
    assert state.round == len(history.rounds) == 4


def test_other_values_end_nothing(sim):
    assert sim.run(sim.init(), 2, callbacks=[lambda metrics: True, lambda metrics: "stop"])[0].round == 2


@pytest.mark.parametrize(
    "values, mode, min_delta, ends",
    [
        ([3.0, 2.0, 1.0, 0.5], None, 0.0, None),
        ([3.0, 2.0, 2.0, 2.5], None, 0.0, 3),
        ([3.0, 2.9, 2.8, 1.0], None, 0.5, 2),
        ([3.0, 2.9, 2.2, 1.0], None, 0.5, None),
        ([np.nan, np.nan, 1.0], None, 0.0, 1),
        ([1.0, 0.5, np.nan, 2.0], None, 0.0, 3),
        ([1.0, np.nan, 0.5, 2.0], None, 0.0, None),
        ([1.0, 2.0, 3.0, 4.0], "max", 0.0, None),
        ([1.0, 0.5, 0.7, 4.0], "max", 0.0, 2),
    ],
)
def test_early_stop(values, mode, min_delta, ends):
    stop = fs.runs.early_stop("test/loss", 2, mode=mode, min_delta=min_delta)
    said = [stop({"test/loss": value}) for value in values]
    assert next((i for i, each in enumerate(said) if each), None) == ends
    skipping = fs.runs.early_stop("test/loss", 2, mode=mode, min_delta=min_delta)
    told = []
    for value in values:  # rounds without a value do not count
        told += [skipping({"test/loss": value}), skipping({}), skipping({})][:1]
    assert told == said


def test_a_misspelt_metric_is_told():
    stop = fs.runs.early_stop("tset/loss", patience=3)
    for _ in range(103):
        assert stop({"test/loss": 1.0}) is None
    with pytest.raises(ArgumentError, match=r"'tset/loss': none of 104 rounds had it; this one has \['test/loss'\]"):
        stop({"test/loss": 1.0})
    with pytest.raises(ArgumentError, match="patience"):
        fs.runs.early_stop("loss", patience=0)


def test_the_best_model_is_kept(sim):
    values = iter([3.0, 1.0, 2.0, 1.0])
    seen = []

    def evaluate(params):
        seen.append(np.asarray(params["w"]))
        return {"test/loss": next(values)}

    best = fs.runs.keep_best("test/loss")
    _, history = sim.run(sim.init(), 4, evaluate=evaluate, eval_every=1, callbacks=[best])
    assert (best.round, best.value) == (2, 1.0)
    np.testing.assert_array_equal(np.asarray(best.params["w"]), seen[1])
    assert all(metrics.params is None for metrics in history.rounds)
    assert history.best("test/loss") == (1.0, 2)
    assert history.best("test/loss", mode="max") == (3.0, 1)
    with pytest.raises(ArgumentError, match="'no'"):
        history.best("no")


def test_a_time_limit(sim, monkeypatch):
    now = iter(np.arange(0, 1000, 25.0))
    monkeypatch.setattr("fedjax_sim.runs.stopping.time.monotonic", lambda: next(now))
    state, history = sim.run(sim.init(), 20, callbacks=[fs.runs.time_limit(minutes=1)])
    assert 1 < state.round < 6
    assert history.stopped == "1 minutes have passed"


def test_a_table_for_a_paper(sim):
    _, history = sim.run(sim.init(), 5, evaluate=lambda params: {"test/accuracy_p50": 0.5}, eval_every=5)
    lines = history.to_latex(every=2).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrr}"
    assert lines[2] == r"rounds & client/loss & client/size & test/accuracy\_p50 \\"
    assert [line.split(" & ")[0] for line in lines[4:-2]] == ["2", "4", "5"]
    assert lines[-3].endswith(r"& 0.5 \\")
    assert lines[4].endswith(r"& -- \\")
    with pytest.raises(ArgumentError, match="'test/acuracy': no round has it"):
        history.to_latex(["test/acuracy"])


def test_a_table_of_what_is_no_number():
    """A histogram is told by its shape, as elsewhere."""
    output = type("Output", (), {"merged": {}})()
    metrics = RoundMetrics(0, fs.sampler.cohort(np.arange(1), 1), None, output, None)
    metrics.evaluation = {"lengths": np.arange(3.0), "loss": np.float32("nan")}
    assert History([metrics]).to_latex(["lengths", "loss"]).splitlines()[4] == r"1 & float64[3] & -- \\"
