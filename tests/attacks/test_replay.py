"""Free riders that send what the round before changed."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.algorithms.problems import quadratics, simulate
from tests.attacks.test_attacks import COPIES, LR, ONE_STEP, A, B, deltas


@pytest.mark.parametrize("obeys_chain", [True, False])
def test_a_replay_is_the_change_of_the_round_before(obeys_chain):
    everybody, (before, x) = np.arange(6), (0.0, 0.0)
    task, data = quadratics(A, B, COPIES)
    algorithm = fs.fedavg(task, optax.sgd(LR))
    lazy = fs.attacks.infect(algorithm, fs.attacks.free_rider("replay"), [3], obeys_chain=obeys_chain)
    for state in simulate(lazy, data, [everybody] * 3, ONE_STEP, params=jnp.float32(0.0)):
        moved = np.where(everybody == 3, x - before, deltas(x, everybody))
        before, x = x, x + np.average(moved, weights=COPIES)
        np.testing.assert_allclose(lazy.params(state.server), x, rtol=1e-5)
    assert lazy.init(jnp.float32(2.0))[0].previous == 2.0
