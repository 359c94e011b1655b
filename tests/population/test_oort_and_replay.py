"""Oort against a loop that follows the paper, and cohorts that are replayed from a run's folder."""

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.population.sampler.oort import exploited
from tests.engine import toys

CLIENTS = toys.NUM_CLIENTS


def feedback(ids, losses, seconds):
    metrics = {"client/loss": losses, "clock/seconds": seconds}
    drawn = fs.sampler.cohort(np.array(ids), len(ids))
    return drawn, {name: np.array(v, float) for name, v in metrics.items()}


def scored(utility, seconds, last, rounds, percentile, alpha):
    """The paper's util of each client, in a loop."""
    top, found = np.percentile(list(utility.values()), 95), {}
    preferred = np.percentile(list(seconds.values()), percentile)
    for k in utility:
        found[k] = min(utility[k], top) + np.sqrt(0.1 * np.log(rounds) / last[k])
        if seconds[k] > preferred:
            found[k] *= (preferred / seconds[k]) ** alpha
    return found


def test_oort_draws_by_utility_staleness_and_speed():
    sizes = np.arange(1, 9)
    sampler = fs.sampler.oort(4, sizes, explore=0.0, explore_least=0.0, cutoff=0.5)
    state = sampler.init(8)
    losses, seconds = np.linspace(1, 3, 8), np.array([1.0, 9, 2, 8, 3, 7, 4, 6])
    for round, ids in enumerate(([0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3])):
        drawn, state = sampler.sample(state, round, 0)
        assert len(set(drawn.ids.tolist())) == 4
        state = sampler.observe(state, *feedback(ids, losses[ids], seconds[ids]))
    last = {k: 3 if k < 4 else 2 for k in range(8)}
    scores = scored(dict(enumerate(sizes * losses)), dict(enumerate(seconds)), last, 4, 30, 2.0)
    needed = sorted(scores.values())[-4]
    admitted = [k for k in scores if scores[k] >= 0.5 * needed]
    counts = np.zeros(8)
    for seed in range(3000):
        counts[sampler.sample(state, 3, seed)[0].ids] += 1
    assert set(np.flatnonzero(counts)) == set(admitted)
    assert 4 < len(admitted) < 8
    weights, chance = np.array([scores[k] for k in admitted]), np.zeros(len(admitted))
    for seed in range(6000):  # one after another, in proportion
        draw = np.random.default_rng(seed)
        chance[draw.choice(len(admitted), 4, replace=False, p=weights / weights.sum())] += 1 / 6000
    assert np.abs(counts[admitted] / 3000 - chance).max() < 0.04


def test_oort_explores_less_and_less_and_its_pacer_gives_time():
    sampler = fs.sampler.oort(10, explore=1.0, decay=0.5, explore_least=0.1, pacer_rounds=2)
    state, new = sampler.init(60), []
    for round in range(8):
        drawn, state = sampler.sample(state, round, 0)
        new.append(int((state["last"][drawn.ids] == 0).sum()))
        state = sampler.observe(state, *feedback(drawn.ids, np.full(10, 1.0 / (1 + round)), np.ones(10)))
    assert new == [10, 5, 3, 1, 1, 1, 1, 1]  # 10, 5, 2.5, 1.25, and a tenth at least
    assert state["percentile"] == 45  # each window of two rounds gained less than the one before, but the first
    same = sampler.sample(state, 8, 0)[0].ids
    np.testing.assert_array_equal(sampler.sample(state, 8, 0)[0].ids, same)


def simulate(sampler, fleet=None, **options):
    parts = (toys.fedavg(toys.task()), toys.federation(), sampler, fs.Batching(3))
    return fs.Simulation(*parts, fleet=fleet, **toys.executed(lanes=2, **options))


FLEET = fs.fleet.lognormal(0.6, fs.fleet.Device(seconds_per_step=1.0))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of Oort on a fleet, with deadlines and dropouts."""
    folder = tmp_path_factory.mktemp("recorded")
    p = fs.population
    sampler = p.chain(fs.sampler.oort(5), p.deadline(3.5, partial="keep"), p.dropout(0.3))
    sim = simulate(sampler, FLEET)
    state, history = sim.run(sim.init(), 6, run_dir=folder, checkpoint_every=3)
    return sim, state, history, folder


def test_oort_trains_and_resumes_to_the_bit(recorded):
    sim, state, _, folder = recorded
    assert (state.sampler["sampler"]["last"] > 0).sum() >= 5
    slow = state.sampler["sampler"]["seconds"]
    assert (slow[state.sampler["sampler"]["last"] > 0] > 0).all()
    paused = sim.restore(folder, round=3)
    resumed, _ = sim.run(paused, 3)
    jax.tree.map(np.testing.assert_array_equal, (resumed.server, resumed.sampler), (state.server, state.sampler))


def test_a_run_is_replayed_with_its_arrivals_and_steps(recorded):
    _, state, history, folder = recorded
    assert history["population/dropped"].any()
    again = simulate(fs.sampler.replay(folder))
    replayed, rounds = again.run(again.init(), 6)
    jax.tree.map(np.testing.assert_array_equal, replayed.server, state.server)
    for one, other in zip(history.rounds, rounds.rounds, strict=True):
        np.testing.assert_array_equal(one.client_ids, other.client_ids)
        np.testing.assert_array_equal(one.clients("client/loss"), other.clients("client/loss"))
    with pytest.raises(ArgumentError, match=r"round=6: .* recorded rounds up to 5"):
        again.run(replayed, 1)


def test_bad_input(tmp_path, recorded):
    for make, message in (
        (lambda: fs.sampler.oort(0), "cohort_size=0"),
        (lambda: fs.sampler.oort(3).init(2), "population has 2"),
        (lambda: fs.sampler.oort(3, sizes=[1, 2]).init(3), "sizes="),
        (lambda: fs.sampler.oort(3, cutoff=1.2), "cutoff=1.2"),
        (lambda: fs.sampler.oort(3, percentile=0.0), "percentile=0.0"),
        (lambda: fs.sampler.replay(tmp_path), "has no per-client table"),
        (lambda: fs.sampler.replay(recorded[3]).init(3), "and the population only 3"),
    ):
        with pytest.raises(ArgumentError, match=message):
            make()
    stale = simulate(fs.sampler.asynchronous(3, 2))
    stale.run(stale.init(), 2, run_dir=tmp_path / "stale")
    with pytest.raises(ArgumentError, match="started from old models"):
        fs.sampler.replay(tmp_path / "stale")


def test_negative_losses_fill_a_cohort():
    """A share of a negative score lies above it."""
    scores = -np.array([1.0, 2.0, 3.0, 4.0])
    chosen = exploited(np.random.default_rng(0), np.arange(4), scores, 3, cutoff=0.95)
    assert sorted(chosen.tolist()) == [0, 1, 2]
