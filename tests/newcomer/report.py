"""Two runs, and one page that compares them."""

import optax

import fedjax_sim as fs

digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.dirichlet(0.3, 50), seed=0)
task = fs.classification(fs.models.LogisticRegression(10), digits.train)
for name, rate in {"slow": 0.05, "fast": 0.5}.items():
    sim = fs.Simulation(fs.fedavg(task, optax.sgd(rate)), clients, fs.sampler.uniform(5), fs.Batching(10))
    sim.run(sim.init(), rounds=2, run_dir=f"runs/{name}")
fs.runs.report.write([fs.runs.read("runs/slow"), fs.runs.read("runs/fast")], "comparison.html")
