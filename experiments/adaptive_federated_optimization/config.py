"""Server optimizers and methods against drift, each tuned: Fashion-MNIST, Shakespeare and Synthetic(1, 1).

- Task: ten classes of clothes (Xiao, Rasul and Vollgraf 2017), dealt out by a Dirichlet law with α = 0.1; the next
  character of the roles of Shakespeare's plays, natural clients; Synthetic(1, 1) of Li et al. 2020.
- Papers: FedAvgM, FedAdagrad, FedAdam, FedYogi, Reddi et al. 2021, "Adaptive federated optimization"; FedProx, Li et
  al. 2020; SCAFFOLD, Karimireddy et al. 2020; FedNova, Wang et al. 2020; FedDyn, Acar et al. 2021; against FedAvg,
  McMahan et al. 2017. Data, models and sizes are ours: the figures in README.md are not to be held against theirs.
- Commands: `fedjax-sim run adaptive_federated_optimization --preset fedyogi`; and the whole study, a grid for each
  method and then five seeds of the best, `python experiments/adaptive_federated_optimization/config.py fashion_mnist`.
- Minutes: README.md.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs

Data = Literal["fashion_mnist", "shakespeare", "synthetic"]
Method = Literal["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedprox", "fednova", "scaffold", "feddyn"]
WINDOW = 80


@dataclasses.dataclass(frozen=True)
class Config:
    """One run; with the same seed, all methods see the same cohorts, batches and first model."""

    rounds: int = 100
    """Rounds of training."""
    seed: int = 0
    """Seed of everything random, the partition too; in a sweep, partition and held-out examples stay seed 0's."""
    data: Data = "fashion_mnist"
    """What is learnt: an MLP with 32 hidden units, an LSTM, or logistic regression."""
    method: Method = "fedavg"
    """The algorithm."""
    client_lr: float = 0.1
    """Learning rate of the clients' SGD."""
    server_lr: float = 1.0
    """Learning rate of the server's optimizer: plain, FedAvgM's (momentum 0.9), Adagrad's, Adam's or Yogi's."""
    strength: float = 0.1
    """FedProx's μ, FedDyn's α."""
    num_clients: int = 300
    """Clients of Fashion-MNIST."""
    alpha: float = 0.1
    """Dirichlet concentration of Fashion-MNIST's partition."""
    cohort_size: int = 10
    """Clients drawn each round."""
    epochs: int = 1
    """Local epochs."""
    batch_size: int = 20
    """Examples in a local batch."""
    max_examples: int | None = None
    """A client trains on its first so many examples a round."""
    width: int = 32
    """Units of an LSTM layer."""
    layers: int = 1
    """LSTM layers."""
    test_examples: int | None = None
    """Examples of the test set, and held-out ones, that an evaluation reads, drawn once; all if None."""
    eval_every: int = 10
    """Rounds between evaluations."""


FASHION = Config()
SHAKESPEARE = Config(
    data="shakespeare", rounds=60, client_lr=1.0, cohort_size=5, batch_size=4, max_examples=16, test_examples=200
)
SYNTHETIC = Config(data="synthetic", client_lr=0.03, batch_size=10, epochs=2, max_examples=500)
SETTINGS = {"fashion_mnist": FASHION, "shakespeare": SHAKESPEARE, "synthetic": SYNTHETIC}

SERVERS = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
DRIFT = ("fedavg", "fedprox", "fednova", "scaffold", "feddyn")
METHODS: dict[str, tuple[str, ...]] = {
    "fashion_mnist": tuple(dict.fromkeys((*SERVERS, *DRIFT))),
    "shakespeare": SERVERS,
    "synthetic": DRIFT,
}
"""What is compared on each data set."""

CLIENT_RATES = {"fashion_mnist": (0.03, 0.1, 0.3), "shakespeare": (0.5, 1.0, 2.0), "synthetic": (0.03, 0.1, 0.3)}
SERVER_RATES = {
    "fedavg": (0.5, 1.0, 2.0),
    "fedavgm": (0.1, 0.3, 1.0),
    "fedadagrad": (0.01, 0.03, 0.1),
    "fedadam": (0.003, 0.01, 0.03),
    "fedyogi": (0.003, 0.01, 0.03),
}
STRENGTHS = {"fedprox": (0.01, 0.1, 1.0), "feddyn": (0.01, 0.1, 1.0)}


