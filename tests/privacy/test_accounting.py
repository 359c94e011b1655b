"""Epsilon against dp-accounting itself, published formulas, and exact divergences of small cases."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

import fedjax_sim as fs
from fedjax_sim.privacy import curves
from fedjax_sim.privacy.accounting import Meter
from fedjax_sim.privacy.rounds import Rounds

dp = pytest.importorskip("dp_accounting")
pld = pytest.importorskip("dp_accounting.pld")
rdp = pytest.importorskip("dp_accounting.rdp")
Mechanism = fs.aggregate.Mechanism

# z, q, T, delta: epsilon by RDP, by PLD, and by PLD under replace-one. Computed elsewhere, with dp-accounting 0.6.
TABLE = {
    (1, 0.01, 1000, 1e-5): (2.1014, 1.8282, 2.8434),
    (1, 0.01, 100, 1e-5): (1.2141, 0.7180, 0.8951),
    (0.8, 0.01, 1000, 1e-5): (3.6956, 3.1410, 4.2280),
    (2, 0.01, 1000, 1e-5): (0.6862, 0.6220, 1.2052),
    (1.5, 0.1, 200, 1e-5): (5.5499, 5.0544, 9.2650),
    (4, 0.1, 1000, 1e-6): (4.1487, 3.8688, 8.2825),
    (1, 1, 1, 1e-5): (4.7285, 4.3772, 9.9973),
}


def gaussian(z, **fields):
    return [Mechanism("gaussian", float(z), **fields)]


def discrete(kind, z=1.0, norm=500.0, dimension=1000, shares=100):
    return [Mechanism(kind, z, "distributed", details={"norm": norm, "dimension": dimension, "shares": shares})]


def poisson(q, population=10_000):
    return fs.sampler.poisson(q).event(population)


FIXED = fs.sampler.uniform(100).event(10_000)


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_the_table_to_its_digits(case):
    z, q, rounds, delta = case
    got = [
        fs.privacy.epsilon(gaussian(z), poisson(q), rounds, delta, accountant=accountant, adjacency=adjacency).epsilon
        for accountant, adjacency in (("rdp", None), ("pld", None), ("pld", "replace-one"))
    ]
    np.testing.assert_allclose(got, TABLE[case], atol=6e-5)


def test_poisson_is_dp_accountings_own():
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(1.3)), 37)
    for name, accountant in (("pld", pld.PLDAccountant()), ("rdp", rdp.RdpAccountant())):
        theirs = accountant.compose(event).get_epsilon(1e-6)
        ours = fs.privacy.epsilon(gaussian(1.3), poisson(0.05), 37, 1e-6, accountant=name)
        np.testing.assert_allclose(ours.epsilon, theirs, rtol=1e-12)
        assert (ours.adjacency, ours.accountant, ours.rounds) == ("add-or-remove-one", name.upper(), 37)


def test_a_fixed_number_by_rdp_is_dp_accountings_at_half_the_multiplier():
    def theirs(z):
        accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
        event = dp.SampledWithoutReplacementDpEvent(10_000, 100, dp.GaussianDpEvent(z))
        return accountant.compose(event, 1000).get_epsilon(1e-5)

    ours = fs.privacy.epsilon(gaussian(1), FIXED, 1000, 1e-5, accountant="rdp")
    assert ours.adjacency == "replace-one"
    np.testing.assert_allclose(ours.epsilon, theirs(0.5), rtol=1e-12)
    np.testing.assert_allclose([ours.epsilon, theirs(1.0)], [20.99, 3.58], atol=0.01)  # and the trap


def bins(q, mu, step=1e-3):
    """Masses of bins of the loss under P = (1 - q) N(0, 1) + q N(mu, 1) and under N(0, 1)."""
    x = np.log1p(np.expm1(np.arange(0, 16, step)) / q) / mu + mu / 2  # where the loss is 0, step, ...
    x = np.concatenate([np.linspace(-40, x[0], 2000)[:-1], x, [np.inf]])
    of = lambda mean: -np.diff(stats.norm.sf(x, loc=mean))
    one, other = (1 - q) * of(0) + q * of(mu), of(0)
    keep = (one > 1e-25) & (other > 1e-300)
    return one[keep], other[keep]


def composed(losses, masses, times, delta, step=1e-3) -> float:
    """Epsilon of a loss's law, composed by FFT on a grid that keeps the law's mean."""
    places, size = np.floor(losses / step).astype(int), 1 << 17
    right = losses / step - places
    law = np.zeros(size)
    np.add.at(law, places % size, masses * (1 - right))
    np.add.at(law, (places + 1) % size, masses * right)
    law = np.maximum(np.fft.irfft(np.fft.rfft(law) ** times, size), 0)
    loss = np.where(np.arange(size) < 0.75 * size, np.arange(size), np.arange(size) - size) * step
    over = lambda eps: (law * -np.expm1(np.minimum(eps - loss, 0))).sum() - delta
    return float(optimize.brentq(over, 0, 60))  # type: ignore[arg-type]


def test_a_fixed_number_by_pld_lies_between_an_explicit_pair_and_rdp():
    """The bracket of docs/howto/privacy.md, both ends by this file's own arithmetic."""
    ours = fs.privacy.epsilon(gaussian(1), FIXED, 1000, 1e-5).epsilon
    p, q = bins(0.01, 2.0)
    loss = np.log(p / q)
    below = composed(loss, p, 1000, 1e-5)  # all others send -C; one sends C, or -C
    # The curve of joint convexity is this pair's above 0, in both directions; what is left has no loss.
    p, loss = p[loss > 0], loss[loss > 0]
    mirrored = np.concatenate([p, p * np.exp(-loss)])
    above = composed(np.concatenate([loss, -loss, [0]]), np.append(mirrored, 1 - mirrored.sum()), 1000, 1e-5)
    np.testing.assert_allclose([below, above], [13.361, 14.821], atol=2e-3)
    small = pld.PLDAccountant().compose(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(0.5)), 1000)
    assert small.get_epsilon(1e-5) == pytest.approx(below, abs=0.01)
    assert above - 1e-3 < ours < above + 0.01 < 20.98
    # Everybody drawn: nothing is amplified, and a Gaussian's means are 2 apart.
    everybody = fs.sampler.uniform(50).event(50)
    plain = pld.PLDAccountant().compose(dp.GaussianDpEvent(0.5), 3).get_epsilon(1e-5)
    np.testing.assert_allclose(fs.privacy.epsilon(gaussian(1), everybody, 3, 1e-5).epsilon, plain, atol=1e-3)


