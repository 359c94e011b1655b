"""The noise that keeps twenty rounds within an epsilon of 4."""

import optax

import fedjax_sim as fs

sampler, delta = fs.sampler.poisson(0.1), 1e-4
z = fs.privacy.calibrate(target_epsilon=4.0, delta=delta, rounds=20, sampler=sampler, population=200, tolerance=0.02)
digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.iid(200), seed=0)
task = fs.classification(fs.models.LogisticRegression(10), digits.train)
clip, noise, mean = fs.aggregate.clip_by_l2(0.5), fs.aggregate.gaussian_noise(z), fs.aggregate.mean("uniform")
private = fs.fedavg(task, optax.sgd(0.1), aggregator=fs.aggregate.chain(clip, noise, reduce=mean))
sim = fs.Simulation(private, clients, sampler, fs.Batching(5))
state, history = sim.run(sim.init(), rounds=3)
spent = sim.epsilon(rounds=20, delta=delta)
print(z, spent)
