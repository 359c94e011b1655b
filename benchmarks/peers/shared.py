"""What every peer's script shares: the work read from its .npz, the clock, and the line that it prints.

NumPy and the standard library only, as it runs in every peer's environment.
"""

import argparse
import importlib.metadata
import json
import os
import time
from typing import Any, NamedTuple

import numpy as np


class Work(NamedTuple):
    """A work of `benchmarks/works.py`, as `data.py` wrote it.

    Attributes:
        name: "W1", "W2", "W3" or "CIFAR10".
        x, y: examples, grouped by client; pixels are uint8.
        offsets: [K + 1].
        cohorts: [R, C].
        params: layers, each a dict of "w" and "b".
        batch_size, learning_rate: of the clients' SGD.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray
    cohorts: np.ndarray
    params: list[dict[str, np.ndarray]]
    batch_size: int
    learning_rate: float

    def client(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of a client, as views."""
        rows = slice(self.offsets[i], self.offsets[i + 1])
        return self.x[rows], self.y[rows]

    @property
    def sizes(self) -> np.ndarray:
        """[K] examples of each client."""
        return np.diff(self.offsets)

    def padded(self, i: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A client's batches in stored order, padded: x [S, B, ...], y [S, B], mask [S, B]."""
        x, y = self.client(i)
        total = steps * self.batch_size
        xs, ys, mask = np.zeros((total, *x.shape[1:]), x.dtype), np.zeros(total, y.dtype), np.zeros(total, np.float32)
        xs[: len(x)], ys[: len(y)], mask[: len(y)] = x, y, 1
        shape = (steps, self.batch_size)
        return xs.reshape(*shape, *x.shape[1:]), ys.reshape(shape), mask.reshape(shape)

    def steps(self, i: int) -> int:
        """Batches that a client has, the last perhaps short."""
        return -(-int(self.sizes[i]) // self.batch_size)


def arguments(**options: Any) -> argparse.Namespace:
    """The arguments that every script takes, and its own options with their defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", help="the work's .npz")
    parser.add_argument("work", choices=["W1", "W2", "W3", "CIFAR10"])
    parser.add_argument("--rounds", type=int, default=None, help="fewer rounds than the work has")
    parser.add_argument("--final", default=None, help="an .npz for the last parameters")
    for name, default in options.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    return parser.parse_args()


def load(args: argparse.Namespace) -> Work:
    """Read the work that the arguments name, with as many rounds as they say."""
    work = read(args.path, args.work)
    return work._replace(cohorts=work.cohorts[: args.rounds])


def read(path: str, name: str) -> Work:
    """Read a work from its file."""
    with np.load(path) as file:
        if str(file["name"]) != name:
            raise SystemExit(f"{path} holds {file['name']}, not {name}: write it with data.py.")
        layers = [{"w": file[f"w{i}"], "b": file[f"b{i}"]} for i in range(int(file["layers"]))]
        arrays = {key: file[key] for key in ("x", "y", "offsets", "cohorts")}
        scalars = {"batch_size": int(file["batch_size"]), "learning_rate": float(file["learning_rate"])}
        return Work(name=name, params=layers, **arrays, **scalars)


class Clock:
    """Stops the time of each round: `tick()` at the end of every one."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._last = time.perf_counter()

    def tick(self) -> None:
        """A round has ended."""
        now = time.perf_counter()
        self.times.append(now - self._last)
        self._last = now


def report(args: argparse.Namespace, work: Work, clock: Clock, params: list[dict[str, Any]], *packages: str) -> None:
    """Write the last parameters, and print the times and versions as one JSON line.

    Args:
        params: layers as `Work.params` has them, the same shapes and order of axes.
        packages: names of distributions, whose versions are printed.
    """
    if args.final:
        arrays: dict[str, Any] = {
            f"{k}{i}": np.asarray(v, np.float32) for i, layer in enumerate(params) for k, v in layer.items()
        }
        np.savez(args.final, **arrays)
    line = {
        "work": work.name,
        "rounds_s": [round(t, 5) for t in clock.times],
        "cohort": int(work.cohorts.shape[1]),
        "examples": [int(work.sizes[c].sum()) for c in work.cohorts],
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "cores": len(os.sched_getaffinity(0)),
    }
    print("\n" + json.dumps(line), flush=True)
