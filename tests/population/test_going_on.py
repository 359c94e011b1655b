"""What a sampler's place taken by another leaves as it was, and how much a stale update counts."""

import dataclasses
from typing import Any

import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.population.transformed import TOTALS
from tests.engine import toys


def test_time_and_totals_go_on_under_another_sampler_and_back(tmp_path):
    fleet = fs.fleet.measured(1.0 + np.arange(toys.NUM_CLIENTS) % 4)

    def build(sampler):
        parts = fs.fedavg(toys.task(), optax.sgd(0.1)), toys.federation(), sampler, fs.Batching(3)
        return fs.Simulation(*parts, seed=2, fleet=fleet)

    waits = build(fs.population.deadline(9.0)(fs.sampler.uniform(3)))
    buffered = build(fs.sampler.asynchronous(5, 1, max_staleness=7))
    for one, other in ((waits, buffered), (buffered, waits)):
        folder = tmp_path / one.sampler.name[:5]
        state, told = one.sampler.init(toys.NUM_CLIENTS), {}
        for round in range(4):
            cohort, state = one.sampler.sample(state, round, 2)
            told = dict(cohort.told.report) if cohort.told is not None else {}
        assert told["clock/time"] > 0
        one.save(folder, dataclasses.replace(one.init(), sampler=state))
        restored = other.restore(folder, allow={"sampler"}).sampler
        assert {name: restored[name] for name in TOTALS} == {name: state[name] for name in TOTALS}
        after: Any = other.sampler.sample(restored, 4, 2)[0].told
        for name in ("clock/time", "clock/bytes_up", "clock/bytes_down"):
            assert after.report[name] > told[name]


DIVIDING = {
    "ifca": lambda task: fs.ifca(task, optax.sgd(0.1), k=2),
    "qfedavg": lambda task: fs.qfedavg(task, client_lr=0.1, q=1.0),
    "fednova": lambda task: fs.fednova(task, client_lr=0.1),
    "fedexp": lambda task: fs.fedexp(task, optax.sgd(0.1), eps=1e-9),
}
"""Methods whose server divides or multiplies a sum by another."""


@pytest.mark.parametrize("name", DIVIDING)
def test_a_stale_update_moves_the_model_less_by_its_weight(name):
    """A buffer of one: neither does the weight cancel, nor does it count twice."""
    weight = [1.0]
    sampler = fs.sampler.asynchronous(1, 1, staleness=lambda tau: np.full(np.shape(tau), weight[0]))
    sim = fs.Simulation(DIVIDING[name](toys.task()), toys.federation(), sampler, fs.Batching(4), seed=4)
    model = lambda state: toys.flat(getattr(state.server, "params", state.server))
    first, moved = sim.init(), []
    for each in (1.0, 0.125):
        weight[0] = each
        moved.append(model(sim.step(first)[0]) - model(first))
    assert np.abs(moved[0]).max() > 1e-3
    np.testing.assert_allclose(moved[1], 0.125 * moved[0], rtol=1e-3, atol=1e-6)
