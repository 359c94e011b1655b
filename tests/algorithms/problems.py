"""Tiny federations: ragged least squares, with an oracle in NumPy, and scalar quadratics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs
from tests.engine import toys

SIZES = (5, 1, 8, 0, 3, 2)
COHORTS = ((0, 2, 4), (1, 2, 3), (5, 0), (4, 1, 5, 2), (2, 0, 3), (4,))
START = {"w": np.array([0.5, -0.3, 0.2, 0.7], np.float32), "b": np.float32(0.1)}
DOMAINS = tuple((np.arange(n) + k) % 2 + (k > 2) for k, n in enumerate(SIZES))  # of each client's examples: 0, 1 or 2
BATCHING = fs.Batching(batch_size=3, epochs=2, shuffle=False)


@functools.cache
def least_squares():
    """`(task, data, clients)`: six clients of 0 to 8 examples, feature 3 always 0, and a row of NaN that nobody owns.

    `clients` are the twins': (A with a column of ones, t), in float64.
    """
    draw = np.random.default_rng(7)
    n = sum(SIZES)
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    x = draw.normal(size=(n, 4)) + 0.3 * owner[:, None]
    x[:, 3] = 0.0
    t = x @ [1.0, -2.0, 0.5, 3.0] + np.cos(owner) + 0.3 * draw.normal(size=n)
    x, t = x.astype(np.float32), t.astype(np.float32)

    index = 1 + draw.permutation(n)  # stored in any order, after the row that nobody owns
    arrays = {
        "x": np.full((n + 1, 4), np.nan, np.float32),
        "t": np.full(n + 1, np.nan, np.float32),
        "domain": np.zeros(n + 1, np.int32),
        "zero": np.zeros(n + 1, np.int32),
    }
    arrays["x"][index], arrays["t"][index] = x, t
    arrays["domain"][index] = np.concatenate(DOMAINS)
    data = fs.data.FederatedData(arrays, np.concatenate([[0], np.cumsum(SIZES)]), index)

    def loss(params, batch, key):
        return (batch["x"] @ params["w"] + params["b"] - batch["t"]) ** 2 / 2

    task = fs.Task(lambda key: jax.tree.map(jnp.zeros_like, START), loss)
    A = np.concatenate([x, np.ones((n, 1))], axis=1).astype(np.float64)
    clients = [(A[owner == k], t[owner == k].astype(np.float64)) for k in range(len(SIZES))]
    return task, data, clients


def features(params, batch, key, **frozen):
    """[B, 5], of the model of `least_squares`."""
    x = batch["x"]
    return jnp.tanh(jnp.concatenate([x * params["w"][None], jnp.broadcast_to(params["b"], (len(x), 1))], axis=1))


def quadratics(a, b, copies=None):
    """`(task, data)`: client k holds copies[k] examples of loss a_k (x - b_k)^2 / 2 in one scalar x."""
    copies = np.ones(len(a), int) if copies is None else np.asarray(copies)
    arrays = {
        "a": np.repeat(a, copies).astype(np.float32),
        "b": np.repeat(b, copies).astype(np.float32),
    }
    data = fs.data.FederatedData(arrays, np.concatenate([[0], np.cumsum(copies)]))
    loss = lambda x, batch, key: batch["a"] * (x - batch["b"]) ** 2 / 2
    return fs.Task(lambda key: jnp.zeros(()), loss), data


def flat(params):
    """{"w": [..., 4], "b": [...]} as [..., 5] float64, as the twins have it."""
    w, b = np.asarray(params["w"], np.float64), np.asarray(params["b"], np.float64)
    return np.concatenate([w, b[..., None]], axis=-1)


def simulate(algorithm, data, cohorts, batching=BATCHING, params=None, lanes=2, devices=2, **options):
    """The states after each round, over `devices` devices of `lanes` lanes."""
    sim = fs.Simulation(
        algorithm,
        data,
        fs.sampler.fixed(cohorts),
        batching,
        **toys.executed(lanes=lanes, devices=jax.devices()[:devices], **options),
    )
    state, states = sim.init(params), []
    for _ in cohorts:
        state, _ = sim.step(state)
        states.append(state)
    return states
