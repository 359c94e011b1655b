"""Banks that find fraud together: card payments of synthetic banks, or loans of the states that they were made in.

- Task: which payment is fraud (Dal Pozzolo et al. 2015; 0.17 %)? Which loan goes bad (Lending Club 2018; 1.8 %)?
- Papers: FedAvg, McMahan et al. 2017; focal loss, Lin et al. 2017; trimmed mean, Yin et al. 2018; noise for privacy,
  McMahan et al. 2018.
- Command: `fedjax-sim run banks --how robust`; README.md has the comparison.
- Seconds: about 20 of CPU time a run of the cards; 10 of the loans.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs

a = fs.aggregate


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: whose payments, what banks send, and whether one of them lies."""

    rounds: int = 30
    """Rounds of training, an epoch of each bank."""
    seed: int = 0
    """Seed of everything random, the dishonest bank too."""
    data: Literal["cards", "loans", "made"] = "cards"
    """Payments, of banks by hour and amount; loans by state; or payments that are made up here, for a quick look."""
    how: Literal["federated", "pooled", "robust", "private"] = "federated"
    """A mean; all in one place; a trimmed mean; or a mean with noise for privacy."""
    dishonest: bool = False
    """One bank sends the opposite of what it learnt, many times over."""
    loss: Literal["plain", "weighted", "focal"] = "weighted"
    """What is done about fraud being rare."""
    positive_weight: float = 20.0
    """Of the weighted loss: how often a fraud counts."""
    gamma: float = 2.0
    """Of the focal loss: how little counts what is known well already."""
    hours: int = 2
    """Hours of the day that a synthetic bank has, of one band of amounts."""
    width: int = 16
    """Units of the hidden layer."""
    lr: float = 0.1
    """Learning rate of the banks' SGD."""
    batch_size: int = 128
    """Payments in a local batch."""
    scale: float = 50.0
    """How many times over the dishonest bank sends."""
    clip: float = 0.5
    """Of the private run: the L2 norm of a bank's update."""
    noise_multiplier: float = 6.0
    """Of the private run: noise over the clip."""
    eval_every: int = 10
    """Rounds between evaluations on the payments that are held out."""


PRESETS: dict[str, Config] = {
    "default": Config(),
    "loans": Config(data="loans", batch_size=32),
    "smoke": Config(data="made", rounds=2, eval_every=1),
}

BANDS = (5.6, 22.0, 77.0)
"""Euros between small, middling, large and very large payments: about the quarters of all."""
FALSE_ALARMS = 1e-3


def banks(config: Config) -> tuple[fs.FederatedData, fs.FederatedData]:
    """(train, test) by bank: x [n, p] float32 and y [n] int32, 1 for fraud or a bad loan."""
    if config.data == "loans":
        loans = fs.data.load("lending_club")
        return scaled(loans.train, loans.test)
    cards = made_up(config.seed) if config.data == "made" else fs.data.load("credit_card_fraud")
    parts = [by_bank(part, config.hours) for part in (cards.train, cards.test)]
    kept = [k for k in range(parts[0].num_clients) if parts[0].sizes[k] and parts[1].sizes[k]]
    train, test = (select(part, kept) for part in parts)
    return train, test


