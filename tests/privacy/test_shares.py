"""Shares of noise: whoever is drawn sends one, with data or without, so that the noise tells nobody who has any."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.engine.round.block import pack
from tests.engine import toys
from tests.privacy.rounding import rounded

K, DIM, Z, STEP = 12, 4000, 2.0, 1 / 64
SIZES = np.array([2, 0, 1, 3, 0, 1, 2, 5, 0, 1, 3, 2])  # clients 1, 4 and 8 have nothing
NAN = 3  # its update is not finite
CLIP = fs.aggregate.clip_by_l2(0.5)


NOISE = {
    "discrete gaussian": (rounded(STEP), fs.aggregate.discrete_gaussian_noise(Z), fs.aggregate.secure_sum()),
    "skellam": (rounded(STEP), fs.aggregate.skellam_noise(Z), fs.aggregate.secure_sum()),
    "local gaussian": (fs.aggregate.local_gaussian_noise(Z),),
    "local laplace": (fs.aggregate.local_laplace_noise(0.5, Z),),
}


def simulation(kind, cohorts, arrives=None, dim=DIM, **options):
    """Clients that send 0.5 in the first place; the server's state is the mean. Each round a cohort."""
    task = fs.Task(lambda key: jnp.zeros(dim), lambda w, batch, key: batch["x"])
    start = jnp.zeros(dim).at[0].set(0.5)

    def client(key, server, row, batches):
        scale = jnp.where(batches.client_id == NAN, jnp.nan, jnp.where(batches.num_steps > 0, 1.0, jnp.inf))
        return fs.ClientUpdate(start * scale, batches.num_examples, metrics={"seen": fs.metrics.Sum(jnp.ones(()))})

    clip = () if kind == "local laplace" else (CLIP,)
    aggregator = fs.aggregate.chain(*clip, *NOISE[kind], reduce=fs.aggregate.mean("uniform"))
    algorithm = fs.Algorithm(
        task, lambda params: (params, None), client, lambda key, server, aggregate: aggregate.value, aggregator
    )
    data = fs.FederatedData({"x": np.zeros(SIZES.sum(), np.float32)}, np.concatenate([[0], np.cumsum(SIZES)]))
    uniform = fs.sampler.uniform(6)

    def sample(state, round, seed):
        cohort = fs.sampler.cohort(np.asarray(cohorts[round], np.int32), 6)
        if arrives is None:
            return cohort, state
        there = np.pad(np.asarray(arrives[round], bool), (0, 6 - len(arrives[round])))
        return dataclasses.replace(cohort, arrives=there), state

    sampler = uniform._replace(sample=sample)
    return fs.Simulation(algorithm, data, sampler, fs.Batching(2), on_nonfinite="drop", **toys.executed(**options))


COHORTS = [
    [0, 2, 5, 6, 7, 9],  # all train
    [0, 1, 4, 8, 3, 7],  # three have nothing, one is not finite
    [1, 4, 8],  # nobody has anything
    [10, 3, 8, 1, 11, 0],
]
TRAINS = [6, 2, 0, 3]


@pytest.mark.parametrize("kind", NOISE)
def test_the_sums_noise_is_that_of_all_who_were_drawn(kind):
    """The standard deviation of thousands of numbers is right to 5%, and wrong by 18% and more for those who train."""
    sim = simulation(kind, COHORTS)
    state = sim.init()
    of_one = {"local gaussian": Z * 0.5, "local laplace": Z * 0.5 * 2**0.5}.get(kind, Z * 0.5 / 6**0.5)
    for cohort, trains in zip(COHORTS, TRAINS, strict=True):
        state, metrics = sim.step(state)
        total = 6 * np.asarray(state.server)
        np.testing.assert_allclose(total[1:].std(), of_one * len(cohort) ** 0.5, rtol=0.05)
        assert metrics["cohort/contributed"] == trains == metrics["client/seen"]
        assert metrics["cohort/nonfinite"] == (NAN in cohort)
        assert metrics["cohort/clients"] == trains + (NAN in cohort)
        if "aggregate/noise_multiplier" in metrics:
            np.testing.assert_allclose(metrics["aggregate/noise_multiplier"], Z * (len(cohort) / 6) ** 0.5, rtol=1e-6)
        bits = 32 * DIM * len(cohort)
        assert metrics["aggregate/uplink_bits"] == bits
    assert sim.compile_count() == 1


@pytest.mark.parametrize("kind", ["discrete gaussian", "skellam"])
def test_masks_cancel_whoever_trains_and_whatever_lanes_devices_and_residency(kind):
    made = []
    for options in (
        {"lanes": 1, "devices": jax.devices()[:1]},
        {"lanes": 4, "devices": jax.devices()[:2]},
        {"lanes": 2, "devices": jax.devices()[:1], "residency": "stream", "rounds_per_dispatch": 2},
    ):
        sim = simulation(kind, COHORTS, dim=50, **options)
        state, _ = sim.run(sim.init(), rounds=4)
        made.append((np.asarray(state.server), state.ledger))
    for server, ledger in made:
        if kind == "discrete gaussian":  # of large shares, JAX's Poisson numbers follow the rounding of its logarithms
            np.testing.assert_array_equal(server, made[0][0])
        assert ledger == made[0][1]
        assert np.abs(server).max() < 10  # masks that are left would be of 2^31 steps
    assert made[0][1][0]["counts"] == [[6, 6, 3], [3, 3, 1]]


