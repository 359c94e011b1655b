"""Epsilon of whole simulations: bound to their chain and sampler, read per round, and exact on resume."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedjax_sim as fs
from tests.engine import toys
from tests.privacy.rounding import rounded

pytest.importorskip("dp_accounting")
K, DIM = 40, 3
DATA = fs.data.FederatedData({"x": jnp.asarray(np.linspace(-1, 1, K * DIM).reshape(K, DIM))}, offsets=range(K + 1))
TASK = fs.Task(lambda key: jnp.zeros(DIM), lambda w, batch, key: jnp.sum((w[None] - batch["x"]) ** 2, axis=-1))
UNIFORM = fs.aggregate.mean("uniform")
CLIP = fs.aggregate.clip_by_l2(0.5)
CENTRAL = (CLIP, fs.aggregate.gaussian_noise(1.2))
STEP = 1 / 256


DISTRIBUTED = (
    CLIP,
    rounded(STEP, lambda state, incoming, dim: incoming + STEP * dim**0.5 / 2),
    fs.aggregate.skellam_noise(1.0),
    fs.aggregate.secure_sum(),
)


def simulation(*transforms, sampler=None, data=DATA, **more):
    algorithm = fs.fedavg(TASK, optax.sgd(0.1), aggregator=fs.aggregate.chain(*transforms, reduce=UNIFORM))
    return fs.Simulation(algorithm, data, sampler or fs.sampler.poisson(0.2), fs.Batching(1), **toys.executed(**more))


@pytest.fixture(scope="module")
def central():
    return simulation(*CENTRAL, delta=1e-3)


def test_epsilon_is_that_of_the_runs_own_sampler(central):
    spent = central.epsilon(rounds=20, delta=1e-4)
    expected = fs.privacy.epsilon([fs.aggregate.Mechanism("gaussian", 1.2)], fs.sampler.poisson(0.2).event(K), 20, 1e-4)
    assert spent == dataclasses.replace(expected, sampler="poisson(0.2) of 40")
    fixed = simulation(*CENTRAL, sampler=fs.sampler.uniform(8)).epsilon(rounds=20, delta=1e-4)
    assert (fixed.adjacency, fixed.sampler) == ("replace-one", "uniform(8) of 40")
    assert fixed.epsilon > spent.epsilon
    apart = simulation(*CENTRAL, sampler=fs.sampler.min_separation(8, 5)).epsilon(rounds=20, delta=1e-4)
    assert apart.adjacency == "zero-out"
    assert central.epsilon(rounds=20, delta=1e-4, adjacency="replace-one").epsilon > spent.epsilon
    assert central.epsilon(rounds=20).delta == 1e-3
    assert simulation(*CENTRAL).delta == min(K**-1.1, 1e-3)


def test_rounds_report_epsilon(central):
    state, history = central.run(central.init(), rounds=3)
    column = history["privacy/epsilon"]
    expected = [central.epsilon(rounds=r, accountant="rdp").epsilon for r in (1, 2, 3)]
    np.testing.assert_allclose(column, expected, rtol=1e-9)
    assert central.epsilon(state=state) == central.epsilon(rounds=3)
    assert central.epsilon(state=state).epsilon <= column[-1]
    _, metrics = central.step(state)
    assert metrics["privacy/epsilon"] > column[-1]
    (entry,) = state.ledger  # rounds of one setting are one entry, however many
    assert (entry["rounds"], entry["sampler"]) == (3, "poisson(0.2) of 40")


LOCAL = {
    "gaussian": (CLIP, fs.aggregate.local_gaussian_noise(4.0)),
    "laplace": (fs.aggregate.local_laplace_noise(0.5, 4.0),),
}


@pytest.mark.parametrize("kind", LOCAL)
def test_local_noise_is_accounted_under_any_sampler(kind):
    cohorts = fs.sampler.fixed([[0, 1], [0], [2, 0]])
    sim = simulation(*LOCAL[kind], sampler=cohorts)
    state, history = sim.run(sim.init(), rounds=3)
    spent = sim.epsilon(state=state, delta=1e-4)
    assert (spent.adjacency, spent.rounds) == ("local", 3)
    assert spent.epsilon == simulation(*LOCAL[kind]).epsilon(rounds=3, delta=1e-4).epsilon  # nothing is amplified
    if kind == "gaussian":  # client 0's three messages, of any two values
        mu, eps = 3**0.5 * 2 / 4, spent.epsilon
        tails = stats.norm.cdf([mu / 2 - eps / mu, -mu / 2 - eps / mu])
        np.testing.assert_allclose(tails[0] - np.exp(eps) * tails[1], 1e-4, rtol=0.02)
    assert np.isfinite(history["privacy/epsilon"]).all()
    with pytest.raises(fs.FedSimError, match="no accounting event"):
        simulation(*CENTRAL, sampler=cohorts)
    noise = lambda z: [fs.aggregate.Mechanism(kind, z, "local")]
    known = {"target_epsilon": spent.epsilon, "delta": 1e-4, "rounds": 3, "tolerance": 0.01}
    z = fs.privacy.calibrate(**known, sampler=cohorts, population=K, mechanisms=noise)
    assert 4 * (1 - 1e-3) < z < 4 * 1.05


def test_without_noise_there_is_no_epsilon():
    sim = simulation(CLIP)
    _, metrics = sim.step(sim.init())
    assert "privacy/epsilon" not in metrics
    with pytest.raises(fs.FedSimError, match=r"adds no noise.*gaussian_noise\(multiplier\)"):
        sim.epsilon(rounds=1)


def test_every_phase_must_be_noised():
    fedavg = fs.fedavg(TASK, optax.sgd(0.1))
    noisy, bare = (fs.aggregate.chain(*transforms, reduce=UNIFORM) for transforms in (CENTRAL, (CLIP,)))

    def of(*aggregators):
        phases = tuple(fs.Phase(fedavg.client, fedavg.server, aggregator) for aggregator in aggregators)
        algorithm = fs.Algorithm(TASK, fedavg.init, phases=phases, params=fedavg.params)
        return fs.Simulation(algorithm, DATA, fs.sampler.poisson(0.2), fs.Batching(1))

    with pytest.raises(fs.FedSimError, match=r"phase 1 of 2: .* adds no noise"):
        of(noisy, bare).epsilon(rounds=1, delta=1e-4)
    event = fs.sampler.poisson(0.2).event(K)
    both = fs.privacy.epsilon([fs.aggregate.Mechanism("gaussian", 1.2 / 2**0.5)], event, 1, 1e-4)
    np.testing.assert_allclose(of(noisy, noisy).epsilon(rounds=1, delta=1e-4).epsilon, both.epsilon, rtol=1e-9)


def test_adaptive_clipping_costs_its_bit_too():
    sim = simulation(fs.aggregate.adaptive_clip(0.5, bit_noise=0.1), fs.aggregate.gaussian_noise(1.0))
    z_bit = 2 * 0.1 * 8  # of an expected cohort of 8
    joint = fs.aggregate.Mechanism("gaussian", (1.0 + z_bit**-2) ** -0.5)
    event = fs.sampler.poisson(0.2).event(K)
    expected = fs.privacy.epsilon([joint], event, 10, 1e-4).epsilon
    np.testing.assert_allclose(sim.epsilon(rounds=10, delta=1e-4).epsilon, expected, rtol=1e-9)


def test_shares_of_noise_are_those_that_came(tmp_path):
    sim = simulation(*DISTRIBUTED, sampler=fs.sampler.poisson(0.2), seed=3)
    straight, history = sim.run(sim.init(), rounds=5)
    counts = history["cohort/contributed"].astype(int).tolist()
    (entry,) = straight.ledger
    assert entry["counts"] == [[n, n, counts.count(n)] for n in dict.fromkeys(counts)]
    assert len(set(counts)) > 1
    paused, _ = sim.run(sim.init(), rounds=2)
    sim.save(tmp_path, paused)
    resumed, _ = sim.run(sim.restore(tmp_path), rounds=3)
    assert resumed.ledger == straight.ledger
    assert sim.epsilon(state=resumed) == sim.epsilon(state=straight)
    np.testing.assert_array_equal(resumed.server.params, straight.server.params)
    # By hand: the bound after rounding in steps, the numbers sent, and the shares of each round.
    details = {"norm": (0.5 + STEP * DIM**0.5 / 2) / STEP, "dimension": DIM, "shares": 8.0}
    noise = [fs.aggregate.Mechanism("skellam", 1.0, "distributed", details=details)]
    event, told = fs.sampler.poisson(0.2).event(K), {(n, n): counts.count(n) for n in counts}
    spent = sim.epsilon(state=straight, delta=1e-4)
    by_hand = fs.privacy.epsilon(noise, event, 5, 1e-4, counts=told)
    np.testing.assert_allclose(spent.epsilon, by_hand.epsilon, rtol=1e-5)
    assert (spent.adjacency, spent.accountant) == ("replace-one", "RDP")
    planned = fs.privacy.epsilon(noise, event, 5, 1e-4).epsilon
    np.testing.assert_allclose(sim.epsilon(rounds=5, delta=1e-4).epsilon, planned, rtol=1e-5)
    with pytest.raises(fs.FedSimError, match=r"ledger knows 0 of its 5 rounds"):
        sim.epsilon(state=dataclasses.replace(straight, ledger=None))


@pytest.mark.parametrize("noise", [fs.aggregate.tree_noise(1.0, 4), "banded"])
def test_correlated_noise_wants_its_sampler(noise):
    if noise == "banded":
        pytest.importorskip("jax_privacy")
        noise = fs.aggregate.banded_noise(1.0, bands=2, rounds=8, separation=4, coefficients=[1.0, 0.5])
    for sampler in (fs.sampler.poisson(0.2), fs.sampler.uniform(4), fs.sampler.min_separation(4, 3)):
        with pytest.raises(fs.FedSimError, match=r"at least 4 rounds between two participations"):
            simulation(CLIP, noise, sampler=sampler)
    sim = simulation(CLIP, noise, sampler=fs.sampler.min_separation(5, 4))
    state, _ = sim.run(sim.init(), rounds=3)
    again, _ = sim.run(state, rounds=2)
    straight, history = sim.run(sim.init(), rounds=5)
    np.testing.assert_array_equal(again.server.params, straight.server.params)
    assert history["privacy/epsilon"][3] < history["privacy/epsilon"][4]  # a second participation becomes possible
    assert sim.epsilon(rounds=5).adjacency == "zero-out"


def test_epsilon_asks_for_rounds_or_a_state(central):
    with pytest.raises(fs.FedSimError, match=r"needs rounds=.* or state="):
        central.epsilon()
    with pytest.raises(fs.FedSimError, match=r"delta=0: must lie in \(0, 1\)"):
        simulation(*CENTRAL, delta=0)


def test_a_poisson_draw_over_its_capacity_is_not_cut_under_noise():
    poisson = fs.sampler.poisson(0.2)
    everybody = poisson._replace(
        sample=lambda state, round, seed: (fs.sampler.cohort(np.arange(K), 4), state), capacity=lambda clients: 4
    )
    sim = simulation(*CENTRAL, sampler=everybody)
    state, history = sim.run(sim.init(), rounds=2)
    assert (history["cohort/contributed"] == K).all()
    assert sim.epsilon(state=state) == simulation(*CENTRAL).epsilon(rounds=2)
    # The sum of all over the expected cohort of 8, with noise of 1.2 x 0.5 / 8: released in each of the rounds.
    before, noise = sim.init(), []
    for _ in range(200):
        w = np.asarray(sim.params(before))
        move = 0.2 * (np.asarray(DATA.arrays["x"]) - w)
        move *= np.minimum(1, 0.5 / np.linalg.norm(move, axis=1, keepdims=True))
        before, _ = sim.step(before)
        noise.append(np.asarray(sim.params(before)) - w - move.sum(axis=0) / 8)
    scaled = np.ravel(noise) / (1.2 * 0.5 / 8)
    for factor, accepted in ((1, True), (1.5, False), (1 / 1.5, False)):
        assert (stats.kstest(scaled * factor, "norm").pvalue > 1e-3) == accepted
