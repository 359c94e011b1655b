"""Who shares masks with whom in a round."""

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.rng import Purpose


def neighbourhoods(ids: list[int], neighbours: int | None, seed: int, round: int) -> dict[int, list[int]]:
    """Each client's neighbours: all others, or of a random k-regular graph.

    That graph is a circle in random order, of which each client knows the k/2 next on either side (the Harary graph of
    Bell et al. 2020). Where there are at most k others, all are neighbours.

    Args:
        ids: of the clients, in any order, which changes nothing.
        neighbours: k, even; None for the complete graph.
        seed, round: what the order is drawn from; clients know them too, so that no server chooses their neighbours.
    """
    order = np.sort(np.asarray(ids, np.int64))
    n = len(order)
    if neighbours is None or neighbours >= n - 1:
        everyone = order.tolist()
        return {k: [v for v in everyone if v != k] for k in everyone}
    circle = rng.generator(seed, Purpose.SECURE, round).permutation(order)
    steps = np.arange(1, neighbours // 2 + 1)
    around = circle[(np.arange(n)[:, None] + np.concatenate([-steps, steps])) % n]
    return {int(k): sorted(row.tolist()) for k, row in zip(circle, around, strict=True)}