def hockey_stick(p, q, gamma):
    return np.maximum(p - gamma * q, 0).sum()


def test_the_pair_of_a_fixed_number_bounds_a_worst_case_in_both_directions():
    # Another client stands in at -1 or 0 where the one in question, at 1 or -1, is not drawn.
    x = np.linspace(-12, 12, 200_001)
    density = lambda mean: stats.norm.pdf(x, mean, 1.0) * (x[1] - x[0])
    q = 0.1
    ours = curves.without_replacement_pld(1.0, q, interval=1e-3)
    for other in (-1, 0, 1):
        a = (1 - q) * density(other) + q * density(1)
        b = (1 - q) * density(other) + q * density(-1)
        for loss in (-1.0, -0.3, 0.0, 0.1, 0.5, 1.0, 2.0):
            bound = ours.get_delta_for_epsilon(loss)
            assert hockey_stick(a, b, math.exp(loss)) <= bound + 1e-9
            assert hockey_stick(b, a, math.exp(loss)) <= bound + 1e-9


@pytest.mark.parametrize("z, exact", [(0.5, True), (1.5, False)])
def test_amplification_of_a_curve_is_dp_accountings_for_gaussians(z, exact):
    some = [2, 3, 5, 10, 30]
    accountant = rdp.RdpAccountant(orders=some, neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp.SampledWithoutReplacementDpEvent(1000, 50, dp.GaussianDpEvent(z)), 7)
    ours = 7 * curves.without_replacement(curves.gaussian(curves.ORDERS, z), 0.05)[np.asarray(some) - 2]
    ours, _ = rdp.compute_epsilon(some, ours, 1e-5)
    # The package refines the bound for wide Gaussians.
    np.testing.assert_allclose(ours, accountant.get_epsilon(1e-5), rtol=1e-9 if exact else 0.05)
    assert ours >= accountant.get_epsilon(1e-5) - 1e-9


