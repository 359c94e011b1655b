"""What privacy and few bits cost in accuracy: Fashion-MNIST, an MLP, 3000 clients.

- Task: ten classes of clothes, 28x28 grey pixels (Xiao, Rasul and Vollgraf 2017), dealt out by a Dirichlet law.
- Papers: DP-FedAvg, McMahan et al. 2018, "Learning differentially private recurrent language models"; distributed mean
  estimation with rotations, Suresh et al. 2017; DRIVE, Vargaftik et al. 2021. Data, model and sizes are ours.
- Commands: `fedjax-sim run private_compressed --epsilon 3`, `... --compression drive`; README.md has both studies.
- Seconds: 10 to 70 a run on two cores shared with other work.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import optax

import fedjax_sim as fs

a = fs.aggregate


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: how private, and in how few bits."""

    rounds: int = 100
    """Rounds of training."""
    seed: int = 0
    """Seed of everything random, the partition too."""
    epsilon: float | None = None
    """User-level privacy that all rounds may cost, to add or remove a client; None for no noise of its own."""
    noise_multiplier: float | None = None
    """Noise over the clip's norm, in place of an epsilon that it is calibrated to."""
    delta: float = 1e-5
    """The probability that epsilon does not hold for."""
    clip_norm: float | None = None
    """L2 norm to which updates are clipped; None for 0.5 where something needs a bound, else for no clip."""
    compression: Literal["none", "bfloat16", "quantize", "secure", "drive", "top_k"] = "none"
    """Uplink: plain float32; bfloat16; a clip's range in `bits`; the same rotated, in the words of a secure sum;
    DRIVE's one bit; the largest 1 % with error feedback."""
    bits: int = 8
    """Of a number, where the compression has a choice."""
    downlink_levels: int = 0
    """Levels of a k-level quantiser for the model that clients receive; 0 for float32."""
    num_clients: int = 3000
    """Clients of the population."""
    alpha: float = 1.0
    """Dirichlet concentration of the partition."""
    probability: float = 0.1
    """With which each client takes part in a round, independently."""
    batch_size: int = 10
    """Examples in a local batch."""
    client_lr: float = 0.1
    """Learning rate of the clients' SGD, one epoch."""
    server_lr: float = 1.0
    """Learning rate of the server's SGD with momentum 0.9."""
    eval_every: int = 20
    """Rounds between evaluations on the test set."""
    checkpoint_every: int = 100
    """Rounds between checkpoints; with error feedback they hold a row for each client."""


PRESETS: dict[str, Config] = {
    "default": Config(),
    "private": Config(epsilon=3.0, compression="secure"),
    "smoke": Config(rounds=2, num_clients=300, epsilon=8.0, compression="secure", eval_every=1),
}


def chain(config: Config, multiplier: float, most: int) -> a.Aggregator:
    """What a client does to its update, in order; `most` clients take part in a round."""
    needs_bound = multiplier > 0 or config.compression in ("quantize", "secure")
    clip_norm = config.clip_norm or (0.5 if needs_bound else None)
    transforms = [a.clip_by_l2(clip_norm)] if clip_norm else []
    if multiplier > 0:
        transforms.append(a.gaussian_noise(multiplier))
    transforms += {
        "none": [],
        "bfloat16": [a.bfloat16()],
        "quantize": [a.quantize(config.bits)],
        "secure": [a.rotate(), a.quantize(config.bits), a.secure_sum(config.bits + (most - 1).bit_length())],
        "drive": [a.drive()],
        "top_k": [a.error_feedback(a.top_k(0.01))],
    }[config.compression]
    return a.chain(*transforms, reduce=a.mean("uniform"))


def build(config: Config) -> fs.Simulation:
    """The simulation of a config, with its evaluation."""
    fashion = fs.data.load("fashion_mnist")
    partition = fs.partition.dirichlet(config.alpha, config.num_clients)
    clients = fs.data.federate(fashion.train, partition, seed=config.seed, about=fashion.about)
    sampler = fs.sampler.poisson(config.probability)
    multiplier = config.noise_multiplier or 0.0
    if config.epsilon is not None:
        if config.noise_multiplier is not None:
            raise fs.FedSimError(f"epsilon={config.epsilon}, noise_multiplier={multiplier}: give one of them.")
        multiplier = fs.privacy.calibrate(
            target_epsilon=config.epsilon,
            delta=config.delta,
            rounds=config.rounds,
            sampler=sampler,
            population=config.num_clients,
        )
    scale = lambda batch: {**batch, "x": batch["x"].astype(jnp.float32) / 255}
    task = fs.classification(fs.models.MLP(10, widths=(32,)), fashion.train, preprocess=scale)
    algorithm = fs.fedavg(
        task,
        optax.sgd(config.client_lr),
        optax.sgd(config.server_lr, momentum=0.9),
        aggregator=chain(config, multiplier, sampler.capacity(config.num_clients)),
    )
    if config.downlink_levels:
        algorithm = fs.compress_downlink(algorithm, a.k_level(config.downlink_levels))

    def evaluate(params: Any) -> dict[str, float]:
        test = fs.evaluate(task, params, fashion.test)
        return {f"test/{name}": test[name] for name in ("accuracy", "loss")}

    return fs.Simulation(
        algorithm,
        clients,
        sampler,
        fs.Batching(config.batch_size),
        seed=config.seed,
        delta=config.delta,
        evaluate=evaluate,
    )
