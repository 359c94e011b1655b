"""The next character of Shakespeare's roles: FedAvg against FedAdam and FedYogi, on natural clients.

- Task: the next character, in windows of 80, of 38 plays; a client is a role of a play with two speeches or more (1,154
  of them). The partition is natural. The last fifth of each role's speeches are for testing.
- Papers: FedAvg, McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data";
  FedAdam and FedYogi, Reddi et al. 2021, "Adaptive federated optimization". Vocabulary, windows, batches and cohorts
  are the latter's; the edition is another, the LSTM half as wide, roles are capped, and there are far fewer rounds.
- Commands: `fedjax-sim run shakespeare`, with `--preset fedadam` or `--preset fedyogi`.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
import optax

import fedjax_sim as fs

WINDOW = 80


@dataclasses.dataclass(frozen=True)
class Config:
    """One run; with the same seed, all algorithms see the same cohorts, batches, first model and test windows."""

    rounds: int = 200
    """Rounds of training."""
    seed: int = 0
    """Seed of everything random."""
    algorithm: Literal["fedavg", "fedadam", "fedyogi"] = "fedavg"
    """The server's optimizer: plain SGD, Adam or Yogi."""
    cohort_size: int = 10
    """Roles drawn each round."""
    epochs: int = 1
    """Local epochs."""
    batch_size: int = 4
    """Windows in a local batch."""
    max_windows: int = 160
    """A role trains on its first so many windows; the longest has 785."""
    client_lr: float = 1.0
    """Learning rate of the clients' SGD."""
    server_lr: float = 1.0
    """Learning rate of the server."""
    width: int = 128
    """Units of each LSTM layer."""
    layers: int = 2
    """LSTM layers."""
    test_windows: int | None = None
    """Test windows that an evaluation reads, drawn once; all 14,817 if None."""
    eval_every: int = 20
    """Rounds between evaluations."""
    lanes: int | Literal["auto"] = "auto"
    """Clients that a device trains side by side."""


PRESETS: dict[str, Config] = {
    "default": Config(),
    "fedavg": Config(),
    "fedadam": Config(algorithm="fedadam", server_lr=0.01),
    "fedyogi": Config(algorithm="fedyogi", server_lr=0.01),
    "smoke": Config(rounds=2, cohort_size=4, max_windows=8, width=16, layers=1, test_windows=100, eval_every=1),
}

SERVERS = {"fedavg": optax.sgd, "fedadam": fs.server.fedadam, "fedyogi": fs.server.fedyogi}


def sample(data: fs.FederatedData, count: int | None, seed: int) -> dict[str, np.ndarray]:
    """So many of all clients' examples, each equally likely; all of them if there are no more."""
    count = data.num_examples if count is None else min(count, data.num_examples)
    rows = np.sort(np.random.default_rng(seed).choice(data.num_examples, count, replace=False))
    return {name: column[rows] for name, column in data.arrays.items()}


def build(config: Config) -> fs.Simulation:
    """The simulation of a config, with its evaluation."""
    plays = fs.data.load("shakespeare")
    letters = fs.data.character_vocabulary()
    roles, unseen = (fs.data.next_token_windows(part, letters, WINDOW) for part in (plays.train, plays.test))
    test = sample(unseen, config.test_windows, config.seed)
    model = fs.models.LSTM(letters.size, width=config.width, layers=config.layers)
    task = fs.next_token(model, test)

    def evaluate(params: Any) -> dict[str, float]:
        return {f"test/{name}": value for name, value in fs.evaluate(task, params, test).items()}

    return fs.Simulation(
        fs.fedavg(task, optax.sgd(config.client_lr), SERVERS[config.algorithm](config.server_lr)),
        roles,
        fs.sampler.uniform(config.cohort_size),
        fs.Batching(config.batch_size, epochs=config.epochs, max_examples=config.max_windows),
        seed=config.seed,
        execution=fs.Execution(lanes=config.lanes),
        evaluate=evaluate,
    )
