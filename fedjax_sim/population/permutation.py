"""Random permutations that are computed where they are asked for."""

import math

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.rng import Purpose

STAGES = 6
"""Of the Feistel network: four make a pseudorandom permutation of a pseudorandom function (Luby and Rackoff 1988)."""


SMALL = 2**15
"""Up to so many a permutation is drawn as such, which is faster there than the network."""


def permuted(seed: int, epoch: int, positions: np.ndarray, count: int, purpose: Purpose = Purpose.GROUP) -> np.ndarray:
    """Where a random permutation of 0 .. count - 1 puts positions, at a cost of O(positions).

    A Feistel network over the least even number of bits that holds the count; what falls beyond is permuted again until
    it does not, which keeps it a permutation (cycle walking: Black and Rogaway 2002, section 3).

    Args:
        seed, epoch, purpose: what it is drawn from.
        positions: [n], below the count.
        count: at most 2**62.

    Returns:
        [n] int64.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.population.permutation import permuted
        >>> sorted(permuted(0, 0, np.arange(5), 5).tolist())
        [0, 1, 2, 3, 4]
    """
    if count <= SMALL:  # where a network of so few bits would not be uniform
        return rng.generator(seed, purpose, epoch).permutation(count)[positions]
    half = math.ceil((count - 1).bit_length() / 2)
    low = np.uint64((1 << half) - 1)
    found = np.asarray(positions).astype(np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        left, right = found[walking] >> np.uint64(half), found[walking] & low
        for stage in range(STAGES):
            left, right = right, left ^ (rng.hash32(seed, purpose, epoch, right, stage) & low)
        found[walking] = (left << np.uint64(half)) | right
        walking = walking[found[walking] >= np.uint64(count)]
    return found.astype(np.int64)
