"""Epsilon is never below what two explicit neighbouring populations can be told apart by.

For each mechanism and sampler: the laws of what is released under both populations, number by number, as a privacy loss
distribution whose rounding errs to the low side. Among the clients are some without examples and some that are dropped,
which send zero; the noise is that of all who were drawn (`test_shares.py` measures that it is).
"""

import dataclasses
import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.engine.round.block import pack
from fedjax_sim.simulation import epsilon as epsilon_lib
from fedjax_sim.simulation import ledger as ledger_lib
from tests.privacy.rounding import rounded

pytest.importorskip("dp_accounting")
PLD = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
K, M, Q, ROUNDS, DELTA, UNIT = 12, 4, 1 / 3, 5, 1e-3, 16  # UNIT: steps of `rounded` in the clip
SIZES = [3, 1, 0, 5, 0, 2, 1, 0, 4, 1, 2, 7]
DATA = fs.FederatedData({"x": np.zeros(sum(SIZES), np.float32)}, np.concatenate([[0], np.cumsum(SIZES)]))
TASK = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
SAMPLERS = {
    "poisson": fs.sampler.poisson(Q),
    "uniform": fs.sampler.uniform(M),
    "apart": fs.sampler.min_separation(M, 3),
}
CLIP = fs.aggregate.clip_by_l2(1.0)


def simulation(*transforms, sampler, clip=(CLIP,)):
    aggregator = fs.aggregate.chain(*clip, *transforms, reduce=fs.aggregate.mean("uniform"))
    return fs.Simulation(fs.fedavg(TASK, optax.sgd(0.1), aggregator=aggregator), DATA, sampler, fs.Batching(2))


def state_of(sim, drawn=None):
    """A state after rounds that are planned but not computed; or with other numbers of clients (drawn, sending)."""
    ledger, seen = None, []
    for round in range(ROUNDS):
        empty = fs.RoundState(round, 5, None, None, sim.parts.sampler_state, None)
        (stats,) = pack(sim.parts, empty, 1, slots=1, lanes=1).stats
        seen.append((stats.drawn, stats.sent) if drawn is None else drawn)
        ledger = ledger_lib.entered(ledger, sim.executor.released, *seen[-1])
    return fs.RoundState(ROUNDS, 5, None, None, None, None, ledger), seen


def least(*rounds, delta=DELTA):
    """The least epsilon of rounds, each (law under one population, law under its neighbour, times)."""
    composed = []
    for one, other, times in rounds:
        both = [o for o in one if one[o] > 1e-280 and other.get(o, 0) > 1e-280]  # to leave some out is to see less
        logs = [{o: math.log(law[o]) for o in both} for law in (other, one)]
        pair = PLD.from_two_probability_mass_functions(*logs, False, 5e-3, symmetric=False)
        composed.append(pair.self_compose(times))
    return functools.reduce(lambda a, b: a.compose(b), composed).get_epsilon_for_delta(delta)


def law(cases, noise):
    """Outcomes' probabilities: of cases (probability, what is seen besides, mean), and of noise around each mean."""
    found = {}
    for chance, seen, mean in cases:
        for at, p in noise(seen, mean).items():
            found[seen, at] = found.get((seen, at), 0.0) + chance * p
    return found


def draws(sampler, number, value, told, others):
    """Cases of a round's draw: `others` of the clients send -1 and the rest 0; the one in question sends `value`.

    Args:
        number: who are drawn of a fixed number, `M`, or given it; None for Poisson sampling.
        told: whether the number is seen, as it is where the noise depends on it.
    """
    rest = K - 1 - others
    for t, h, e in itertools.product((0, 1), range(others + 1), range(rest + 1)):
        if number is None:
            chance = stats.binom.pmf(t, 1, Q) * stats.binom.pmf(h, others, Q) * stats.binom.pmf(e, rest, Q)
        else:
            ways = math.comb(others, h) * math.comb(rest, e) / math.comb(K, number)
            chance = ways if t + h + e == number else 0.0
        if chance > 0 and (t + h + e or not told):
            yield chance, (t + h + e if told else 0), value * t - h


def gaussian(z):
    """Bins of a Gaussian."""
    edges = np.arange(-M * 3 - 9 * z, 2 + 9 * z, z / 12)

    @functools.cache
    def noise(seen, mean):
        return dict(enumerate(np.diff(stats.norm.cdf(edges, mean, z)).tolist()))

    return noise


def integers(kind, sigma, unit):
    """A sum of shares; `seen` of `M` clients add theirs."""

    @functools.cache
    def of(shares):
        reach = int(12 * sigma * max(shares / M, 1) ** 0.5)
        k = np.arange(-reach, reach + 1)
        if kind == "skellam":
            rate = sigma**2 / M / 2 * shares
            return k, stats.skellam.pmf(k, rate, rate)
        one = np.exp(-(k**2) / (2 * sigma**2 / M))
        total = np.fft.ifft(np.fft.fft(np.fft.ifftshift(one / one.sum())) ** shares).real  # wraps beyond 12 sigma
        return k, np.maximum(np.fft.fftshift(total), 0)

    def noise(seen, mean):
        k, p = of(seen)
        keep = p > 1e-13
        return dict(zip((k[keep] + unit * mean).tolist(), p[keep].tolist(), strict=True))

    return noise