def test_clients_that_do_not_arrive_are_counted_and_take_their_noise_with_them():
    arrives = [[True] * 6, [True, False, True, False, True, False], [False] * 3, [True, True] + [False] * 4]
    sim = simulation("discrete gaussian", COHORTS, arrives)
    state, stds = sim.init(), []
    for _ in COHORTS:
        state, _ = sim.step(state)
        stds.append(6 * np.asarray(state.server)[1:].std())
    shares = np.array([6, 3, 0, 2])
    np.testing.assert_allclose(stds, Z * 0.5 * (shares / 6) ** 0.5, rtol=0.05)
    assert [of for entry in state.ledger for of in entry["counts"]] == [[6, 6, 1], [6, 3, 1], [3, 0, 1], [6, 2, 1]]
    by_hand = sim.epsilon(state=state, delta=1e-3)
    full, _ = (lambda s: s.run(s.init(), rounds=4))(simulation("discrete gaussian", COHORTS, dim=DIM))
    assert by_hand.epsilon > sim.epsilon(state=full, delta=1e-3).epsilon


def test_a_client_without_examples_is_drawn_all_the_same():
    """900 of 1,000 clients have none: the fraction is that of those drawn, the noise that of those who send."""
    mechanism = fs.aggregate.Mechanism(
        "discrete_gaussian", 6.3246, "distributed", details={"norm": 500.0, "dimension": 100, "shares": 100.0}
    )
    event = fs.sampler.uniform(100).event(1000)
    few = fs.privacy.epsilon([mechanism], event, 200, 1e-5, counts={(100, 10): 200}).epsilon
    all_send = fs.privacy.epsilon([mechanism], event, 200, 1e-5, counts={(100, 100): 200}).epsilon
    assert few >= 7.22
    assert few > all_send > 1.0  # which is what a simulation has, as those without examples send their share

    sizes = np.where(np.arange(1000) % 10 == 0, 1, 0)
    data = fs.FederatedData({"x": np.zeros(100, np.float32)}, np.concatenate([[0], np.cumsum(sizes)]))
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    stages = fs.aggregate.clip_by_l2(1.0), fs.aggregate.quantize(8), fs.aggregate.discrete_gaussian_noise(6.3246)
    aggregator = fs.aggregate.chain(*stages, fs.aggregate.secure_sum(), reduce=fs.aggregate.mean("uniform"))
    algorithm = fs.fedavg(task, optax.sgd(0.1), aggregator=aggregator)
    sim = fs.Simulation(algorithm, data, fs.sampler.uniform(100), fs.Batching(1))
    plans = pack(sim.parts, sim.init(), 5, slots=5, lanes=1)
    assert [(stats.drawn, stats.sent) for stats in plans.stats] == [(100, 100)] * 5
    assert max(stats.clients for stats in plans.stats) < 30


def test_a_plan_does_not_count_on_shares_that_may_not_come():
    """By 40 % dropouts the state's own count is above what a plan of full cohorts would claim: plans are refused."""
    p, uniform = fs.population, fs.sampler.uniform(6)
    chain = lambda sums: fs.aggregate.chain(CLIP, *NOISE["skellam"][:2], sums, reduce=fs.aggregate.mean("uniform"))

    def planned(sampler, sums=NOISE["skellam"][2]):
        algorithm = fs.fedavg(
            fs.Task(lambda key: jnp.zeros(2), lambda w, batch, key: jnp.sum(w) * batch["x"]),
            optax.sgd(0.1),
            aggregator=chain(sums),
        )
        data = fs.FederatedData({"x": np.zeros(40, np.float32)}, np.arange(41))
        sim = fs.Simulation(algorithm, data, sampler, fs.Batching(1), **toys.executed())
        return sim.epsilon(rounds=3, delta=1e-3).epsilon

    assert planned(uniform) > 0
    assert planned(p.bernoulli(0.9)(fs.sampler.uniform(4))) > 0  # enough others are always there
    short = [p.dropout(0.4)(uniform), p.bernoulli(0.1)(uniform), p.join([0] * 40)(fs.sampler.min_separation(6, 2))]
    for sampler in short:
        with pytest.raises(ArgumentError, match="fewer clients may send their share of noise"):
            planned(sampler)
    lossy = lambda **lost: fs.aggregate.secure_sum(protocol=fs.secure.bonawitz(dropouts=fs.secure.dropouts(**lost)))
    pytest.importorskip("cryptography")
    assert planned(uniform, lossy(unmask=0.1)) == planned(uniform)
    with pytest.raises(ArgumentError, match=r"secure_sum\(bonawitz"):
        planned(uniform, lossy(upload=0.1))