def test_adaptive_clipping_splits_one_gaussian():
    # Andrew et al. 2021: the bit's noise of sigma_b = m/20 and z_delta cost together what z costs.
    z, sigma_b = 0.7, 100 / 20
    value = fs.privacy.value_multiplier(z, 2 * sigma_b)
    np.testing.assert_allclose(value, (z**-2 - (2 * sigma_b) ** -2) ** -0.5)
    both = [*gaussian(value), *gaussian(2 * sigma_b, of="statistic")]
    for event in (poisson(0.02), FIXED):
        one = fs.privacy.epsilon(gaussian(z), event, 100, 1e-5, accountant="rdp").epsilon
        np.testing.assert_allclose(fs.privacy.epsilon(both, event, 100, 1e-5, accountant="rdp").epsilon, one, rtol=1e-9)
    with pytest.raises(fs.FedSimError, match=r"statistic_multiplier=0\.7: must be above multiplier=0\.7"):
        fs.privacy.value_multiplier(0.7, 0.7)


def test_a_minimum_separation_counts_participations():
    event = fs.sampler.min_separation(10, 5).event(1000)
    for rounds, times in ((1, 1), (5, 1), (6, 2), (20, 4), (21, 5)):
        got = fs.privacy.epsilon(gaussian(3.0), event, rounds, 1e-5)
        plain = pld.PLDAccountant().compose(dp.GaussianDpEvent(3.0), times).get_epsilon(1e-5)
        np.testing.assert_allclose(got.epsilon, plain, rtol=1e-9)
        assert got.adjacency == "zero-out"


def test_the_tree_is_dp_accountings():
    event = fs.sampler.min_separation(10, 8).event(1000)
    noise = fs.aggregate.tree_noise(5.0, separation=8).facts(fs.aggregate.Facts(clipped=True)).noise
    for rounds, trees, steps in ((8, 1, 8), (24, 3, 8), (5, 1, 5)):
        accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
        accountant.compose(dp.SingleEpochTreeAggregationDpEvent(5.0, steps), trees)
        got = fs.privacy.epsilon(noise, event, rounds, 1e-5)
        np.testing.assert_allclose(got.epsilon, accountant.get_epsilon(1e-5), rtol=1e-12)
        assert got.accountant == "RDP"
    with pytest.raises(fs.FedSimError, match='accountant="pld": no privacy loss distribution'):
        fs.privacy.epsilon(noise, event, 8, 1e-5, accountant="pld")


def test_banded_noise_is_one_gaussian_of_its_multiplier():
    pytest.importorskip("jax_privacy")
    transform = fs.aggregate.banded_noise(1.5, bands=3, rounds=9, coefficients=[1.0, 0.5, 0.25])
    noise = transform.facts(fs.aggregate.Facts(clipped=True)).noise
    event = fs.sampler.min_separation(10, 3).event(1000)
    got = [fs.privacy.epsilon(noise, event, rounds, 1e-5).epsilon for rounds in (9, 3, 18)]
    one = pld.PLDAccountant().compose(dp.GaussianDpEvent(1.5)).get_epsilon(1e-5)
    np.testing.assert_allclose(got[0], one, rtol=1e-9)
    assert got[1] < got[0] < got[2]


@pytest.mark.parametrize("shift", [1, 2, 5])
def test_skellams_curve_bounds_the_exact_divergence(shift):
    variance, k = 9.0, np.arange(-120, 121)
    log_p, log_q = (stats.skellam.logpmf(k - mean, variance / 2, variance / 2) for mean in (shift, 0))
    ok = np.isfinite(log_p) & np.isfinite(log_q)
    orders = np.array([2, 3, 5, 8])
    exact = [
        np.logaddexp.reduce(order * log_p[ok] + (1 - order) * log_q[ok]) / (order - 1) for order in orders.tolist()
    ]
    bound = curves.skellam(orders, variance, float(shift), 1)
    assert (np.asarray(exact) <= bound * (1 + 1e-9)).all()
    assert shift > 2 or (bound < 2 * np.asarray(exact)).all()
    assert (bound > curves.gaussian(orders, 3.0, shift)).all()  # never below a Gaussian of its variance