def by_bank(payments: Any, hours: int) -> fs.FederatedData:
    """Payments of two days by hour of the day and band of amounts, with these as features besides the 28 components."""
    time, amount = payments["x"][:, 0], payments["x"][:, -1]
    hour = time / 3600 % 24
    bank = (hour // hours).astype(int) * (len(BANDS) + 1) + np.searchsorted(BANDS, amount, side="right")
    turn = 2 * np.pi * hour / 24
    x = np.column_stack([payments["x"][:, 1:-1], np.log1p(amount) / 3, np.sin(turn), np.cos(turn)])
    order = np.argsort(bank, kind="stable")
    sizes = np.bincount(bank, minlength=24 // hours * (len(BANDS) + 1))
    arrays = {"x": x[order].astype(np.float32), "y": payments["y"][order]}
    return fs.FederatedData(arrays, np.concatenate([[0], np.cumsum(sizes)]))


def select(data: fs.FederatedData, kept: list[int]) -> fs.FederatedData:
    """Some of the banks."""
    parts = [data.client(k) for k in kept]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return fs.FederatedData(arrays, np.concatenate([[0], np.cumsum(data.sizes[kept])]))


def scaled(train: fs.FederatedData, test: fs.FederatedData) -> tuple[fs.FederatedData, fs.FederatedData]:
    """Features of mean 0 and deviation 1 over all training loans; sums of money by their logarithm."""
    logs = lambda x: np.where(np.abs(x) > 100, np.sign(x) * np.log1p(np.abs(x)), x)
    x = logs(train.arrays["x"])
    mean, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-3)
    of = lambda data: fs.FederatedData(
        {"x": ((logs(data.arrays["x"]) - mean) / deviation).astype(np.float32), "y": data.arrays["y"]},
        np.concatenate([[0], np.cumsum(data.sizes)]),
    )
    return of(train), of(test)


def made_up(seed: int) -> Any:
    """2,500 payments whose fraud, 2 %, has other components than the rest: for a look of seconds."""
    draw = np.random.default_rng(seed)

    def payments(n: int) -> dict[str, np.ndarray]:
        y = (draw.random(n) < 0.02).astype(np.int32)
        components = draw.normal(size=(n, 28)) + 2.0 * y[:, None] * (np.arange(28) < 4)
        x = np.column_stack([draw.uniform(0, 172_800, n), components, draw.lognormal(3, 1.5, n)])
        return {"x": x.astype(np.float32), "y": y}

    return fs.data.CentralData(payments(2000), payments(500), "made", {})


def task_of(config: Config, train: fs.FederatedData) -> fs.Task:
    r"""A network of one hidden layer, whose loss counts rare fraud for more.

    Weighted: :math:`w_y \mathrm{CE}`. Focal (Lin et al. 2017, equation 4): :math:`(1 - p_y)^\gamma \mathrm{CE}`.
    """

    def loss(logits: jax.Array, batch: Any) -> jax.Array:
        y = batch["y"]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        if config.loss == "weighted":
            return each * jnp.where(y == 1, config.positive_weight, 1.0)
        if config.loss == "focal":
            return each * (1 - jnp.exp(-each)) ** config.gamma
        return each

    return fs.flax_task(model_of(config), train.arrays, loss)


def model_of(config: Config) -> Any:
    """The network."""
    return fs.models.MLP(2, widths=(config.width,))


def scores_of(config: Config, params: Any, x: np.ndarray) -> np.ndarray:
    """[n] log-odds of fraud."""
    logits = np.asarray(model_of(config).apply(params, x), np.float64)
    return logits[:, 1] - logits[:, 0]


def figures(scores: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The average precision, and the recall where at most 0.1 % of the honest raise an alarm; NaN without fraud."""
    if not y.any() or y.all():
        return {"average_precision": float("nan"), "recall": float("nan")}
    order = np.argsort(-scores, kind="stable")
    scores, y = scores[order], y[order]
    last = np.append(scores[1:] != scores[:-1], True)  # payments of one score raise alarms together
    caught, alarms = np.cumsum(y)[last], np.cumsum(1 - y)[last]
    precision, steps = caught / (caught + alarms), np.diff(caught, prepend=0)
    few = alarms <= FALSE_ALARMS * (1 - y).sum()
    return {
        "average_precision": float((precision * steps).sum() / y.sum()),
        "recall": float(caught[few].max(initial=0) / y.sum()),
    }


def chain(config: Config) -> a.Aggregator:
    """What becomes of the banks' updates."""
    if config.how == "private":
        noise = (a.clip_by_l2(config.clip), a.gaussian_noise(config.noise_multiplier))
        return a.chain(*noise, reduce=a.mean("uniform"))
    if config.how == "robust":
        return a.chain(reduce=a.trimmed_mean(1))
    return a.chain()


def algorithm_of(config: Config, train: fs.FederatedData) -> fs.Algorithm:
    """FedAvg, with a bad bank if there is one: one drawn from the seed."""
    algorithm = fs.fedavg(task_of(config, train), optax.sgd(config.lr), aggregator=chain(config))
    if not config.dishonest:
        return algorithm
    bad = int(np.random.default_rng(config.seed).integers(train.num_clients))
    return fs.attacks.infect(algorithm, fs.attacks.sign_flip(config.scale), [bad])


def build(config: Config) -> fs.Simulation:
    """The simulation of a config, with its evaluation."""
    train, test = banks(config)
    if config.how == "pooled":
        train = fs.FederatedData(train.arrays, [0, int(train.sizes.sum())])

    def evaluate(params: Any) -> dict[str, float]:
        found = figures(scores_of(config, params, test.arrays["x"]), test.arrays["y"])
        return {f"test/{name}": value for name, value in found.items()}

    return fs.Simulation(
        algorithm_of(config, train),
        train,
        fs.sampler.uniform(train.num_clients),
        fs.Batching(config.batch_size),
        seed=config.seed,
        evaluate=evaluate,
        on_nonfinite="drop",
    )


def alone(config: Config) -> dict[str, float]:
    """Payments that are held out, each scored by the model that its bank trained alone, as many epochs as together."""
    train, test = banks(config)
    algorithm = algorithm_of(config, train)
    assert algorithm.client is not None
    first = algorithm.task.init(jax.random.key(config.seed))
    server, _ = algorithm.init(first)
    client = lambda key, server, row, batches: algorithm.client(key, server, row, batches).payload  # type: ignore[misc]
    batching = fs.Batching(config.batch_size, epochs=config.rounds)
    moved = fs.map_clients(client, server, train, batching, seed=config.seed, task=algorithm.task)
    own = [jax.tree.map(lambda p, d, k=k: p + d[k], first, moved) for k in range(train.num_clients)]
    scores = [scores_of(config, params, test.client(k)["x"]) for k, params in enumerate(own)]
    return figures(np.concatenate(scores), np.concatenate([test.client(k)["y"] for k in range(test.num_clients)]))
