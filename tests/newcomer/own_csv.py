"""A model of my own CSV: labels are texts, and values are missing."""

import optax

import fedjax_sim as fs

columns = {"x": ["age", "blood_pressure"], "y": "outcome"}
patients = fs.data.sources.table("patients.csv", client="hospital", columns=columns, nulls="nan", categories=True)
train, test = fs.data.split(patients, test=0.2)
train, test = fs.data.fill(train, test).data
train, test = fs.data.normalise(train, test).data
outcomes = fs.data.categories(patients, "y")
task = fs.classification(fs.models.LogisticRegression(len(outcomes)), train.client(0))
sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.5)), train, fs.sampler.uniform(2), fs.Batching(4))
state, history = sim.run(sim.init(), rounds=3)
print(outcomes, fs.evaluate(task, sim.params(state), test))
