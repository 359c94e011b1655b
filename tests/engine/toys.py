"""Tiny federations, tasks and algorithms of a few parameters, which the engine's tests share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs

SIZES = (
    5,
    0,
    9,
    1,
    7,
    1,
    12,
    4,
    6,
    3,
    8,
    2,
)  # client 1 is empty; 3 and 5 hold the same one example
NUM_CLIENTS = len(SIZES)
LR = 0.1


def federation(sizes=SIZES) -> fs.data.FederatedData:
    """Noisy linear regression from 3 inputs to 2 outputs."""
    draw = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x = draw.normal(size=(offsets[-1], 3)).astype(np.float32)
    y = (x @ draw.normal(size=(3, 2)) + draw.normal(size=(len(x), 2))).astype(np.float32)
    if tuple(sizes) == SIZES:
        for array in (x, y):
            array[offsets[5]] = array[offsets[3]]
    return fs.data.FederatedData({"x": x, "y": y}, offsets)


def task(noisy: bool = False, on_trace=lambda: None) -> fs.Task:
    """Squared error of a linear model of 8 parameters; if `noisy`, with dropout of its inputs."""

    def init(key):
        return {"w": 0.1 * jax.random.normal(key, (3, 2)), "b": jnp.zeros(2)}

    def loss(params, batch, key):
        on_trace()
        x = batch["x"]
        if noisy:
            x = x * jax.random.bernoulli(key, 0.7, x.shape)
        error = x @ params["w"] + params["b"][None] - batch["y"]
        return jnp.mean(error**2, axis=1), {"size": jnp.abs(error[:, 0])}

    return fs.Task(init, loss)


def fedavg(task: fs.Task, **kwargs) -> fs.Algorithm:
    return fs.fedavg(task, optax.sgd(LR, momentum=0.5), **kwargs)


def two_phase(task: fs.Task) -> fs.Algorithm:
    """MIME-like: the cohort's full gradient at x, then local steps corrected by it."""
    grad = fs.grad(task)

    def full_gradient(key, server, row, batches):
        def step(total, batch, key):
            grads, metrics = grad(server["x"], batch, key)
            weight = metrics["loss"].weight
            return jax.tree.map(lambda t, g: t + weight * g, total, grads), metrics

        zeros = jax.tree.map(jnp.zeros_like, server["x"])
        total, metrics = fs.local_steps(step, zeros, batches, key)
        weight = metrics["loss"].weight
        mean = jax.tree.map(lambda t: t / jnp.maximum(weight, 1), total)
        return fs.ClientUpdate(mean, weight=weight, metrics={"start_loss": metrics["loss"]})

    def train(key, server, row, batches):
        def step(y, batch, key):
            here, metrics = grad(y, batch, key)
            there, _ = grad(server["x"], batch, key)
            move = lambda y, a, b, g: y - LR * (a - b + g)
            return jax.tree.map(move, y, here, there, server["gradient"]), metrics

        y, metrics = fs.local_steps(step, server["x"], batches, key)
        delta = jax.tree.map(jnp.subtract, y, server["x"])
        return fs.ClientUpdate(delta, weight=batches.num_examples, metrics=metrics)

    def keep(key, server, aggregate):
        return {**server, "gradient": aggregate.value}

    def move(key, server, aggregate):
        return {**server, "x": jax.tree.map(jnp.add, server["x"], aggregate.value)}

    return fs.Algorithm(
        task,
        init=lambda params: ({"x": params, "gradient": params}, None),
        params=lambda server: server["x"],
        phases=(fs.Phase(full_gradient, keep), fs.Phase(train, move)),
    )


ALGORITHMS = {
    "fedavg": fedavg,
    "scaffold": lambda task: fs.scaffold(task, LR, NUM_CLIENTS),
    "two_phase": two_phase,
    "median": lambda task: fedavg(task, aggregator=fs.aggregate.median()),
}


def watched(algorithm: fs.Algorithm) -> fs.Algorithm:
    """The same, with every client's payload among its metrics: `client/payload0` of the first phase, and so on."""

    def watch(phase, i):
        def client(key, server, row, batches):
            update = phase.client(key, server, row, batches)
            payload = jax.flatten_util.ravel_pytree(update.payload)[0]
            metrics = {**update.metrics, f"payload{i}": fs.metrics.Sum(payload)}
            return dataclasses.replace(update, metrics=metrics)

        return phase._replace(client=client)

    phases = tuple(watch(phase, i) for i, phase in enumerate(algorithm.passes()))
    return algorithm._replace(client=None, server=None, aggregator=None, phases=phases)


def script(cohorts, capacity: int | None = None) -> fs.sampler.Sampler:
    """Cohorts kept in the sampler's *state*: `with_cohorts` changes them without another compilation.

    A place that holds None is not valid.
    """
    capacity = max(len(row) for row in cohorts) if capacity is None else capacity

    def sample(state, round, seed):
        row = list(state[round % len(state)])
        row += [None] * (capacity - len(row))
        valid = np.array([k is not None for k in row])
        ids = np.array([0 if k is None else k for k in row], np.int32)
        return fs.Cohort(ids, valid, valid.astype(np.float32)), state

    return fs.sampler.Sampler(
        init=lambda num_clients: cohorts,
        sample=sample,
        capacity=lambda num_clients: capacity,
        expected=lambda num_clients: float(capacity),
        name="script",
    )


def executed(**options) -> dict:
    """Keywords of `fs.Simulation`, of which those that say how it is executed are put into `execution`."""
    fields = {field.name for field in dataclasses.fields(fs.Execution)}
    own = {name: value for name, value in options.items() if name in fields}
    rest = {name: value for name, value in options.items() if name not in fields}
    return {**rest, "execution": fs.Execution(**own)} if own else rest


def with_cohorts(state: fs.RoundState, cohorts) -> fs.RoundState:
    return dataclasses.replace(state, sampler=cohorts)


def flat(tree: Any) -> np.ndarray:
    """All numbers of a pytree, on the host."""
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def on_device(state: fs.RoundState) -> dict[str, np.ndarray]:
    """What of a state lives on devices, copied to the host."""
    return {
        "server": flat(state.server),
        "aggregator": flat(state.aggregator),
        "rows": flat(jax.tree.map(lambda table: table[:NUM_CLIENTS], state.rows)),
    }


def by_client(metrics) -> dict[int, dict[str, np.ndarray]]:
    """A round's per-client metrics by client id."""
    names = sorted(metrics.per_client())
    columns = {name: metrics.clients(name) for name in names}
    return {int(k): {name: columns[name][i] for name in names} for i, k in enumerate(metrics.client_ids)}
