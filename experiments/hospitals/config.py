"""Hospitals that train together without showing each other anything: heart disease in four, dialysis in 67 centres.

- Task: is a coronary artery narrowed (Janosi et al. 1989)? Does a patient die within a year of dialysis (Sá Carvalho et
  al. 2003)? Logistic regression, on features standardised by moments that are themselves a secure sum.
- Papers: FedAvg, McMahan et al. 2017; secure aggregation, Bonawitz et al. 2017; distributed noise, Kairouz et al. 2021.
- Commands: `fedjax-sim run hospitals --data dialysis --how secure`; README.md has the comparison.
- Seconds: 10 to 20 a run on two cores shared with other work.
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
    """One run: which hospitals, and what they show the server."""

    rounds: int = 30
    """Rounds of training, an epoch of each hospital."""
    seed: int = 0
    """Seed of everything random, and of which patients are held out."""
    data: Literal["heart_disease", "dialysis"] = "heart_disease"
    """Four hospitals, or 67 centres."""
    how: Literal["federated", "secure", "private", "pooled"] = "secure"
    """Updates in clear; under a secure sum; that with distributed noise; or all patients in one place."""
    statistics: Literal["federated", "site"] = "federated"
    """Features standardised by moments of all, from a secure sum; or each hospital by its own."""
    horizon: float = 12.0
    """Months on dialysis within which a death counts; patients whose observation ends earlier are left out."""
    lr: float = 0.05
    """Learning rate of the hospitals' SGD."""
    batch_size: int = 16
    """Patients in a local batch."""
    noise_multiplier: float = 10.0
    """Of the private run: noise over the clip of 0.5."""
    eval_every: int = 10
    """Rounds between evaluations on the patients that are held out."""


PRESETS: dict[str, Config] = {
    "default": Config(),
    "dialysis": Config(data="dialysis"),
    "smoke": Config(rounds=2, eval_every=1),
}

MOST = 512
"""Patients of a hospital at most: it bounds what a hospital can put into the sum of moments."""
RANGES = {
    "heart_disease": ((0, 0, 0, 0, -5, 0), (100, 250, 700, 250, 10, 4)),
    "dialysis": ((0, 0), (110, 120)),
}
"""What the leading numbers can be, known without any data; all other features are zeros and ones."""


def patients(config: Config) -> tuple[fs.FederatedData, fs.FederatedData]:
    """(train, test), a random fifth of each hospital held out; x in [0, 1] with NaN for gaps, and y."""
    heart = config.data == "heart_disease"
    loaded: Any = fs.data.load("heart_disease", impute=False) if heart else fs.data.load("dialysis")
    low, high = (np.asarray(bound, np.float32) for bound in RANGES[config.data])
    x, y, sizes = [], [], []
    for k in range(loaded.train.num_clients):
        parts = [part.client(k) for part in (loaded.train, loaded.test)]
        one = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if config.data == "dialysis":
            keep = (one["event"] == 1) & (one["time"] <= config.horizon) | (one["time"] > config.horizon)
            one = {name: value[keep] for name, value in one.items()}
            one["y"] = (one["time"] <= config.horizon).astype(np.int32)
        values = one["x"].astype(np.float32)
        values[:, : len(low)] = np.clip((values[:, : len(low)] - low) / (high - low), 0, 1)
        x.append(values)
        y.append(one["y"])
        sizes.append(len(values))
    whole = {"x": np.concatenate(x), "y": np.concatenate(y)}
    return fs.data.split(fs.FederatedData(whole, np.concatenate([[0], np.cumsum(sizes)])), 0.2, seed=config.seed)


def moments(train: fs.FederatedData, seed: int) -> np.ndarray:
    """[3, p] of all hospitals: how many patients have a feature, its sum, and its sum of squares, by one secure sum."""
    p = train.arrays["x"].shape[1]

    def client(key: Any, server: Any, row: Any, batches: Any) -> fs.ClientUpdate:
        batch = batches.batch(0)
        known = jnp.isfinite(batch["x"]) & (batch["mask"] > 0)[:, None]
        x = jnp.where(known, batch["x"], 0)
        return fs.ClientUpdate(jnp.stack([known.sum(0), x.sum(0), (x * x).sum(0)]) / MOST)

    task = fs.Task(lambda key: jnp.zeros((3, p)), lambda params, batch, key: jnp.zeros(batch["y"].shape))
    sums = a.chain(
        a.clip_by_l2((3 * p) ** 0.5),  # no more than all numbers at 1: it bounds the words, and cuts nothing
        a.quantize(16),
        a.secure_sum(protocol=fs.secure.bonawitz()),
        reduce=a.mean("uniform"),
    )
    algorithm = fs.Algorithm(
        task,
        init=lambda params: (params, None),
        client=client,
        server=lambda key, server, aggregate: aggregate.value * aggregate.count * MOST,
        aggregator=sums,
    )
    sampler = fs.sampler.uniform(train.num_clients)
    sim = fs.Simulation(algorithm, train, sampler, fs.Batching(int(train.sizes.max())), seed=seed)
    return np.asarray(sim.step(sim.init())[0].server)


