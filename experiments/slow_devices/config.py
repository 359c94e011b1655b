"""Slow, sleeping and lost devices: Fashion-MNIST on 1,000 of them, and what FedAvg and others reach in simulated days.

- Task: ten classes of clothes, 28x28 grey pixels (Xiao, Rasul and Vollgraf 2017), 20 pictures a client.
- Papers: those of `fs.population`, `fs.fedprox` and `fs.sampler`, in their docstrings. Fleet, days and sizes are ours.
- Command: `python experiments/slow_devices/compare.py`; or one way, `fedjax-sim run slow_devices --way oort`.
- Minutes: README.md has them, and the table.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs

DAY = 86_400.0
Way = Literal["deadline", "over_select", "partial_work", "fedbuff", "oort"]


@dataclasses.dataclass(frozen=True)
class Config:
    """One way to live with slow devices."""

    way: Way = "deadline"
    """deadline: FedAvg, late work is lost. over_select: FedAvg, more are invited and the fastest kept. partial_work:
    FedProx, late clients send what they have done. fedbuff: asynchronous. oort: chosen by losses and times, with a
    deadline."""
    awake: Literal["by_day", "always"] = "by_day"
    """by_day: by the hour, which goes with a client's main class. always: all are there, and none drops out; so it is
    with fedbuff in any case, as an asynchronous sampler takes no transforms."""
    rounds: int = 400
    """Rounds of training, or updates of the server."""
    seed: int = 0
    """Seed of everything random, partition and devices too."""
    num_clients: int = 1000
    """Clients of the population."""
    cohort_size: int = 20
    """Clients of a round; of fedbuff, of an update, with twice as many at work."""
    examples: int = 20_000
    """Of the training set, dealt out to the clients in equal parts."""
    alpha: float = 1.0
    """Dirichlet concentration of a client's classes, in total."""
    batch_size: int = 10
    """Examples in a local batch."""
    epochs: int = 3
    """Local epochs."""
    client_lr: float = 0.05
    """Learning rate of the clients' SGD."""
    mu: float = 0.01
    """FedProx's."""
    seconds_per_step: float = 30.0
    """Of the median device."""
    sigma: float = 1.0
    """Of the logarithm of devices' seconds."""
    deadline: float = 400.0
    """Seconds after which nobody is waited for."""
    dropouts: float = 0.1
    """Chance that an update is lost."""
    there: float = 0.3
    """Mean chance that a client is awake; it goes up to 1.9 of that and down to 0.1."""
    eval_every: int = 10
    """Rounds between evaluations on the test set."""


PRESETS: dict[str, Config] = {
    "default": Config(),
    "smoke": Config(rounds=3, num_clients=100, examples=1000, cohort_size=5, eval_every=1),
}


def build(config: Config) -> fs.Simulation:
    """The simulation of a config, with its evaluation."""
    fashion = fs.data.load("fashion_mnist")
    scale = lambda batch: {**batch, "x": batch["x"].astype(jnp.float32) / 255}
    pictures = {name: column[: config.examples] for name, column in fashion.train.items()}
    partition = fs.partition.dirichlet_labels(config.alpha, config.num_clients)
    clients = fs.data.federate(pictures, partition, seed=config.seed, about=fashion.about)
    task = fs.classification(fs.models.MLP(10, widths=(32,)), fashion.train, preprocess=scale)
    device = fs.fleet.Device(
        seconds_per_step=config.seconds_per_step, down=2e5, up=5e4, latency=0.1, watts=2.1, radio_watts=0.8
    )

    def evaluate(params: Any) -> dict[str, float]:
        test = fs.evaluate(task, params, fashion.test)
        return {f"test/{name}": float(value) for name, value in test.items()}

    return fs.Simulation(
        algorithm(config, task),
        clients,
        sampler(config, clients),
        fs.Batching(config.batch_size, epochs=config.epochs),
        seed=config.seed,
        fleet=fs.fleet.lognormal(config.sigma, device, bandwidth_sigma=0.5),
        evaluate=evaluate,
    )


def algorithm(config: Config, task: fs.Task) -> fs.Algorithm:
    """What clients and server do."""
    rate = optax.sgd(config.client_lr)
    if config.way == "partial_work":
        return fs.fedprox(task, rate, mu=config.mu)
    return fs.fedavg(task, rate, aggregator=fs.aggregate.mean("uniform") if config.way == "fedbuff" else None)


def sampler(config: Config, clients: fs.FederatedData) -> fs.sampler.Sampler:
    """Who takes part, who is awake then, and what becomes of them."""
    p, m = fs.population, config.cohort_size
    if config.way == "fedbuff":
        return fs.sampler.asynchronous(concurrency=2 * m, buffer=m, staleness=p.polynomial(0.5), max_staleness=20)
    by_day = config.awake == "by_day"
    asleep = [p.diurnal(config.there, 0.9, DAY, phase=DAY * main_class(clients) / 10)] if by_day else []
    lost = [p.dropout(config.dropouts, when="uniform")] if by_day else []
    first = fs.sampler.uniform(m)
    if config.way == "oort":  # it asks those whom it wants, awake or not
        first = fs.sampler.oort(round(m / config.there) if by_day else m, clients.sizes)
    late = {
        "deadline": p.deadline(config.deadline),
        "oort": p.deadline(config.deadline),
        "partial_work": p.deadline(config.deadline, partial="keep"),
        "over_select": p.over_select(1.5),
    }[config.way]
    return p.chain(first, *asleep, late, *lost)


def main_class(clients: fs.FederatedData) -> np.ndarray:
    """[K] the class that a client has most of."""
    labels = (clients.client(k)["y"] for k in range(clients.num_clients))
    return np.array([np.bincount(y, minlength=10).argmax() for y in labels])
