"""A transform reports metrics as client functions do: a bare number is a mean of weight one."""

import jax
import jax.numpy as jnp
import optax

import fedjax_sim as fs


def test_a_transform_may_report_a_bare_number():
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    halve = fs.aggregate.Transform(
        name="halve",
        client=lambda key, state, row, payload, context: (payload / 2, row, {"size": jnp.abs(payload)}),
    )
    algorithm = fs.fedavg(task, optax.sgd(0.5), aggregator=fs.aggregate.chain(halve))
    data = fs.FederatedData({"x": jnp.array([1.0, 3.0])}, [0, 1, 2])
    sim = fs.Simulation(
        algorithm, data, fs.sampler.uniform(2), fs.Batching(1), execution=fs.Execution(devices=jax.devices()[:1])
    )
    _, metrics = sim.step(sim.init())
    assert metrics["aggregate/size"] == 2.0  # one step of rate 1/2 on (w - x)^2 from 0 moves by x: 1 and 3
