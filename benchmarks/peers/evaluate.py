"""The mean cross entropy of a peer's last parameters on all of a work's examples, in NumPy, the same for every peer."""

from pathlib import Path

import numpy as np
import shared


def loss(name: str, file: str | Path, final: str | Path, chunk: int = 2000) -> float:
    """Read a work and parameters, and evaluate them."""
    work = shared.read(str(file), name)
    with np.load(final) as arrays:
        layers = [{"w": arrays[f"w{i}"], "b": arrays[f"b{i}"]} for i in range(len(work.params))]
    total = 0.0
    for at in range(0, len(work.y), chunk):
        rows = slice(at, at + chunk)
        z = _logits(name, layers, work.x[rows]).astype(np.float64)
        z -= z.max(1, keepdims=True)
        total += float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), work.y[rows]]).sum())
    return round(total / len(work.y), 6)


def _logits(name: str, layers: list[dict[str, np.ndarray]], x: np.ndarray) -> np.ndarray:
    if name != "W3":
        x = (x.astype(np.float32) / 255 - 0.5) * 0.5
    if name == "W2":
        for layer in layers[:2]:
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))  # [B, H, W, channels, 3, 3]
            kernel = layer["w"].transpose(2, 0, 1, 3).reshape(-1, layer["w"].shape[-1])
            columns = windows.reshape(-1, len(kernel))
            x = np.maximum((columns @ kernel).reshape(*windows.shape[:3], -1) + layer["b"], 0)
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4)).reshape(b, -1)
        layers = layers[2:]
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["w"] + layer["b"], 0)
    return x @ layers[-1]["w"] + layers[-1]["b"]
