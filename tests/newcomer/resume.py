"""A run that goes on where Ctrl-C stopped it, when the script is started again."""

import optax

import fedjax_sim as fs

digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.dirichlet(0.3, 50), seed=0)
task = fs.classification(fs.models.LogisticRegression(10), digits.train)
sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), clients, fs.sampler.uniform(5), fs.Batching(10))
state = sim.restore("runs/mine", or_init=True)
state, history = sim.run(state, rounds=6 - state.round, run_dir="runs/mine")
