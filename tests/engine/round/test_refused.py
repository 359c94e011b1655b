"""Reducers that must not refuse a round, and do."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.engine import toys
from tests.engine.round.test_collecting import REFUSED, simulation, told

STRICT = told()._replace(on_refused="error")


@pytest.mark.parametrize("on_nonfinite", ["raise", "drop"])
def test_a_reducer_that_must_not_refuse_ends_the_run(on_nonfinite):
    """In a block of rounds, whose rows would else be changed in place: with the state before the refused round."""
    sim = simulation(STRICT, rounds_per_dispatch=2, on_nonfinite=on_nonfinite)
    with pytest.raises(fs.RefusedRoundError, match=r"round 1: told\(3\) refuses it, of 2 clients") as ended:
        sim.run(sim.init(), 5)
    assert (ended.value.round, ended.value.state.round, len(ended.value.history)) == (1, 1, 1)
    first, _ = sim.step(sim.init())
    of = lambda state: jax.device_get((state.server, state.aggregator, state.rows))
    jax.tree.map(np.testing.assert_array_equal, of(ended.value.state), of(first))
    with pytest.raises(fs.RefusedRoundError) as ended:
        sim.step(first)
    assert ended.value.state is first


def test_a_member_of_a_sweep_that_is_refused_counts_as_diverged():
    def build(server_lr):
        algorithm = fs.fedavg(toys.task(noisy=True), optax.sgd(0.1), optax.sgd(server_lr), aggregator=STRICT)
        return simulation(algorithm=algorithm)

    found = fs.sweep(build, {"server_lr": [0.5, 1.0]}, rounds=2)
    assert found.diverged == [({"server_lr": rate}, 3, REFUSED.index(True)) for rate in (0.5, 1.0)]
    np.testing.assert_array_equal(np.isnan(found["client/loss"]), [[[False, True]]] * 2)
