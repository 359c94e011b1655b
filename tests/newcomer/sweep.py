"""Two learning rates against each other, three values of each, two seeds."""

import optax

import fedjax_sim as fs

digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.dirichlet(0.3, 50), seed=0)
task = fs.classification(fs.models.LogisticRegression(10), digits.train)


def build(client_lr, server_lr):
    algorithm = fs.fedavg(task, optax.sgd(client_lr), server_optimizer=optax.sgd(server_lr))
    return fs.Simulation(algorithm, clients, fs.sampler.uniform(5), fs.Batching(10))


result = fs.sweep(build, {"client_lr": [0.01, 0.1, 1.0], "server_lr": [0.5, 1.0]}, rounds=3, seeds=2)
print(result.best("client/loss"))
result.heatmap("client/loss").savefig("heatmap.png")
