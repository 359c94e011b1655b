"""Sensors: exercises of the shoulder, recorded by a smart watch."""

from pathlib import Path

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check_count
from fedjax_sim.data.federated import FederatedData, from_clients
from fedjax_sim.data.fetch.archives import File
from fedjax_sim.data.fetch.pickles import unpickle

WATCH_FILES = (
    File(
        "watch_dataset.npy",
        "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537",
        18118091,
        url="https://raw.githubusercontent.com/dmbee/seglearn/master/seglearn/data/watch_dataset.npy",
        package="seglearn==1.2.5",
        member="seglearn/data/watch_dataset.npy",
    ),
)
TEST = 0.2


def watch(folder: Path, *, length: int = 100, stride: int | None = None) -> tuple[FederatedData, FederatedData]:
    """Which of seven exercises is it? 140 recordings of 10 people, cut into windows; a client is a person.

    The first four fifths of each recording are for training, the rest for testing: no window holds samples of both.

    Args:
        folder: of watch_dataset.npy.
        length: samples of a window; 100 are 2 s at 50 Hz.
        stride: samples from one window's start to the next's; None for `length`, so that none overlap.

    Returns:
        (train, test): {"x": [n, length, 6] float32, acceleration and angular velocity in three directions each, as
        recorded; "y": [n] int32, the exercise 0..6}.

    Raises:
        ArgumentError: another file; windows longer than the recordings.

    Example:
        >>> recording = np.arange(20.0)[:, None] * np.ones((1, 6))
        >>> windows(recording, length=4, stride=8)[:, 0, 0].tolist()
        [0.0, 8.0, 16.0]
    """
    check_count("length", length)
    stride = length if stride is None else stride
    check_count("stride", stride)
    path = folder / "watch_dataset.npy"
    held = unpickle(path, encoding="latin1")
    try:
        held = held.item()
        series = [np.asarray(x, np.float32) for x in held["X"]]
        exercise, person = np.asarray(held["y"]), np.asarray(held["subject"])
        _, y = np.unique(exercise, return_inverse=True)
        if not len(series) == len(y) == len(person) or any(x.ndim != 2 or x.shape[1] != 6 for x in series):
            raise ValueError("recordings, exercises and people do not fit together")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"{path}: cannot be read ({type(error).__name__}: {error}).") from error
    people = sorted(set(person.tolist()))
    sides = []
    for part in ("train", "test"):
        clients = []
        for one in people:
            mine = [(series[i], y[i]) for i in np.flatnonzero(person == one)]
            cut = [(_part(x, part), label) for x, label in mine]
            x = [windows(x, length, stride) for x, _ in cut]
            labels = [np.full(len(w), label, np.int32) for w, (_, label) in zip(x, cut, strict=True)]
            clients.append({"x": np.concatenate(x), "y": np.concatenate(labels)})
        if not sum(len(client["y"]) for client in clients):
            raise ArgumentError(f"length={length}: no recording is long enough for a window of the {part} set.")
        sides.append(from_clients(clients, [str(one) for one in people]))
    return sides[0], sides[1]


def _part(x: np.ndarray, part: str) -> np.ndarray:
    cut = round((1 - TEST) * len(x))
    return x[:cut] if part == "train" else x[cut:]


def windows(x: np.ndarray, length: int, stride: int) -> np.ndarray:
    """[n, length, channels]: the whole windows of a recording [T, channels], from its start on."""
    starts = np.arange(0, len(x) - length + 1, stride)
    return x[starts[:, None] + np.arange(length)[None, :]]
