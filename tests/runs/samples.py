"""Made-up run folders, written by json, NumPy and Arrow alone: none of the package's writers has a part in them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

CONFIG = {
    "format": 1,
    "experiment": {"name": "quickstart", "preset": "default"},
    "config": {"rounds": 4, "alpha": 0.3, "model": "cnn", "nesterov": False, "seed": 0},
    "rounds": 4,
    "simulation": {
        "clients": 6,
        "examples": 1437,
        "sampler": "uniform(2)",
        "batching": {"batch_size": 20, "epochs": 5},
        "seed": 0,
        "parameters": 1199882,
        "lanes": 1,
    },
    "devices": {"platform": "cpu", "kind": "cpu", "count": 2},
    "versions": {"fedjax-sim": "0.1.0", "jax": "0.10.2", "python": "3.11.9"},
    "git": {"commit": "31add28c0ffee", "dirty": False},
    "created": "2026-11-23T22:30:00+00:00",
}
ROUNDS = [
    '{"round": 0, "client/loss": 2.25, "client/accuracy": 0.125, "cohort/clients": 2, "client/norms": [1, 0]}',
    '{"round": 1, "client/loss": 1.5, "client/accuracy": 0.5, "cohort/clients": 2, "client/norms": [0, 1],'
    ' "test/loss": 1.25, "test/accuracy": 0.75}',
    '{"round": 2, "client/loss": null, "client/accuracy": 0.625, "cohort/clients": 2, "client/norms": [1, 1]}',
    '{"round": 3, "client/loss": 1.0, "client/accuracy": 0.875, "cohort/clients": 2, "client/norms": [2, 0],'
    ' "test/loss": 1e999, "test/accuracy": 0.6875}',
]
SECONDS = [1.5, 2.0, 0.5, 1.25]  # the run was resumed after round 1: 2.0 s and 1.25 s
CLIENTS = {  # client 5 was never drawn; client 3 trained in round 0 alone
    "round": [0, 0, 1, 1, 2, 2, 3, 3],
    "client": [3, 0, 1, 0, 2, 4, 3, 0],
    "client/accuracy": [0.25, 0.1, 0.5, 0.2, 0.75, 1.0, float("nan"), 0.875],
}
PARTITION = {
    "sizes": np.array([300, 200, 100, 400, 37, 400]),
    "clients": np.arange(6),
    "labels": np.array([3, 5, 8]),
    "counts": np.array([[300, 0, 0], [100, 100, 0], [0, 0, 100], [0, 400, 0], [1, 2, 34], [200, 100, 100]]),
}


def write(folder: Path, lines=ROUNDS, seconds=SECONDS, clients=CLIENTS, partition=PARTITION, **config) -> Path:
    """A run's folder; keyword arguments replace entries of config.json, and None or nothing leaves a file out."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if seconds:
        rows = [json.dumps({"round": i, "seconds": each}) for i, each in enumerate(seconds)]
        (folder / "timing.jsonl").write_text("\n".join(rows) + "\n")
    if clients:
        (folder / "clients").mkdir()
        table = {**clients, "name": [str(client) for client in clients["client"]]}
        parquet.write_table(pa.table(table), folder / "clients" / "00000000.parquet")
    if partition:
        np.savez(folder / "partition.npz", **partition)
    return folder