def replaced(sampler, number, noise, told=False):
    """The most that a client that sends 1 or -1 can be told by, whatever the others send."""
    bounds = []
    for others in (0, 5, K - 1):
        one, other = (law(draws(sampler, number, v, told, others), noise) for v in (1, -1))
        bounds.append((one, other))
    return bounds


def worst(pairs, times):
    return max(least((one, other, times)) for one, other in pairs)


def check(claim, bound, at_most=math.inf):
    assert bound > 0.05, "the populations cannot be told apart: the test says nothing"
    assert bound <= claim + 1e-6
    assert claim <= at_most * bound


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["gaussian", "with a clip's bit"])
def test_central_noise(kind, sampler):
    z, bit = 1.5, 0.25  # the bit's noise has standard deviation bit x M = 1
    if kind == "gaussian":
        sim = simulation(fs.aggregate.gaussian_noise(z), sampler=SAMPLERS[sampler])
        joint = z
    else:
        clip = (fs.aggregate.adaptive_clip(1.0, bit_noise=bit),)
        sim = simulation(fs.aggregate.gaussian_noise(z), sampler=SAMPLERS[sampler], clip=clip)
        joint = 1 / math.hypot(1 / z, 0.5 / (bit * M))  # along the line on which the sum moves by 1 and the bit by 1/2
    state, _ = state_of(sim)
    noise = gaussian(joint)
    if sampler == "apart":  # one that sends 1 or 0 in the two rounds of five that may hold it
        bound = least((noise(0, 1), noise(0, 0), 2))
    elif sampler == "uniform":
        bound = worst(replaced(sampler, M, noise), ROUNDS)
    else:
        there = law([(1 - Q, 0, 0), (Q, 0, 1)], noise)
        bound = least((there, law([(1.0, 0, 0)], noise), ROUNDS))
        replace = sim.epsilon(state=state, delta=DELTA, adjacency="replace-one").epsilon
        check(replace, worst(replaced(sampler, None, noise), ROUNDS), at_most=1.5)
    for claim in (sim.epsilon(rounds=ROUNDS, delta=DELTA), sim.epsilon(state=state, delta=DELTA)):
        check(claim.epsilon, bound, at_most=1.3)
    check(sim.epsilon(state=state, delta=DELTA, accountant="rdp").epsilon, bound)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["discrete gaussian", "skellam"])
def test_distributed_noise(kind, sampler):
    z = 2.0
    transform = {"discrete gaussian": fs.aggregate.discrete_gaussian_noise, "skellam": fs.aggregate.skellam_noise}[kind]
    sim = simulation(rounded(1 / UNIT), transform(z), fs.aggregate.secure_sum(), sampler=SAMPLERS[sampler])
    noise = integers(kind, z * UNIT, UNIT)
    state, seen = state_of(sim)
    assert {drawn for drawn, _ in seen} != {M} or sampler != "poisson"
    if sampler == "apart":
        bound = least((noise(M, 1), noise(M, 0), 2))
        check(sim.epsilon(rounds=ROUNDS, delta=DELTA).epsilon, bound)
        few, _ = state_of(sim, drawn=(M, 2))
        check(sim.epsilon(state=few, delta=DELTA).epsilon, least((noise(2, 1), noise(2, 0), 2)))
    elif sampler == "uniform":
        bound = worst(replaced(sampler, M, noise, told=True), ROUNDS)
        check(sim.epsilon(rounds=ROUNDS, delta=DELTA).epsilon, bound)
        # Two of four do not arrive, whoever they are: the one in question is among the others in a round of six.
        few, _ = state_of(sim, drawn=(M, 2))
        check(sim.epsilon(state=few, delta=DELTA).epsilon, worst(replaced(sampler, 2, noise, told=True), ROUNDS))
    else:
        planned = sim.epsilon(rounds=ROUNDS, delta=DELTA).epsilon
        check(planned, worst(replaced(sampler, None, noise, told=True), ROUNDS))
        bound = 0.0
        for i in range(3):
            pairs = [(*replaced(sampler, drawn, noise, told=True)[i], 1) for drawn, _ in seen]
            bound = max(bound, least(*pairs))
    check(sim.epsilon(state=state, delta=DELTA).epsilon, bound)


def test_a_plan_of_poisson_rounds_covers_draws_that_are_smaller_than_expected():
    """A round in which one client may be drawn alone, with half of the noise; the expected cohort says too little."""
    z, delta, noise = 1.0, 1e-4, integers("skellam", UNIT, UNIT)
    one, other = (law(draws("poisson", None, v, True, K - 1), noise) for v in (1, -1))
    bound = least((one, other, 1), delta=delta)
    details = {"norm": float(UNIT), "dimension": 1, "shares": float(M)}
    mechanism = fs.aggregate.Mechanism("skellam", z, "distributed", details=details)
    event = SAMPLERS["poisson"].event(K)
    of = lambda counts: fs.privacy.epsilon([mechanism], event, 1, delta, counts=counts).epsilon
    check(of(None), bound, at_most=2)
    assert of({(M, M): 1}) < bound


