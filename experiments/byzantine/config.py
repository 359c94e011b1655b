"""Attacks against robust rules: Fashion-MNIST, 50 clients, a fifth of them malicious.

- Task: ten classes of clothes, 28x28 grey pixels (Xiao, Rasul and Vollgraf 2017), dealt out by a Dirichlet law.
- Papers: those of `fs.attacks` and `fs.aggregate`, in their docstrings. Data, model and sizes are
  ours.
- Command: `fedjax-sim sweep byzantine --grid attack=... --grid rule=...`; README.md has the table.
- Seconds: about 25 a cell on two cores shared with other work.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import optax

import fedjax_sim as fs

Attack = Literal["none", "label_flip", "backdoor", "sign_flip", "gaussian", "alie", "ipm", "min_max", "mimic"]
Rule = Literal[
    "mean", "median", "trimmed_mean", "multi_krum", "bulyan", "geometric_median", "centered_clipping", "dnc", "nnm"
]


@dataclasses.dataclass(frozen=True)
class Config:
    """One attack against one rule."""

    rounds: int = 30
    """Rounds of training."""
    seed: int = 0
    """Seed of everything random, the partition and who is malicious too."""
    attack: Attack = "alie"
    """What malicious clients do."""
    rule: Rule = "median"
    """What the server makes of the messages."""
    share: float = 0.2
    """Malicious clients, of all; what the rules are told."""
    num_clients: int = 50
    """Clients of the population, all of whom take part in each round."""
    examples: int = 15_000
    """Of the training set, dealt out to the clients."""
    alpha: float = 1.0
    """Dirichlet concentration of the partition."""
    batch_size: int = 20
    """Examples in a local batch."""
    client_lr: float = 0.1
    """Learning rate of the clients' SGD, one epoch."""
    eval_every: int = 10
    """Rounds between evaluations on the test set."""


PRESETS: dict[str, Config] = {
    "default": Config(),
    "smoke": Config(rounds=2, attack="sign_flip", rule="multi_krum", examples=1000, eval_every=1),
}
TRIGGER = fs.attacks.patch(4, 255)
TARGET = 0


def attack(name: Attack) -> fs.attacks.Attack:
    """An attack by its name, of settings that are common in papers."""
    return {
        "label_flip": fs.attacks.label_flip("reverse"),
        "backdoor": fs.attacks.backdoor(TRIGGER, TARGET, share=0.5),
        "sign_flip": fs.attacks.sign_flip(3.0),
        "gaussian": fs.attacks.gaussian(1.0),
        "alie": fs.attacks.alie(),
        "ipm": fs.attacks.ipm(0.5),
        "min_max": fs.attacks.min_max(),
        "mimic": fs.attacks.mimic(0),
    }[name]


def reducer(name: Rule, f: int) -> fs.aggregate.Reducer:
    """A rule by its name, told of f malicious clients."""
    a = fs.aggregate
    return {
        "mean": lambda: a.mean("uniform"),
        "median": a.median,
        "trimmed_mean": lambda: a.trimmed_mean(f),
        "multi_krum": lambda: a.multi_krum(f),
        "bulyan": lambda: a.bulyan(f),
        "geometric_median": a.geometric_median,
        "centered_clipping": lambda: a.centered_clipping(1.0),
        "dnc": lambda: a.dnc(f),
        "nnm": lambda: a.nnm(f, a.trimmed_mean(f)),
    }[name]()


def build(config: Config) -> fs.Simulation:
    """The simulation of a config, with its evaluation."""
    fashion = fs.data.load("fashion_mnist")
    scale = lambda batch: {**batch, "x": batch["x"].astype(jnp.float32) / 255}
    pictures = {name: column[: config.examples] for name, column in fashion.train.items()}
    partition = fs.partition.dirichlet(config.alpha, config.num_clients)
    clients = fs.data.federate(pictures, partition, seed=config.seed, about=fashion.about)
    task = fs.classification(fs.models.MLP(10, widths=(32,)), fashion.train, preprocess=scale)
    f = round(config.share * config.num_clients)
    algorithm = fs.fedavg(task, optax.sgd(config.client_lr), aggregator=reducer(config.rule, f))
    if config.attack != "none":
        algorithm = fs.attacks.infect(
            algorithm, attack(config.attack), config.share, num_clients=config.num_clients, seed=config.seed
        )
    triggered = fs.attacks.backdoor_test(fashion.test, TRIGGER, TARGET)

    def evaluate(params: Any) -> dict[str, Any]:
        found = {f"test/{name}": value for name, value in fs.evaluate(task, params, fashion.test).items()}
        return {**found, "test/backdoor": fs.evaluate(task, params, triggered)["accuracy"]}

    return fs.Simulation(
        algorithm,
        clients,
        fs.sampler.uniform(config.num_clients),
        fs.Batching(config.batch_size),
        seed=config.seed,
        evaluate=evaluate,
        on_nonfinite="drop",
    )
