"""The works that benchmarks share: W1 an MLP, W2 a CNN, W3 many tiny clients, CIFAR10; data drawn from fixed seeds.

W1 and W2 hold 98,103 pictures of 28x28 random bytes around 62 class prototypes, on 1000 clients of log-normal size.
W3 holds 177,230 examples of Synthetic(1, 1), on 5000 clients of 10 to 60. The order of the draws is part of the works.
CIFAR10 has the setting of pfl-research's speed benchmark (arXiv 2404.06430) on pictures of the same make: 1000 clients
of 50 of 32x32x3, 50 a round, batches of 10, a CNN of 1,626,442 parameters, here without its dropout.
"""

import functools
from typing import Any, NamedTuple

import numpy as np


class Work(NamedTuple):
    """A work: arrays, clients, cohorts and the first parameters.

    Attributes:
        x, y: examples, grouped by client.
        offsets: [K + 1].
        cohorts: [R, C].
        params: layers, each a dict of "w" and "b".
        batch_size, learning_rate: of the clients' SGD.
    """

    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray
    cohorts: np.ndarray
    params: list[dict[str, np.ndarray]]
    batch_size: int
    learning_rate: float


def load(name: str) -> Work:
    """Draw a work by name: "W1", "W2", "W3" or "CIFAR10"."""
    return {"W1": _w1, "W2": _w2, "W3": _w3, "CIFAR10": _cifar10}[name]()


def _cohorts() -> dict[str, np.ndarray]:
    draw = np.random.RandomState(7)
    sizes = {"W1": (1000, 50, 20), "W2": (1000, 10, 5), "W3": (5000, 1000, 10)}
    return {
        name: np.stack([draw.choice(population, cohort, replace=False) for _ in range(rounds)])
        for name, (population, cohort, rounds) in sizes.items()
    }


def _pictures() -> tuple[Any, ...]:
    draw = np.random.RandomState(20261123)
    classes, clients = 62, 1000
    sizes = np.clip(np.exp(draw.normal(4.42, 0.6, clients)).round(), 10, 400).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    blocks = draw.rand(classes, 7, 7)
    prototypes = np.kron(blocks, np.ones((4, 4))).reshape(classes, 784)
    y = np.empty(total, np.int32)
    for k in range(clients):
        skew = draw.dirichlet(np.full(classes, 0.5))
        y[offsets[k] : offsets[k + 1]] = draw.choice(classes, sizes[k], p=skew)
    x = np.empty((total, 784), np.uint8)
    for begin in range(0, total, 10_000):
        rows = slice(begin, min(total, begin + 10_000))
        noise = draw.normal(0, 0.35, (rows.stop - rows.start, 784))
        x[rows] = np.clip(0.6 * prototypes[y[rows]] + 0.2 + noise, 0, 1) * 255

    layer = functools.partial(_layer, draw)
    mlp = [layer(784, 200, fan_in=784), layer(200, 200, fan_in=200), layer(200, 62, fan_in=200)]
    cnn = [
        layer(3, 3, 1, 32, fan_in=9),
        layer(3, 3, 32, 64, fan_in=288),
        layer(9216, 128, fan_in=9216),
        layer(128, 62, fan_in=128),
    ]
    return x, y, offsets, mlp, cnn


def _layer(draw: np.random.RandomState, *shape: int, fan_in: int) -> dict[str, np.ndarray]:
    w = draw.normal(0, np.sqrt(2.0 / fan_in), shape).astype(np.float32)
    return {"w": w, "b": np.zeros(shape[-1], np.float32)}


def _w1() -> Work:
    x, y, offsets, mlp, _ = _pictures()
    return Work(x, y, offsets, _cohorts()["W1"], mlp, 20, 0.1)


def _w2() -> Work:
    x, y, offsets, _, cnn = _pictures()
    return Work(x.reshape(-1, 28, 28, 1), y, offsets, _cohorts()["W2"], cnn, 20, 0.02)


def _w3(clients: int = 5000) -> Work:
    draw = np.random.RandomState(11)
    features, classes = 60, 10
    sizes = draw.randint(10, 61, clients).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x, y = np.empty((offsets[-1], features), np.float32), np.empty(offsets[-1], np.int32)
    spread = np.arange(1, features + 1) ** -0.6
    for k in range(clients):
        u, mean = draw.normal(0, 1), draw.normal(0, 1)
        w, b = draw.normal(u, 1, (features, classes)), draw.normal(u, 1, classes)
        center = draw.normal(mean, 1, features)
        inputs = center + draw.normal(0, 1, (sizes[k], features)) * spread
        rows = slice(offsets[k], offsets[k + 1])
        x[rows], y[rows] = inputs, (inputs @ w + b).argmax(1)
    zero = {"w": np.zeros((features, classes), np.float32), "b": np.zeros(classes, np.float32)}
    return Work(x, y, offsets, _cohorts()["W3"], [zero], 10, 0.01)


def _cifar10() -> Work:
    draw = np.random.RandomState(10)
    clients, size, classes = 1000, 50, 10
    prototypes = np.kron(draw.rand(classes, 8, 8, 3), np.ones((1, 4, 4, 1)))
    y = draw.randint(0, classes, clients * size).astype(np.int32)
    x = np.empty((len(y), 32, 32, 3), np.uint8)
    for begin in range(0, len(y), 5000):
        rows = slice(begin, begin + 5000)
        noise = draw.normal(0, 0.35, x[rows].shape)
        x[rows] = np.clip(0.6 * prototypes[y[rows]] + 0.2 + noise, 0, 1) * 255
    cohorts = np.stack([draw.choice(clients, 50, replace=False) for _ in range(20)])
    layer = functools.partial(_layer, draw)
    params = [
        layer(3, 3, 3, 32, fan_in=27),
        layer(3, 3, 32, 64, fan_in=288),
        layer(12544, 128, fan_in=12544),
        layer(128, 10, fan_in=128),
    ]
    return Work(x, y, np.arange(clients + 1) * size, cohorts, params, 10, 0.1)
