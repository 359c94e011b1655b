"""Formats of tensors in GGUF files: blocks of numbers that share a scale, as ggml defines them."""

from typing import NamedTuple

import numpy as np


class Format(NamedTuple):
    """How numbers are kept: so many of them (`block`) in so many bytes."""

    name: str
    block: int
    bytes: int


FORMATS = {
    0: Format("F32", 1, 4),
    1: Format("F16", 1, 2),
    30: Format("BF16", 1, 2),
    2: Format("Q4_0", 32, 18),
    3: Format("Q4_1", 32, 20),
    8: Format("Q8_0", 32, 34),
}
"""Those that are read, by their number in files."""


def dequantised(held: np.ndarray, form: Format) -> np.ndarray:
    """The numbers of bytes `held` [n] uint8, as [m] float32.

    A block of Q8_0 is a scale d (float16) and 32 whole numbers q (int8): d q. Of Q4_0, d and 32 numbers of 4 bits, the
    low halves of 16 bytes and then the high ones: d (q - 8). Of Q4_1, d, an offset m (float16) and the same: d q + m.

    Example:
        >>> block = np.array([0, 60, 0, 64] + 16 * [0x21], np.uint8)  # d = 1, m = 2
        >>> dequantised(block, FORMATS[3])[[0, 15, 16, 31]]
        array([3., 3., 4., 4.], dtype=float32)
    """
    if form.name == "F32":
        return held.view("<f4").astype(np.float32)
    if form.name == "F16":
        return held.view("<f2").astype(np.float32)
    if form.name == "BF16":
        return (held.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = held.reshape(-1, form.bytes)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if form.name == "Q8_0":
        return (scale * blocks[:, 2:].view(np.int8)).ravel()
    halves = blocks[:, -16:]
    q = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32)
    if form.name == "Q4_0":
        return (scale * (q - 8)).ravel()
    return (scale * q + blocks[:, 2:4].copy().view("<f2").astype(np.float32)).ravel()