def test_the_discrete_gaussian_is_no_better_than_its_exact_loss_distribution():
    distribution = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    sigma, norm = 6, 4
    exact = distribution.from_discrete_gaussian_mechanism(sigma, sensitivity=norm).get_epsilon_for_delta(1e-5)
    curve = curves.discrete_gaussian(curves.ORDERS, sigma, norm, 1, shares=1)
    bound, _ = rdp.compute_epsilon(curves.ORDERS, curve, 1e-5)
    assert exact < bound < 1.15 * exact
    # Shares of variance 1/2 each are far from a discrete Gaussian; of variance 4 they are one.
    ratio = lambda shares: curves.discrete_gaussian(curves.ORDERS, sigma, norm, 1, shares)[0] / curve[0]
    assert ratio(72) > 1.001
    np.testing.assert_allclose(ratio(9), 1, rtol=1e-9)


@pytest.mark.parametrize("kind", ["discrete_gaussian", "skellam"])
def test_distributed_noise_is_near_a_gaussians_and_falls_with_the_clients(kind):
    full = fs.privacy.epsilon(discrete(kind), FIXED, 100, 1e-5)
    plain = fs.privacy.epsilon(gaussian(1.0), FIXED, 100, 1e-5, accountant="rdp").epsilon
    assert (full.accountant, full.adjacency) == ("RDP", "replace-one")
    np.testing.assert_allclose(full.epsilon, plain, rtol=2e-3)
    sent = fs.privacy.epsilon(discrete(kind), FIXED, 100, 1e-5, counts={(100, 100): 100})
    assert sent.epsilon == full.epsilon
    dropped = fs.privacy.epsilon(discrete(kind), FIXED, 100, 1e-5, counts={(100, 100): 50, (100, 60): 50})
    # 60 of 100 shares have 0.6 of the variance, and 100 of 10,000 clients were drawn.
    base = curves.without_replacement(curves.gaussian(curves.ORDERS, math.sqrt(0.6), 2.0), 0.01)
    both = 50 * curves.without_replacement(curves.gaussian(curves.ORDERS, 1.0, 2.0), 0.01) + 50 * base
    np.testing.assert_allclose(dropped.epsilon, rdp.compute_epsilon(curves.ORDERS, both, 1e-5)[0], rtol=2e-3)
    assert dropped.epsilon > full.epsilon
    alone = fs.privacy.epsilon(gaussian(math.sqrt(0.6)), FIXED, 50, 1e-5, accountant="rdp").epsilon
    assert alone < dropped.epsilon
    # Given a draw of Poisson sampling, the clients are a uniform choice; one to come may be smaller than expected.
    drawn = fs.privacy.epsilon(discrete(kind), poisson(0.01), 100, 1e-5, counts={(100, 100): 100})
    assert drawn.epsilon == full.epsilon
    planned = fs.privacy.epsilon(discrete(kind), poisson(0.01), 100, 1e-5)
    assert full.epsilon < planned.epsilon < 1.05 * full.epsilon


def test_local_noise_is_one_clients_in_each_round():
    gauss = fs.privacy.epsilon(gaussian(4.0, where="local"), None, 10, 1e-5)
    plain = pld.PLDAccountant().compose(dp.GaussianDpEvent(2.0), 10).get_epsilon(1e-5)
    np.testing.assert_allclose(gauss.epsilon, plain, rtol=1e-9)
    one = fs.privacy.epsilon([Mechanism("laplace", 4.0, "local")], FIXED, 1, 1e-9)
    np.testing.assert_allclose(one.epsilon, 2 / 4, rtol=1e-3)  # pure: two values are 2 apart in L1
    assert (gauss.adjacency, one.adjacency) == ("local", "local")