@pytest.mark.parametrize("efficient", [True, False])
def test_a_tree(efficient):
    """The released residuals are a Gaussian vector; one client moves one round of each tree by 1."""
    z, height = 2.0, 3
    sim = simulation(fs.aggregate.tree_noise(z, 4, efficient=efficient), sampler=fs.sampler.min_separation(3, 4))
    nodes = {(h, i): n for n, (h, i) in enumerate((h, i) for h in range(height) for i in range(4 >> h))}

    def estimate(h, i):
        mine = np.zeros(len(nodes))
        mine[nodes[h, i]] = 1
        if h == 0 or not efficient:
            return mine
        below = 1 / (2 - 0.5 ** (h - 1))  # variance of a child's estimate
        share = 2 * below / (1 + 2 * below)
        return share * mine + (1 - share) * (estimate(h - 1, 2 * i) + estimate(h - 1, 2 * i + 1))

    def prefix(t):
        total, start = np.zeros(len(nodes)), 0
        for h in reversed(range(height)):
            if t & (1 << h):
                total = total + estimate(h, start >> h)
                start += 1 << h
        return total

    residuals = np.stack([prefix(t + 1) - prefix(t) for t in range(4)])
    inverse = np.linalg.inv(residuals @ residuals.T)
    mu = max(math.sqrt(inverse[t, t]) / z for t in range(4))
    noise = gaussian(1 / mu)
    for rounds, trees in ((4, 1), (8, 2)):
        check(sim.epsilon(rounds=rounds, delta=DELTA).epsilon, least((noise(0, 1), noise(0, 0), trees)), at_most=2)


@pytest.mark.parametrize("column", [[1.0, 0.6, 0.3], [1.0, 1.0, -0.4]], ids=str)
def test_banded_noise(column):
    """Of fewer rounds than planned, as many, and more: any of a client's rounds, so far apart, may be its own."""
    pytest.importorskip("jax_privacy")
    z, n, b = 1.5, 8, 4
    banded = fs.aggregate.banded_noise(z, bands=3, rounds=n, separation=b, coefficients=column)
    sim = simulation(banded, sampler=fs.sampler.min_separation(3, b))
    meter = epsilon_lib.meter(sim.parts)

    def moved(rounds):
        """By how much the most telling of all ways to take part moves what is released, in units of Z."""
        matrix = sum(c * np.eye(rounds, k=-i) for i, c in enumerate(column))
        ways = (np.array(way) for way in itertools.product((0, 1), repeat=rounds))
        return max(np.linalg.norm(matrix @ way) for way in ways if all(np.diff(np.flatnonzero(way)) >= b))

    for rounds in (3, 8, 9, 13):
        noise = gaussian(z * moved(n) / moved(rounds))
        bound = least((noise(0, 1), noise(0, 0), 1))
        ledger = None
        for _ in range(rounds):
            ledger = ledger_lib.entered(ledger, sim.executor.released, 3, 3)
        state = fs.RoundState(rounds, 5, None, None, None, None, ledger)
        for claim in (sim.epsilon(rounds=rounds, delta=DELTA), sim.epsilon(state=state, delta=DELTA)):
            check(claim.epsilon, bound, at_most=1.1)
        part = dataclasses.replace(state, round=2, ledger=[{**ledger[0], "rounds": 2}])
        assert sim.epsilon(rounds=rounds - 2, state=part, delta=DELTA) == sim.epsilon(rounds=rounds, delta=DELTA)
        assert epsilon_lib.spent(meter, ledger, rounds) >= sim.epsilon(state=state).epsilon


@pytest.mark.parametrize("sampler", [*SAMPLERS, "fixed"])
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_local_noise(kind, sampler):
    """A message says 1 or -1, and one of a client without examples says 0."""
    z, who = 4.0, SAMPLERS.get(sampler) or fs.sampler.fixed([[0, 2, 3, 7]] * ROUNDS)
    if kind == "gaussian":
        sim, noise = simulation(fs.aggregate.local_gaussian_noise(z), sampler=who), gaussian(z)
    else:
        local = fs.aggregate.local_laplace_noise(1.0, z)
        sim, edges = simulation(local, sampler=who, clip=()), np.arange(-80, 80, 0.25)
        noise = lambda seen, mean: dict(enumerate(np.diff(stats.laplace.cdf(edges, mean, z)).tolist()))
    state, _ = state_of(sim)
    bound = max(least((noise(0, 1), noise(0, other), ROUNDS)) for other in (-1, 0))
    for claim in (sim.epsilon(rounds=ROUNDS, delta=DELTA), sim.epsilon(state=state, delta=DELTA)):
        check(claim.epsilon, bound, at_most=1.2)
