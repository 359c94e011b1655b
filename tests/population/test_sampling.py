"""Samplers: what every one of them keeps, and the law of each draw."""

import numpy as np
import pytest
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.core.types import Cohort
from fedjax_sim.engine.plan.planner import Planner
from fedjax_sim.population import sampling
from fedjax_sim.population.permutation import SMALL, permuted

K, ROUNDS = 40, 30
SAMPLERS = {
    "uniform": fs.sampler.uniform(7),
    "uniform_all": fs.sampler.uniform(K),
    "poisson": fs.sampler.poisson(0.2),
    "poisson_rare": fs.sampler.poisson(0.01),
    "poisson_all": fs.sampler.poisson(1),
    "coins": fs.sampler.coins(0.3),
    "min_separation": fs.sampler.min_separation(3, 4),
    "cross_silo": fs.sampler.cross_silo(),
    "cyclic": fs.sampler.cyclic(7),
    "shuffled_epochs": fs.sampler.shuffled_epochs(8),
    "fixed": fs.sampler.fixed(np.arange(ROUNDS * 5).reshape(ROUNDS, 5) % K),
    "fixed_ragged": fs.sampler.fixed([range(r % 4) for r in range(ROUNDS)]),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def draw(sampler, round, seed=0, clients=K):
    return sampler.sample(sampler.init(clients), round, seed)[0]


def members(sampler, rounds, seed=0, clients=K):
    """[rounds, K] bool, who takes part."""
    state, out = sampler.init(clients), np.zeros((rounds, clients), bool)
    for round in range(rounds):
        cohort, state = sampler.sample(state, round, seed)
        out[round, cohort.ids[cohort.valid]] = True
    return out


# What every sampler keeps


@every_sampler
def test_cohorts_are_well_formed(sampler):
    state = sampler.init(K)
    for round in range(ROUNDS):
        cohort, state = sampler.sample(state, round, 3)
        assert isinstance(cohort, Cohort)
        assert (cohort.ids.dtype, cohort.valid.dtype, cohort.weight.dtype) == ("i4", "?", "f4")
        assert cohort.ids.shape == cohort.valid.shape == cohort.weight.shape
        assert len(cohort.ids) == sampler.capacity(K)
        assert ((cohort.ids >= 0) & (cohort.ids < K)).all()
        taken = cohort.ids[cohort.valid]
        assert len(np.unique(taken)) == len(taken)
        np.testing.assert_array_equal(cohort.weight, cohort.valid)


@every_sampler
def test_seed_and_round_alone_decide(sampler):
    forward = [draw(sampler, round, seed=1) for round in range(ROUNDS)]
    state, backward = sampler.init(K), {}
    for round in reversed(range(ROUNDS)):
        backward[round], state = sampler.sample(state, round, 1)
    for round, cohort in enumerate(forward):
        np.testing.assert_array_equal(cohort.ids, backward[round].ids)
        np.testing.assert_array_equal(cohort.valid, backward[round].valid)


@pytest.mark.parametrize("name", ["uniform", "poisson"])
def test_seeds_and_rounds_draw_differently(name):
    one, other = members(SAMPLERS[name], ROUNDS), members(SAMPLERS[name], ROUNDS, seed=1)
    assert len(np.unique(one, axis=0)) == ROUNDS
    assert not (one == other).all(axis=1).any()


@every_sampler
def test_expected_is_the_mean_size(sampler):
    many = ROUNDS if sampler.name.startswith("fixed") else 2000
    sizes = members(sampler, many).sum(axis=1)
    error = 0 if sampler.event is None else 5 * sizes.std() / many**0.5
    assert abs(sampler.expected(K) - sizes.mean()) <= error + 1e-9
    assert isinstance(sampler.expected(K), float)


@pytest.mark.parametrize(
    "name, event",
    [
        ("uniform", ("without_replacement", K, None, 7)),
        ("poisson", ("poisson", K, 0.2, None)),
        ("min_separation", ("min_separation", K, 3, 4)),
        ("cross_silo", ("without_replacement", K, None, K)),
        ("cyclic", ("min_separation", K, 6, 7)),
        ("shuffled_epochs", None),
        ("fixed", None),
    ],
)
def test_events(name, event):
    made = SAMPLERS[name].event
    assert (made and made(K)) == event


# Laws


def pair_rates(taken):
    """For each pair of clients, how often both take part."""
    counts = taken.T.astype(float) @ taken
    return counts[np.triu_indices(len(counts), 1)] / len(taken)


def near(rate, probability, draws, sigmas=5):
    return np.abs(rate - probability) <= sigmas * (probability * (1 - probability) / draws) ** 0.5


def test_uniform_sets_are_equally_likely():
    m, clients, rounds = 3, 12, 6000
    taken = members(fs.sampler.uniform(m), rounds, clients=clients)
    assert (taken.sum(axis=1) == m).all()
    assert near(taken.mean(axis=0), m / clients, rounds).all()
    pairs = pair_rates(taken)
    assert near(pairs, m * (m - 1) / (clients * (clients - 1)), rounds).all()
    assert not near(pairs.mean(), (m / clients) ** 2, rounds * len(pairs))  # not independent


@pytest.mark.parametrize("q", [0.05, 0.3])
def test_poisson_clients_are_independent(q):
    clients, rounds = 12, 6000
    taken = members(fs.sampler.poisson(q), rounds, clients=clients)
    assert near(taken.mean(axis=0), q, rounds).all()
    assert near(pair_rates(taken), q**2, rounds).all()
    counts = taken.sum(axis=1)
    for other in 2 / 3 * q, 3 / 2 * q:
        assert not near(taken.mean(axis=0), other, rounds).all()
    # Binomial mean, variance and law of the cohort's size.
    assert near(counts.mean() / clients, q, rounds * clients)
    variance = clients * q * (1 - q)
    squares = (counts - clients * q) ** 2
    assert abs(squares.mean() - variance) <= 5 * squares.std() / rounds**0.5
    top = int(counts.max())
    law = stats.binom.pmf(range(top), clients, q)
    observed = np.bincount(counts, minlength=top + 1)
    assert stats.chisquare(observed, rounds * np.append(law, 1 - law.sum())).pvalue > 1e-3


def test_participations_are_apart_and_all_take_part():
    drawn = members(fs.sampler.min_separation(3, 4), ROUNDS * 4)
    for client in range(K):
        rounds = np.flatnonzero(drawn[:, client])
        assert len(rounds) > 0
        assert (np.diff(rounds) >= 4).all()
    assert (drawn.sum(axis=1) == 3).all()
    # Within a group each client equally often, and another seed deals other groups.
    assert stats.chisquare(drawn.sum(axis=0)).pvalue > 1e-3
    groups = [frozenset(np.flatnonzero(members(fs.sampler.min_separation(10, 4), 1, seed)[0])) for seed in range(3)]
    assert len(set(groups)) == 3


@pytest.mark.parametrize("size", [1, 7, 13, 40])
def test_shuffled_epochs_have_everybody_once(size):
    rounds = -(-K // size)
    drawn = members(fs.sampler.shuffled_epochs(size), 3 * rounds).reshape(3, rounds, K)
    assert (drawn.sum(axis=1) == 1).all()
    assert (drawn.sum(axis=2)[:, :-1] == size).all()
    if size == 7:
        assert len({epoch.tobytes() for epoch in drawn}) == 3
        assert (members(fs.sampler.shuffled_epochs(size), 6, seed=1) != drawn[0]).any()


def test_permutations_are_uniform():
    """Each client in each place as often, and each ordered pair of places too."""
    count, epochs = 5, 1500
    orders = np.array([permuted(3, epoch, np.arange(count), count) for epoch in range(epochs)])
    pairs = np.bincount(orders[:, 0] * count + orders[:, 4], minlength=count**2).reshape(count, count)
    assert stats.chisquare(pairs[~np.eye(count, dtype=bool)]).pvalue > 1e-3
    count, places = SMALL + 1, np.array([0, 1, 2, SMALL])
    orders = np.array([permuted(3, epoch, places, count) for epoch in range(epochs)])
    for column in orders.T:
        assert stats.kstest(column / count, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(orders.T)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 4.5 / epochs**0.5
    for count in (1, 2, SMALL, SMALL + 1, 10_000):
        assert (np.sort(permuted(0, 1, np.arange(count), count)) == np.arange(count)).all()
    some = permuted(0, 0, np.array([10**9, 5]), 10**9 + 1)
    assert ((some >= 0) & (some <= 10**9)).all()


def test_cyclic_blocks_come_again_and_again():
    drawn = members(fs.sampler.cyclic(7), 21)
    assert (drawn[:7] == drawn[7:14]).all()
    assert (drawn[:7].sum(axis=0) == 1).all()
    assert (members(fs.sampler.cyclic(7), 7, seed=1) != drawn[:7]).any()


def test_rounds_are_independent():
    taken = members(fs.sampler.poisson(0.3), 6000, clients=12)
    assert near((taken[:-1] & taken[1:]).mean(axis=0), 0.09, 6000).all()


def test_empty_poisson_cohorts_occur_and_can_be_planned():
    sampler, data = fs.sampler.poisson(0.05), fs.data.FederatedData(np.zeros(6), [0, 2, 4, 6])
    cohorts = [draw(sampler, round, clients=3) for round in range(200)]
    empty = [cohort for cohort in cohorts if not cohort.valid.any()]
    assert near(len(empty) / 200, 0.95**3, 200)
    planner = Planner(data, fs.Batching(2))
    _, made = planner.plan(empty[0], planner.shape(sampler.capacity(3), 1), 0, 0)
    assert (made.clients, made.steps) == (0, 0)


@pytest.mark.parametrize("count", [33, 200, 1000])
def test_a_poisson_draw_over_its_capacity_widens_and_is_not_cut(monkeypatch, count):
    sampler = fs.sampler.poisson(0.01)
    assert sampler.capacity(1000) < 33

    class Unlikely:
        def __init__(self, *args):
            self.choice = np.random.default_rng(0).choice
            self.binomial = lambda clients, probability: count

    monkeypatch.setattr(sampling.rng, "generator", Unlikely)
    cohort = draw(sampler, 0, clients=1000)
    assert cohort.valid.sum() == count == len(np.unique(cohort.ids[cohort.valid]))
    assert count <= len(cohort.ids) <= min(1000, 2 * count)


@pytest.mark.parametrize("clients", [1, 2, 40, 100_000])
@pytest.mark.parametrize("q", [1e-6, 0.01, 0.5, 1])
def test_poisson_capacity_is_rarely_exceeded(clients, q):
    capacity = fs.sampler.poisson(q).capacity(clients)
    assert 1 <= capacity <= clients
    assert stats.binom.sf(capacity, clients, q) < 1e-6


# Refusals


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fs.sampler.uniform(41).init(K), "cohort_size=41.* 40 clients"),
        (lambda: fs.sampler.uniform(0), "cohort_size=0"),
        (lambda: fs.sampler.uniform(2.5), "cohort_size=2.5"),
        (lambda: fs.sampler.uniform(True), "cohort_size=True"),
        (lambda: fs.sampler.poisson(0), "probability=0"),
        (lambda: fs.sampler.poisson(1.5), "probability=1.5"),
        (lambda: fs.sampler.poisson(-0.1), "probability=-0.1"),
        (lambda: fs.sampler.poisson(float("nan")), "probability=nan"),
        (lambda: fs.sampler.cyclic(41).init(K), "blocks=41: the population has only 40"),
        (lambda: fs.sampler.cyclic(0), "blocks=0"),
        (lambda: fs.sampler.shuffled_epochs(41).init(K), "cohort_size=41"),
        (lambda: fs.sampler.fixed([]), "at least one round"),
        (lambda: fs.sampler.fixed([[0, 1], [2, 1, 2]]), r"cohorts\[1\]=.*more than once"),
        (lambda: fs.sampler.min_separation(0, 2), "cohort_size=0"),
        (lambda: fs.sampler.min_separation(2, 0), "separation=0"),
        (lambda: fs.sampler.min_separation(11, 4).init(K), r"cohort_size=11: the population of 40 has 10 clients"),
        (lambda: fs.sampler.fixed([[0.5, 1]]), "cohorts"),
        (lambda: fs.sampler.fixed([[0], [3, K]]).init(K), r"cohorts\[1\]=.*0\.\.39"),
        (lambda: fs.sampler.fixed([[-1]]).init(K), r"cohorts\[0\]=.*0\.\.39"),
        (lambda: fs.sampler.fixed([[2**32]]).init(K), r"cohorts\[0\]"),
        (lambda: draw(fs.sampler.fixed([[0], [1]]), 2), "round=2.*2 cohorts"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fs.FedSimError, match=message):
        make()
