"""FedAvg against FedAdam, five seeds each, as a table for a paper."""

import optax

import fedjax_sim as fs

digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.dirichlet(0.3, 50), seed=0)
task = fs.classification(fs.models.LogisticRegression(10), digits.train)
servers = {"FedAvg": None, "FedAdam": fs.server.fedadam(0.03)}


def build(server):
    evaluate = lambda params: fs.evaluate(task, params, digits.test)
    algorithm = fs.fedavg(task, optax.sgd(0.1), servers[server])
    return fs.Simulation(algorithm, clients, fs.sampler.uniform(5), fs.Batching(10), evaluate=evaluate)


for score in fs.sweep(build, {"server": list(servers)}, rounds=3, seeds=5).scores("accuracy"):
    print(rf"{score.setting['server']} & ${score.mean:.3f} \pm {score.standard_error:.3f}$ \\")
