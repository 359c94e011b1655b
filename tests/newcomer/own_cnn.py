"""A CNN of my own in Flax nnx, with batch normalisation."""

import optax
from flax import nnx

import fedjax_sim as fs


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.out(x.mean((1, 2)))


digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.dirichlet(0.3, 50), seed=0)
task = fs.classification(Net, digits.train, batch_stats="average")
sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), clients, fs.sampler.uniform(5), fs.Batching(20))
state, history = sim.run(sim.init(), rounds=2)
print(fs.evaluate(task, sim.params(state), digits.test))
