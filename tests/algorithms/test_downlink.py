"""A compressed downlink: clients start from what they received, the server keeps the exact model, bits are counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

A = fs.aggregate
DIM = 5
START = jnp.array([0.123456, -1.7, 3.3, 0.01, 2.0])
DATA = fs.data.FederatedData({"x": np.random.default_rng(0).normal(size=(9, DIM)).astype(np.float32)}, [0, 2, 5, 9])
TASK = fs.Task(lambda key: START, lambda w, batch, key: jnp.sum((w[None] - batch["x"]) ** 2, -1) / 2)


def simulation(algorithm, seed=0):
    sampler = fs.sampler.fixed([[0, 1, 2]] * 4)
    return fs.Simulation(
        algorithm, DATA, sampler, fs.Batching(4), seed=seed, execution=fs.Execution(devices=jax.devices()[:1])
    )


def bf16(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)


def test_the_clients_start_from_what_they_received_and_the_server_moves_the_exact_model():
    sim = simulation(fs.compress_downlink(fs.fedavg(TASK, optax.sgd(0.1)), A.bfloat16()))
    state, x = sim.init(), np.asarray(START)
    for _ in range(3):
        state, metrics = sim.step(state)
        deltas, sizes = [], np.array([2, 3, 4])
        for k in range(3):
            deltas.append(-0.1 * (bf16(x) - DATA.client(k)["x"].mean(0)))
        x = x + np.average(deltas, axis=0, weights=sizes)
        np.testing.assert_allclose(sim.params(state), x, rtol=1e-5)
        np.testing.assert_array_equal(state.server.received[0], bf16(sim.params(state)))
        assert metrics["aggregate/downlink_bits"] == 3 * 16 * DIM
        assert metrics["aggregate/uplink_bits"] == 3 * 32 * DIM
    assert sim.compile_count() == 1


def test_clients_that_do_not_move_leave_the_exact_model_as_it_was():
    """Deltas are against the received model: against the exact one the compression would be undone, or added."""
    sim = simulation(fs.compress_downlink(fs.fedavg(TASK, optax.sgd(0.0)), A.k_level(4)))
    state, _ = sim.step(sim.init())
    np.testing.assert_array_equal(sim.params(state), START)
    assert np.abs(state.server.received[0] - START).max() > 0.1


def test_each_round_draws_anew_and_resumes_the_same():
    sim = simulation(fs.compress_downlink(fs.fedavg(TASK, optax.sgd(0.0)), A.k_level(4)))
    first, _ = sim.step(sim.init())
    second, _ = sim.step(first)
    again, _ = sim.step(dataclasses.replace(first))
    assert np.abs(second.server.received[0] - first.server.received[0]).max() > 0.1
    np.testing.assert_array_equal(second.server.received[0], again.server.received[0])


@pytest.mark.parametrize(
    "compressor, bits",
    [
        (A.k_level(16), 4 * DIM + 64),
        (A.eden(4), 4 * 8 + 64),
        (A.chain(A.rotate(), A.bfloat16()), 16 * 8),
        (A.top_k(0.4), 2 * (32 + 3)),
    ],
    ids=["k_level", "eden", "rotate, bfloat16", "top_k"],
)
def test_bits_are_those_of_the_message(compressor, bits):
    sim = simulation(fs.compress_downlink(fs.fedavg(TASK, optax.sgd(0.1), fs.server.fedadam(0.1)), compressor))
    state, metrics = sim.step(sim.init())
    assert metrics["aggregate/downlink_bits"] == 3 * bits
    np.testing.assert_array_equal(metrics.clients("aggregate/downlink_bits"), [bits] * 3)
    assert np.isfinite(sim.params(state)).all()


def test_scaffold_sends_what_it_says_and_nothing_else_can_be_read():
    scaffold = fs.scaffold(TASK, 0.1, 3)
    with pytest.raises(fs.FedSimError, match=r"broadcast=None: the client function reads more of the server state"):
        simulation(fs.compress_downlink(scaffold, A.bfloat16()))
    sim = simulation(fs.compress_downlink(scaffold, A.bfloat16(), broadcast=lambda s: (s.params, s.control)))
    state, metrics = sim.step(sim.init())
    assert metrics["aggregate/downlink_bits"] == 3 * 2 * 16 * DIM
    np.testing.assert_array_equal(state.server.received[1], bf16(state.server.exact.control))


@pytest.mark.parametrize(
    "compressor, message",
    [
        (A.error_feedback(A.sign()), "row a client"),
        (A.power_sgd(1, feedback=False), "row a client"),
        (A.median(), "no compressor"),
        (A.chain(A.clip_by_l2(1.0), A.quantize(8)), "keeps a state"),
        (A.chain(A.clip_by_l2(1.0), A.gaussian_noise(1.0), reduce=A.mean("uniform")), "adds noise"),
    ],
    ids=["feedback", "power_sgd", "median", "clip", "noise"],
)
def test_what_one_message_to_all_cannot_be_is_refused(compressor, message):
    with pytest.raises(fs.FedSimError, match=message):
        simulation(fs.compress_downlink(fs.fedavg(TASK, optax.sgd(0.1)), compressor))


def test_a_broadcast_that_computes_is_refused():
    doubled = fs.compress_downlink(fs.fedavg(TASK, optax.sgd(0.1)), A.bfloat16(), broadcast=lambda s: (s.params, 2.0))
    with pytest.raises(fs.FedSimError, match="select leaves"):
        simulation(doubled)
