"""A learning rate that falls from round to round."""

import optax

import fedjax_sim as fs

digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.dirichlet(0.3, 50), seed=0)
task = fs.classification(fs.models.LogisticRegression(10), digits.train)
falling = fs.by_round(lambda round: optax.sgd(0.5 * 0.9**round))
sim = fs.Simulation(fs.fedavg(task, falling), clients, fs.sampler.uniform(5), fs.Batching(10))
state, history = sim.run(sim.init(), rounds=3)
print(history["client/loss"])