def standardised(config: Config) -> tuple[fs.FederatedData, fs.FederatedData]:
    """The patients, each feature of mean 0 and deviation 1 where it is known, 0 in gaps, and a flag of each gap."""
    train, test = patients(config)
    gaps = config.data == "heart_disease"
    if config.statistics == "federated":
        every = [moments(train, config.seed)] * train.num_clients
    else:
        known = [train.client(k)["x"].astype(np.float64) for k in range(train.num_clients)]
        every = [np.stack([np.isfinite(x).sum(0), np.nansum(x, 0), np.nansum(x * x, 0)]) for x in known]

    def of(data: fs.FederatedData) -> fs.FederatedData:
        made = []
        for k, (count, total, squares) in enumerate(every):
            x, count = data.client(k)["x"], np.maximum(count, 1)
            mean = total / count
            deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
            scaled = np.where(np.isfinite(x), (x - mean) / np.where(deviation > 1e-3, deviation, 1), 0)
            made.append(np.concatenate([scaled, np.isnan(x)], axis=1) if gaps else scaled)
        y = np.concatenate([data.client(k)["y"] for k in range(data.num_clients)])
        offsets = np.concatenate([[0], np.cumsum(data.sizes)])
        return fs.FederatedData({"x": np.concatenate(made).astype(np.float32), "y": y.astype(np.int32)}, offsets)

    return of(train), of(test)


def chain(config: Config) -> a.Aggregator:
    """What a hospital does to its update. Updates are weighted by patients, but for the private run's."""
    protocol = fs.secure.bonawitz(threshold=2 / 3)
    if config.data == "dialysis":  # of 67 centres a part as neighbours is enough
        protocol = fs.secure.secagg_plus(neighbours=20, threshold=14)
    if config.how == "secure":
        return a.chain(a.clip_by_l2(5.0), a.quantize(14), a.secure_sum(max_weight=MOST, protocol=protocol))
    if config.how == "private":
        noise = a.discrete_gaussian_noise(config.noise_multiplier)
        sums = a.secure_sum(protocol=protocol)
        return a.chain(a.clip_by_l2(0.5), a.quantize(14), noise, sums, reduce=a.mean("uniform"))
    return a.chain()


def task_of(train: fs.FederatedData) -> fs.Task:
    """Logistic regression, with the area under the ROC curve and the calibration error."""
    measures = {"auc": fs.metrics.AUC.of, "ece": fs.metrics.CalibrationError.of}
    return fs.classification(fs.models.LogisticRegression(2), train.arrays, measures=measures)


def build(config: Config) -> fs.Simulation:
    """The simulation of a config, with its evaluation."""
    train, test = standardised(config)
    task = task_of(train)
    holders = train
    if config.how == "pooled":
        holders = fs.FederatedData(train.arrays, [0, int(train.sizes.sum())])
    algorithm = fs.fedavg(task, optax.sgd(config.lr), aggregator=chain(config))

    def evaluate(params: Any) -> dict[str, float]:
        found = fs.evaluate_clients(task, params, test)
        pooled = found.pooled()
        sites = {f"test/{name}_of_sites": float(np.nanmean(found[name])) for name in ("auc", "ece")}
        return {**sites, **{f"test/{name}": float(pooled[name]) for name in ("auc", "ece", "loss")}}

    sampler = fs.sampler.uniform(holders.num_clients)
    batching = fs.Batching(config.batch_size)
    return fs.Simulation(algorithm, holders, sampler, batching, seed=config.seed, evaluate=evaluate)


def alone(config: Config) -> Any:
    """Each hospital's own model, of as many epochs as the others train, on its own patients that are held out."""
    train, test = standardised(config)
    task = task_of(train)
    federated = fs.fedavg(task, optax.sgd(config.lr))
    assert federated.client is not None
    client = federated.client

    def epoch(key: Any, server: Any, own: Any, batches: Any) -> fs.ClientUpdate:
        update = client(key, federated.init(own)[0], None, batches)
        return fs.ClientUpdate(jnp.zeros(()), state=jax.tree.map(jnp.add, own, update.payload), metrics=update.metrics)

    nobody = fs.Algorithm(
        task,
        init=lambda params: (params, params),
        client=epoch,
        server=lambda key, server, aggregate: server,
        personal=lambda server, own: own,
    )
    sampler = fs.sampler.uniform(train.num_clients)
    sim = fs.Simulation(nobody, train, sampler, fs.Batching(config.batch_size), seed=config.seed)
    state, _ = sim.run(sim.init(), config.rounds, progress=False)
    return sim.evaluate_clients(state, test, personal=True)
