"""Handwritten digits that 100 clients hold, each with its own mix of classes: the EMNIST CNN by FedAvg; or as you say.

Data: scikit-learn's digits (UCI, Alpaydin and Kaynak, 1998), 1,437 pictures of 8x8 pixels to train on and 360 to test
on. The partition is synthetic: Dirichlet over clients, class by class, concentration 0.3.

Method: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
Algorithm 1. The model is the CNN of Reddi et al., "Adaptive Federated Optimization", ICLR 2021, for EMNIST.

    fedjax-sim run quickstart
    fedjax-sim run quickstart --algorithm scaffold --partition dirichlet:0.1 --model mlp --clip 1.0 --compress drive

Under a minute on two cores; test accuracy 0.97. To go on from here: `fedjax-sim new my_experiment --from quickstart`.
"""

import dataclasses
from typing import Literal

import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim import algorithms
from fedjax_sim.runs.choices import chosen


@dataclasses.dataclass(frozen=True)
class Config:
    """FedAvg on the digits, or something else. `NAME:VALUE` gives a function of fs its arguments."""

    algorithm: str = "fedavg"
    """fedavg, fedprox:mu=0.1, scaffold, feddyn, fednova, fedexp, fedsam, mime, qfedavg:1.0 ..., of fs."""
    data: str = "digits"
    """digits, mnist, fashion_mnist, emnist, cifar100: of `fedjax-sim data list`, pictures with labels."""
    partition: str = "dirichlet:0.3"
    """dirichlet:ALPHA, iid, shards:shards_per_client=2, pathological:2, quantity_dirichlet:0.5 ..., of fs.partition."""
    model: Literal["cnn", "mlp", "logistic_regression"] = "cnn"
    """Of fs.models."""
    server: str | None = None
    """The server's optimizer: fedavgm, fedadam:0.01, fedyogi:0.01 ..., of fs.server; plain addition if left out."""
    clip: float | None = None
    """The L2 norm to which clients' updates are clipped."""
    noise: float | None = None
    """Gaussian noise for privacy on the sum, in units of the clip; cohorts are then drawn by a Poisson law."""
    compress: str | None = None
    """What clients send: drive, eden:4, quantize:8, top_k:0.01, sign ..., of fs.aggregate."""
    rounds: int = 100
    """Rounds of training."""
    num_clients: int = 100
    """Clients of the population."""
    cohort_size: int = 20
    """Clients drawn each round."""
    epochs: int = 5
    """Local epochs."""
    batch_size: int = 20
    """Examples in a local batch."""
    client_lr: float = 0.1
    """Learning rate of the clients' SGD."""
    seed: int = 0
    """Seed of everything random."""
    eval_every: int = 20
    """Rounds between evaluations."""
    lanes: int | Literal["auto"] = "auto"
    """Clients that a device trains side by side."""


PRESETS = {
    "default": Config(),
    "smoke": Config(rounds=3, cohort_size=5, epochs=1),
}


def build(config: Config) -> fs.Simulation:
    data = fs.data.load(config.data)
    partition = chosen(fs.partition, config.partition, num_clients=config.num_clients)
    clients = fs.data.federate(data.train, partition, seed=config.seed, about=data.about)
    models = {"cnn": fs.models.CNN, "mlp": fs.models.MLP, "logistic_regression": fs.models.LogisticRegression}
    task = fs.classification(models[config.model](num_classes=int(np.max(data.train["y"])) + 1), data.train)

    def evaluate(params) -> dict[str, float]:
        test = fs.evaluate(task, params, data.test)
        on_clients = fs.evaluate_clients(task, params, clients).quantiles("accuracy", (0.1, 0.5, 0.9))
        return {
            **{f"test/{name}": value for name, value in test.items()},
            **{f"clients/accuracy_p{100 * p:.0f}": value for p, value in on_clients.items()},
        }

    share = config.cohort_size / config.num_clients
    return fs.Simulation(
        make_algorithm(config, task),
        clients,
        fs.sampler.uniform(config.cohort_size) if config.noise is None else fs.sampler.poisson(share),
        fs.Batching(config.batch_size, epochs=config.epochs),
        seed=config.seed,
        execution=fs.Execution(lanes=config.lanes),
        evaluate=evaluate,
    )


def make_algorithm(config: Config, task: fs.Task) -> fs.Algorithm:
    """With what clients send on its way to the server, and the server's optimizer."""
    sent = [fs.aggregate.clip_by_l2(config.clip)] if config.clip is not None else []
    sent += [fs.aggregate.gaussian_noise(config.noise)] if config.noise is not None else []
    sent += [chosen(fs.aggregate, config.compress)] if config.compress is not None else []
    asked = {}
    if sent:
        reduce = fs.aggregate.mean("uniform" if config.noise is not None else "examples")
        asked["aggregator"] = fs.aggregate.chain(*sent, reduce=reduce)
    if config.server is not None:
        asked["server_optimizer"] = chosen(fs.server, config.server)
    rate = optax.sgd(config.client_lr)
    known = {"client_lr": config.client_lr, "client_optimizer": rate, "optimizer": rate, "inner": rate}
    return chosen(algorithms, config.algorithm, task, asked=asked, **known)
