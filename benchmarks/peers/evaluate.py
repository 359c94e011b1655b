"""The mean cross entropy of a peer's last parameters on a work's examples, in NumPy, the same for every peer.

On all examples; of pictures whose convolutions NumPy is slow at, on every tenth.
"""

from pathlib import Path

import numpy as np
import shared


def loss(name: str, file: str | Path, final: str | Path, chunk: int = 500) -> float:
    """Read a work and parameters, and evaluate them."""
    work = shared.read(str(file), name)
    with np.load(final) as arrays:
        layers = [{"w": arrays[f"w{i}"], "b": arrays[f"b{i}"]} for i in range(len(work.params))]
    every = 10 if work.x.ndim == 4 else 1
    xs, ys, total = work.x[::every], work.y[::every], 0.0
    for at in range(0, len(ys), chunk):
        rows = slice(at, at + chunk)
        z = _logits(name, layers, xs[rows]).astype(np.float64)
        z -= z.max(1, keepdims=True)
        total += float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), ys[rows]]).sum())
    return round(total / len(ys), 6)


def _logits(name: str, layers: list[dict[str, np.ndarray]], x: np.ndarray) -> np.ndarray:
    if name != "W3":
        x = (x.astype(np.float32) / 255 - 0.5) * 0.5
    if x.ndim == 4:
        for layer in layers[:2]:
            w, (h, v) = layer["w"], (x.shape[1] - 2, x.shape[2] - 2)
            taps = (x[:, i : i + h, j : j + v] @ w[i, j] for i in range(3) for j in range(3))
            x = np.maximum(sum(taps, start=layer["b"]), 0)
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4)).reshape(b, -1)
        layers = layers[2:]
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["w"] + layer["b"], 0)
    return x @ layers[-1]["w"] + layers[-1]["b"]
