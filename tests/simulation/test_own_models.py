"""Clients' own models, evaluated in one pass, wherever rows live."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.algorithms.problems import BATCHING, SIZES, START, least_squares
from tests.engine import toys

TASK, DATA, CLIENTS = least_squares()
HALVES = fs.data.split(DATA, 0.5)


def simulation(rows="device", **options):
    algorithm = fs.fedavg(TASK, optax.sgd(0.1), private="b", **options)
    execution = toys.executed(lanes=2, devices=jax.devices()[:2], rows=rows)
    return fs.Simulation(algorithm, DATA, fs.sampler.fixed([[0, 1, 2], [2, 5]]), BATCHING, **execution)


def loss(params, k, data=DATA):
    batch = {name: array[data.rows(k)] for name, array in data.arrays.items()}
    residual = batch["x"] @ np.asarray(params["w"]) + np.asarray(params["b"]) - batch["t"]
    return np.mean(residual**2) / 2 if len(residual) else np.nan


@pytest.mark.parametrize("rows", ["device", "host"])
def test_each_client_is_evaluated_under_its_own_model(rows):
    sim = simulation(rows)
    state, _ = sim.run(sim.init(START), rounds=2)
    own = [sim.params(state, client=k) for k in range(len(SIZES))]
    assert len({float(params["b"]) for params in own}) == 5  # 3 has no examples, and 4 was never drawn
    for data in (HALVES[1],) if rows == "host" else (DATA, HALVES[1]):
        found = sim.evaluate_clients(state, data, personal=True, batch_size=2)
        np.testing.assert_allclose(found["loss"], [loss(p, k, data) for k, p in enumerate(own)], rtol=1e-5)
    if rows == "host":
        return
    of_server = sim.evaluate_clients(state)["loss"]
    np.testing.assert_allclose(of_server, [loss(sim.params(state), k) for k in range(len(SIZES))], rtol=1e-5)
    assert abs(of_server - sim.evaluate_clients(state, personal=True)["loss"])[0] > 1e-3
    others = fs.data.FederatedData(DATA.arrays, [0, 4, 9], DATA.index[:9])
    unseen = sim.evaluate_clients(state, others, personal="unseen")["loss"]
    np.testing.assert_allclose(unseen, [loss(sim.params(state), k, others) for k in range(2)], rtol=1e-5)
    with pytest.raises(fs.FedSimError, match=r'data: has 2 clients, and rows are those of 6: .*personal="unseen"'):
        sim.evaluate_clients(state, others, personal=True)
    with pytest.raises(fs.FedSimError, match="client=6: must be a client's id, 0 to 5"):
        sim.params(state, client=6)


def test_a_compressed_downlink_keeps_clients_their_models():
    algorithm = fs.fedavg(TASK, optax.sgd(0.1), private="b")
    sent = fs.compress_downlink(algorithm, fs.aggregate.bfloat16(), lambda server: server.params)
    sim = fs.Simulation(sent, DATA, fs.sampler.fixed([[0, 2]]), BATCHING, **toys.executed(lanes=2))
    state, history = sim.run(sim.init(START), rounds=1)
    assert sim.params(state, client=0)["b"] != START["b"]
    assert history["aggregate/downlink_bits"][0] == 2 * 16 * 4


def test_algorithms_without_personal_models_say_so():
    sim = fs.Simulation(fs.fedavg(TASK, optax.sgd(0.1)), DATA, fs.sampler.fixed([[0, 2]]), BATCHING)
    for build in (
        lambda: sim.evaluate_clients(sim.init(), personal=True),
        lambda: sim.evaluate_clients(sim.init(), personal="unseen"),
        lambda: sim.params(sim.init(), client=1),
    ):
        with pytest.raises(fs.FedSimError, match="gives clients no model of their own"):
            build()
    with pytest.raises(fs.FedSimError, match="personal='own': must be"):
        sim.evaluate_clients(sim.init(), personal="own")
