"""Rounds that the sampler gives up change nothing, whatever noise the chain adds; those without arrivals are others."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.engine import toys

A = fs.aggregate
CLIP = A.clip_by_l2(1.0)
COHORTS = ((6, 2, 4), (1, 5, 10), (11, 0, 3), (2, 8, 7))
GIVEN_UP, NOBODY = 1, 2
EXECUTED = toys.executed(lanes=3, devices=jax.devices()[:1])


def sampler(law=None) -> fs.sampler.Sampler:
    """Of whose rounds one is given up, although all arrive, and in another nobody arrives."""
    plain = toys.script(COHORTS)

    def sample(state, round, seed):
        cohort, state = plain.sample(state, round, seed)
        if round == NOBODY:
            return dataclasses.replace(cohort, arrives=np.zeros(3, bool)), state
        return dataclasses.replace(cohort, abandoned=round == GIVEN_UP), state

    return plain._replace(sample=sample, event=law)


uniform, apart = fs.sampler.uniform(3).event, fs.sampler.min_separation(3, 2).event
mean = A.mean("uniform")
CHAINS = {
    "none": (A.chain(A.adaptive_clip(0.5, bit_noise=0), reduce=mean), None),
    "central": (A.chain(A.adaptive_clip(0.5, bit_noise=1.0), A.gaussian_noise(1.0), reduce=mean), uniform),
    "correlated": (A.chain(CLIP, A.tree_noise(1.0, separation=2), reduce=mean), apart),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_round_that_is_given_up_changes_no_bit_and_one_without_arrivals_is_released(name):
    chain, law = CHAINS[name]
    algorithm = fs.fedavg(toys.task(), optax.sgd(0.1), optax.sgd(1.0, momentum=0.9), aggregator=chain)
    if name == "none":
        algorithm = fs.scaffold(toys.task(), toys.LR, toys.NUM_CLIENTS, aggregator=chain)
    sim = fs.Simulation(algorithm, toys.federation(), sampler(law), fs.Batching(3), **EXECUTED)
    state = sim.init()
    for round in range(len(COHORTS)):
        before = toys.on_device(state)
        state, metrics = sim.step(state)
        after = toys.on_device(state)
        assert metrics.abandoned == (round == GIVEN_UP)
        same = {part for part in before if (before[part] == after[part]).all()}
        if round == GIVEN_UP:
            assert metrics["cohort/contributed"] == 0
            # A tree goes on to its next node, as participations are counted in rounds.
            assert same >= ({"server", "rows"} if name == "correlated" else set(before))
            assert name != "correlated" or int(state.aggregator[0][1]["rounds"]) == 2
        elif round == NOBODY:
            assert ("server" in same) == (name == "none")
        else:
            assert "server" not in same
    assert sim.compile_count() == 1


def test_too_few_arrivals_under_local_noise_give_a_round_up():
    chain = A.chain(CLIP, A.local_gaussian_noise(1.0), reduce=mean)
    algorithm = fs.fedavg(toys.task(), optax.sgd(0.1), fs.server.fedadam(0.1), aggregator=chain)
    fleet = fs.fleet.lognormal(0.6, fs.fleet.Device(seconds_per_step=1.0))
    hasty = fs.population.deadline(1.5, min_cohort=3)(fs.sampler.uniform(5))
    sim = fs.Simulation(algorithm, toys.federation(), hasty, fs.Batching(3), fleet=fleet, **EXECUTED)
    models = [toys.flat(sim.init().server.params)]

    def evaluate(params):
        models.append(toys.flat(params))
        return {}

    _, history = sim.run(sim.init(), 8, evaluate=evaluate, eval_every=1, progress=False)
    told = [each.abandoned for each in history.rounds]
    assert history["population/abandoned"].tolist() == told
    assert 0 < sum(told) < 8
    moved = [bool((one != other).any()) for one, other in itertools.pairwise(models)]
    assert moved == [not each for each in told]
    assert f", {sum(told)} abandoned" in repr(history)