def grid(data: str, method: str) -> dict[str, Sequence[float]]:
    """What a method is tuned over: the clients' rate, and the one number of its own, if it has one."""
    own = {"server_lr": SERVER_RATES[method]} if method in SERVER_RATES else {}
    strength = {"strength": STRENGTHS[method]} if method in STRENGTHS else {}
    return {"client_lr": CLIENT_RATES[data], **own, **strength}


def algorithm(config: Config, task: fs.Task) -> fs.Algorithm:
    """The method of a config."""
    sgd, rate = optax.sgd(config.client_lr), config.server_lr
    servers = {
        "fedavg": optax.sgd,
        "fedavgm": lambda rate: fs.server.fedavgm(rate, 0.9),
        "fedadagrad": fs.server.fedadagrad,
        "fedadam": fs.server.fedadam,
        "fedyogi": fs.server.fedyogi,
    }
    if config.method in servers:
        return fs.fedavg(task, sgd, servers[config.method](rate))
    if config.method == "fedprox":
        return fs.fedprox(task, sgd, mu=config.strength)
    if config.method == "fednova":
        return fs.fednova(task, config.client_lr)
    if config.method == "scaffold":
        return fs.scaffold(task, config.client_lr)
    return fs.feddyn(task, config.client_lr, alpha=config.strength)


def sample(data: fs.FederatedData, count: int | None, seed: int) -> dict[str, np.ndarray]:
    """So many of all clients' examples, each equally likely; all of them if there are no more."""
    rows = np.arange(data.num_examples) if data.index is None else np.asarray(data.index)
    if count is not None and count < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
    return {name: np.asarray(column)[rows] for name, column in data.arrays.items()}


@functools.cache
def windows() -> tuple[fs.FederatedData, fs.FederatedData]:
    """`(training, test)` windows of the roles; cutting them takes a while, and a study does it once."""
    plays, letters = fs.data.load("shakespeare"), fs.data.character_vocabulary()
    train, test = (fs.data.next_token_windows(part, letters, WINDOW) for part in (plays.train, plays.test))
    return train, test


def federation(config: Config) -> tuple[fs.FederatedData, dict[str, np.ndarray], fs.Task]:
    """`(clients, test examples, task)`."""
    if config.data == "fashion_mnist":
        fashion = fs.data.load("fashion_mnist")
        partition = fs.partition.dirichlet(config.alpha, config.num_clients)
        clients = fs.data.federate(fashion.train, partition, seed=config.seed, about=fashion.about)
        scale = lambda batch: {**batch, "x": batch["x"].astype(jnp.float32) / 255}
        task = fs.classification(fs.models.MLP(10, widths=(32,)), fashion.train, preprocess=scale)
        count = config.test_examples or len(fashion.test["y"])
        return clients, {name: column[:count] for name, column in fashion.test.items()}, task
    if config.data == "shakespeare":
        roles, unseen = windows()
        test = sample(unseen, config.test_examples, config.seed)
        model = fs.models.LSTM(fs.data.character_vocabulary().size, width=config.width, layers=config.layers)
        return roles, test, fs.next_token(model, test)
    rules = fs.data.load("synthetic", alpha=1.0, beta=1.0)
    test = sample(rules.test, config.test_examples, config.seed)
    return rules.train, test, fs.classification(fs.models.LogisticRegression(10), test)


def build(config: Config) -> fs.Simulation:
    """The simulation of a config; a tenth of each client's examples is held out, for tuning."""
    everything, test, task = federation(config)
    clients, held_out = fs.data.split(everything, test=0.1, seed=config.seed)
    validation = sample(held_out, config.test_examples, config.seed)

    def evaluate(params: Any) -> dict[str, Any]:
        found = {"validation": fs.evaluate(task, params, validation), "test": fs.evaluate(task, params, test)}
        return {f"{part}/{name}": found[part][name] for part in found for name in ("accuracy", "loss")}

    return fs.Simulation(
        algorithm(config, task),
        clients,
        fs.sampler.uniform(config.cohort_size),
        fs.Batching(config.batch_size, epochs=config.epochs, max_examples=config.max_examples),
        seed=config.seed,
        evaluate=evaluate,
    )


