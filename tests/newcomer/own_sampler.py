"""A sampler of my own: clients that hold more examples are drawn more often."""

import numpy as np
import optax

import fedjax_sim as fs

digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.dirichlet(0.3, 50), seed=0)
task = fs.classification(fs.models.LogisticRegression(10), digits.train)


def larger_first(state, round, seed):
    ids = np.random.default_rng([seed, round]).choice(50, 5, replace=False, p=clients.sizes / clients.sizes.sum())
    return fs.sampler.cohort(ids, 5), state


by_size = fs.sampler.Sampler(lambda population: None, larger_first, lambda population: 5, lambda population: 5.0)
sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), clients, by_size, fs.Batching(10))
state, history = sim.run(sim.init(), rounds=2)
