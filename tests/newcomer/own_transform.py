"""A transform of my own: clients send the signs of their updates, times a fixed length."""

import jax
import jax.numpy as jnp
import optax

import fedjax_sim as fs


def signs(length):
    def client(key, state, row, payload, context):
        return jax.tree.map(lambda leaf: length * jnp.sign(leaf), payload), row, {}

    bound = lambda state, incoming, dim: length * dim**0.5  # of the L2 norm of what is sent
    return fs.aggregate.Transform(f"signs({length})", client=client, bound=bound)


digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.iid(50), seed=0)
task = fs.classification(fs.models.LogisticRegression(10), digits.train)
algorithm = fs.fedavg(task, optax.sgd(0.1), aggregator=fs.aggregate.chain(signs(0.01)))
sim = fs.Simulation(algorithm, clients, fs.sampler.uniform(5), fs.Batching(10))
state, history = sim.run(sim.init(), rounds=2)