def test_no_rounds_cost_nothing():
    for noise, event in ((gaussian(1), poisson(0.1)), (gaussian(1), FIXED), (discrete("skellam"), FIXED)):
        assert fs.privacy.epsilon(noise, event, 0, 1e-5).epsilon == 0
    assert fs.privacy.epsilon(discrete("skellam"), FIXED, 3, 1e-5, counts={(0, 0): 3}).epsilon == 0


def test_epsilon_says_what_it_means():
    text = str(fs.privacy.epsilon(gaussian(1), poisson(0.01), 1000, 1e-5, sampler="poisson(0.01)"))
    for part in (
        "epsilon 1.828",
        "delta 1e-05",
        "1000 rounds",
        "add-or-remove-one",
        "poisson(0.01)",
        "Gaussian(1)",
        "PLD",
    ):
        assert part in text
    assert float(fs.privacy.epsilon(gaussian(1), poisson(0.01), 1000, 1e-5)) == pytest.approx(1.8282, abs=1e-4)


@pytest.mark.parametrize(
    "noise, event", [(gaussian(1), poisson(0.05)), (gaussian(1), FIXED), (discrete("skellam"), FIXED)]
)
def test_the_meter_reads_what_rdp_says(noise, event):
    meter = Meter(1e-5)
    assert meter.epsilon([]) == 0
    for rounds in (1, 2, 50):
        expected = fs.privacy.epsilon(noise, event, rounds, 1e-5, accountant="rdp").epsilon
        np.testing.assert_allclose(meter.epsilon([Rounds(tuple(noise), event, rounds)]), expected, rtol=1e-9)


