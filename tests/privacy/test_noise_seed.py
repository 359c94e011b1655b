"""Noise for privacy comes from the noise seed and nothing else does; clients here send zeros, so that all is noise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.engine import toys

A, DIM, K = fs.aggregate, 1500, 4
DATA = fs.FederatedData({"x": np.ones((K, 1), np.float32)}, np.arange(K + 1))
APART = fs.sampler.min_separation(2, separation=2)
INTEGERS = (A.clip_by_l2(1.0), A.quantize(8))
CHAINS = {
    "central": ((A.clip_by_l2(1.0), A.gaussian_noise(1.0)), None),
    "bit": ((A.adaptive_clip(1.0, bit_noise=0.5), A.gaussian_noise(1.0)), None),
    "local": ((A.clip_by_l2(1.0), A.local_gaussian_noise(1.0)), None),
    "laplace": ((A.local_laplace_noise(1.0, 1.0),), None),
    "discrete gaussian": ((*INTEGERS, A.discrete_gaussian_noise(1.0), A.secure_sum()), None),
    "skellam": ((*INTEGERS, A.skellam_noise(1.0), A.secure_sum()), None),
    "tree": ((A.clip_by_l2(1.0), A.tree_noise(1.0, separation=2)), APART),
    "banded": (None, APART),  # of an extra package
}


def chain(name):
    transforms = CHAINS[name][0]
    if transforms is None:
        pytest.importorskip("jax_privacy")
        transforms = (A.clip_by_l2(1.0), A.banded_noise(1.0, bands=2, rounds=4, coefficients=[1.0, 0.5]))
    return A.chain(*transforms, reduce=A.mean("uniform"))


def simulation(name, rate=0.0, **options):
    task = fs.Task(lambda key: jnp.zeros(DIM), lambda w, batch, key: jnp.mean((w[None] - batch["x"]) ** 2, axis=-1))
    algorithm = fs.fedavg(task, optax.sgd(rate), aggregator=chain(name))
    sampler = CHAINS[name][1] or fs.sampler.uniform(K)
    return fs.Simulation(
        algorithm, DATA, sampler, fs.Batching(1), **toys.executed(lanes=1, devices=jax.devices()[:1], **options)
    )


@functools.cache
def compiled(name):
    return simulation(name)


def noise(name, seed, noise_seed):
    """Of two rounds: on the model, and on the clip of the bit where there is one."""
    sim = compiled(name)
    state = dataclasses.replace(sim.init(), seed=seed, noise_seed=noise_seed)
    state, _ = sim.step(state)
    state, metrics = sim.step(state)
    assert sim.compile_count() == 1
    return np.asarray(sim.params(state)), metrics["aggregate/clip_norm"] if name == "bit" else 0.0


@pytest.mark.parametrize("name", CHAINS)
def test_noise_is_the_noise_seeds_and_independent_of_anothers(name):
    first, own = noise(name, 1, None), noise(name, 1, 1)
    np.testing.assert_array_equal(first[0], own[0])
    assert first[1] == own[1]
    other, shared = noise(name, 1, 2), noise(name, 3, 1)
    np.testing.assert_allclose(shared[0], first[0], rtol=1e-5, atol=1e-6)  # what two runs of one seed share
    assert abs(np.corrcoef(first[0], other[0])[0, 1]) < 4 / DIM**0.5
    assert 0.8 < np.std(other[0]) / np.std(first[0]) < 1.25
    if name == "bit":
        assert shared[1] == pytest.approx(first[1])
        assert other[1] != pytest.approx(first[1])


def test_a_simulations_noise_seed_goes_with_its_states_and_checkpoints(tmp_path):
    sim = simulation("central", noise_seed=2)
    straight, _ = sim.run(sim.init(), rounds=2)
    np.testing.assert_array_equal(sim.params(straight), noise("central", 0, 2)[0])
    paused, _ = sim.step(sim.init())
    assert paused.noise_seed == 2
    sim.save(tmp_path, paused)
    resumed, _ = sim.run(sim.restore(tmp_path), rounds=1)
    np.testing.assert_array_equal(sim.params(resumed), sim.params(straight))
    with pytest.raises(fs.RunFolderError, match="noise_seed was 2 there and is 3 here"):
        simulation("central", noise_seed=3).restore(tmp_path)
    assert "noise seed: 2" in repr(sim)
    assert "noise seed" not in repr(compiled("central"))


def test_sampling_and_training_do_not_see_it():
    made, sim = [], simulation("central", rate=0.1)
    for noise_seed in (None, 7):
        _, metrics = sim.step(dataclasses.replace(sim.init(), noise_seed=noise_seed))
        made.append((metrics.cohort.ids.tolist(), metrics["client/loss"], metrics["aggregate/update_norm"]))
    assert made[0] == made[1]


def test_a_sweep_over_noise_seeds_is_one_program():
    result = fs.sweep(
        lambda noise_seed: simulation("central", noise_seed=noise_seed), {"noise_seed": [2, 5]}, 2, seeds=2
    )
    assert result.compilations == 1
    for row, noise_seed in zip(result.members, (2, 5), strict=True):
        for seed, member in enumerate(row):
            np.testing.assert_allclose(member.params, noise("central", seed, noise_seed)[0], rtol=1e-5, atol=1e-6)
    plain = fs.sweep(lambda rate: simulation("central", rate), {"rate": [0.0]}, 2, seeds=2)
    for seed, member in enumerate(plain.members[0]):  # each seed's own
        np.testing.assert_allclose(member.params, noise("central", seed, None)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 2**32, 0.5, "0"])
def test_noise_seeds_that_are_none(wrong):
    with pytest.raises(fs.FedSimError, match="noise_seed="):
        simulation("central", noise_seed=wrong)


def test_an_epsilon_says_that_one_seed_has_one_noise():
    pytest.importorskip("dp_accounting")
    assert "runs of one seed share their noise" in str(compiled("central").epsilon(rounds=1, delta=1e-3))