# The study: a grid for each method, then five seeds of its best setting.

TUNING_SEED = 100


def tuned(config: Config, method: str, rounds: int) -> fs.SweepResult:
    """A method's grid, from a seed that the comparison does not use, on the held-out examples."""
    base = dataclasses.replace(config, method=method)
    make = lambda **setting: build(dataclasses.replace(base, **setting))
    return fs.sweep(make, grid(config.data, method), rounds, seeds=[TUNING_SEED])


def compared(config: Config, chosen: Sequence[dict[str, Any]], seeds: int) -> fs.SweepResult:
    """Every method's setting from several seeds, which change the first model and the cohorts."""

    def make(method: str, client_lr: float, server_lr: float, strength: float) -> fs.Simulation:
        numbers = dict(client_lr=client_lr, server_lr=server_lr, strength=strength)
        return build(dataclasses.replace(config, method=method, **numbers))  # type: ignore[arg-type]

    return fs.sweep(make, chosen, config.rounds, seeds, static=list(chosen[0]), eval_every=config.eval_every)


def study(config: Config, methods: Sequence[str], seeds: int, tuning_rounds: int, folder: Path) -> fs.SweepResult:
    """Tune, compare, print both, and draw the curves with their 95 % t-intervals over seeds."""
    chosen = []
    for method in methods:
        found = tuned(config, method, tuning_rounds)
        best = found.best("validation/loss")
        numbers = {name: getattr(config, name) for name in ("client_lr", "server_lr", "strength")}
        chosen.append({"method": method, **numbers, **best.setting})
        for score in found.scores("validation/loss"):
            print(f"{method}  {score}{'  chosen' if score.setting == best.setting else ''}", flush=True)
        print(f"{method}  tuned in {found.seconds:.0f} s", flush=True)
    result = compared(config, chosen, seeds)
    for name in ("test/accuracy", "test/loss"):
        for score in result.scores(name):
            print(f"{name}  {score}")
    print(f"compared in {result.seconds:.0f} s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    result.to_parquet(folder / "sweep.parquet")
    runs = {s["method"]: [m.columns for m in row] for s, row in zip(result.settings, result.members, strict=True)}
    fs.plots.curves(runs, ["test/accuracy", "test/loss"]).savefig(folder / f"{config.data}.png", dpi=110)
    return result


CHOSEN: dict[str, dict[str, dict[str, float]]] = {
    "synthetic": {
        "fedavg": {"client_lr": 0.03, "server_lr": 2.0},
        "fedprox": {"client_lr": 0.1, "strength": 0.01},
        "fednova": {"client_lr": 0.1},
        "scaffold": {"client_lr": 0.03},
        "feddyn": {"client_lr": 0.03, "strength": 0.01},
    },
    "fashion_mnist": {
        "fedavg": {"client_lr": 0.1, "server_lr": 0.5},
        "fedavgm": {"client_lr": 0.1, "server_lr": 0.3},
        "fedadagrad": {"client_lr": 0.1, "server_lr": 0.03},
        "fedadam": {"client_lr": 0.1, "server_lr": 0.03},
        "fedyogi": {"client_lr": 0.1, "server_lr": 0.03},
        "fedprox": {"client_lr": 0.1, "strength": 1.0},
        "fednova": {"client_lr": 0.1},
        "scaffold": {"client_lr": 0.1},
        "feddyn": {"client_lr": 0.1, "strength": 0.1},
    },
}
"""What the study chose, by data and method."""

PRESETS: dict[str, Config] = {
    "default": FASHION,
    **{
        f"{data}_{method}": dataclasses.replace(SETTINGS[data], method=method, **numbers)  # type: ignore[arg-type]
        for data, methods in CHOSEN.items()
        for method, numbers in methods.items()
    },
    "smoke": Config(data="synthetic", rounds=2, client_lr=0.03, cohort_size=4, max_examples=20, eval_every=1),
}

if __name__ == "__main__":
    fs.use_cpu_cores()
    name = sys.argv[1] if len(sys.argv) > 1 else "fashion_mnist"
    study(SETTINGS[name], METHODS[name], seeds=5, tuning_rounds=SETTINGS[name].rounds // 2, folder=Path("runs") / name)