REFUSED = {
    "no noise": (lambda: fs.privacy.epsilon([], FIXED, 1, 1e-5), r"no noise on what is sent"),
    "only the bit": (
        lambda: fs.privacy.epsilon(gaussian(1, of="statistic"), FIXED, 1, 1e-5),
        r"no noise on what is sent",
    ),
    "no event": (lambda: fs.privacy.epsilon(gaussian(1), None, 1, 1e-5), r"has no accounting event"),
    "unknown event": (
        lambda: fs.privacy.epsilon(gaussian(1), FIXED._replace(kind="with_replacement"), 1, 1e-5),
        r"event\.kind='with_replacement'",
    ),
    "unknown kind": (
        lambda: fs.privacy.epsilon([Mechanism("laplace", 1.0)], FIXED, 1, 1e-5),
        r"kind='laplace'.*central",
    ),
    "unknown local": (
        lambda: fs.privacy.epsilon([Mechanism("skellam", 1.0, "local")], FIXED, 1, 1e-5),
        r"kind='skellam'.*local noise of this kind",
    ),
    "zero": (lambda: fs.privacy.epsilon(gaussian(0), FIXED, 1, 1e-5), r"multiplier=0\.0: must be positive"),
    "delta": (lambda: fs.privacy.epsilon(gaussian(1), FIXED, 1, 1.0), r"delta=1\.0: must lie in \(0, 1\)"),
    "rounds": (lambda: fs.privacy.epsilon(gaussian(1), FIXED, -1, 1e-5), r"rounds=-1"),
    "accountant": (lambda: fs.privacy.epsilon(gaussian(1), FIXED, 1, 1e-5, accountant="prv"), r"accountant='prv'"),
    "adjacency of a fixed number": (
        lambda: fs.privacy.epsilon(gaussian(1), FIXED, 1, 1e-5, adjacency="add-or-remove-one"),
        r"adjacency='add-or-remove-one': a fixed number of clients is accounted under 'replace-one'",
    ),
    "rdp of poisson under replace-one": (
        lambda: fs.privacy.epsilon(gaussian(1), poisson(0.1), 1, 1e-5, accountant="rdp", adjacency="replace-one"),
        r"no Rényi curve of Poisson sampling",
    ),
    "pld of skellam": (
        lambda: fs.privacy.epsilon(discrete("skellam"), FIXED, 1, 1e-5, accountant="pld"),
        r"no privacy loss distribution is known",
    ),
    "skellam without its scale": (
        lambda: fs.privacy.epsilon([Mechanism("skellam", 1.0, "distributed")], FIXED, 1, 1e-5),
        r"details lack \['norm', 'dimension', 'shares'\]",
    ),
    "tree without separation": (
        lambda: fs.privacy.epsilon([Mechanism("tree", 1.0, details={"separation": 4})], FIXED, 1, 1e-5),
        r"at least 4 rounds between two participations.*min_separation\(cohort_size, separation=4\)",
    ),
    "banded with too little separation": (
        lambda: fs.privacy.epsilon(
            [Mechanism("banded", 1.0, details={"separation": 4})], fs.sampler.min_separation(2, 3).event(99), 1, 1e-5
        ),
        r"at least 4 rounds between two participations",
    ),
    "tree and a bit": (
        lambda: fs.privacy.epsilon(
            [Mechanism("tree", 1.0, details={"separation": 4}), *gaussian(1, of="statistic")],
            fs.sampler.min_separation(2, 4).event(99),
            1,
            1e-5,
        ),
        r"correlated noise is accounted alone",
    ),
    "local and central": (
        lambda: fs.privacy.epsilon([*gaussian(1, where="local"), *gaussian(1)], FIXED, 1, 1e-5),
        r"local noise is accounted alone",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_accounted_is_refused(what):
    call, message = REFUSED[what]
    with pytest.raises(fs.FedSimError, match=message):
        call()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(fs.FedSimError, match=r'needs dp-accounting: pip install "fedjax-sim\[privacy\]"'):
        fs.privacy.epsilon(gaussian(1), FIXED, 1, 1e-5)


@pytest.mark.parametrize("sampler, delta", [(fs.sampler.poisson(0.05), 1e-5), (fs.sampler.uniform(50), 1e-4)])
def test_calibration_comes_back(sampler, delta):
    known = {"target_epsilon": 1.0, "delta": delta, "rounds": 10, "tolerance": 0.01}
    z = fs.privacy.calibrate(**known, sampler=sampler, population=1000)
    assert 0.97 < fs.privacy.epsilon(gaussian(z), sampler.event(1000), 10, delta).epsilon <= 1.0


def test_calibration_of_a_chains_own_noise():
    def noise(z):
        return [*gaussian(z), *gaussian(10.0, of="statistic")]

    event = poisson(0.05)
    known = {"target_epsilon": 1.0, "delta": 1e-5, "rounds": 20, "sampler": event, "accountant": "rdp"}
    z = fs.privacy.calibrate(**known, mechanisms=noise)
    assert 0.99 < fs.privacy.epsilon(noise(z), event, 20, 1e-5, accountant="rdp").epsilon <= 1.0
    np.testing.assert_allclose(fs.privacy.value_multiplier(fs.privacy.calibrate(**known), 10.0), z, rtol=2e-3)
    with pytest.raises(fs.FedSimError, match=r"target_epsilon=0\.001: out of reach"):
        fs.privacy.calibrate(**{**known, "target_epsilon": 0.001}, mechanisms=lambda z: noise(min(z, 1.0)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sampler": fs.sampler.fixed([[0]])}, r"fixed\(1 cohorts\) has no accounting event"),
        ({"population": None}, r"population=None"),
        ({"target_epsilon": 0.0}, r"target_epsilon=0\.0: must be positive"),
        ({"delta": 2.0}, r"delta=2\.0"),
    ],
)
def test_calibration_refuses(changes, message):
    known = {"target_epsilon": 1.0, "delta": 1e-5, "rounds": 2, "sampler": fs.sampler.poisson(0.1), "population": 100}
    with pytest.raises(fs.FedSimError, match=message):
        fs.privacy.calibrate(**{**known, **changes})


def test_a_population_given_twice_must_agree():
    event = fs.sampler.poisson(0.1).event(100)
    with pytest.raises(fs.FedSimError, match="population=50: the event has 100 clients"):
        fs.privacy.calibrate(target_epsilon=2.0, delta=1e-5, rounds=10, sampler=event, population=50)
