"""Draws with unequal chances, and the weights that undo them."""

from collections.abc import Sequence

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import check, check_count
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Cohort
from fedjax_sim.population.sampling import Sampler

Numbers = Sequence[float] | np.ndarray
"""[K], one a client."""


def importance(chances: Numbers, draws: int, sizes: Numbers | None = None) -> Sampler:
    r"""Clients drawn with replacement, each time k with its own chance, and each update scaled to undo it.

    .. math:: \hat u = \frac 1 m \sum_{j=1}^m \frac{p_{k_j}}{q_{k_j}} u_{k_j}, \qquad
        \mathbb{E} \hat u = \sum_k p_k u_k, \qquad p_k = n_k / \sum_l n_l

    Take `fs.aggregate.mean("uniform")`: then the round's update is this estimate, which is unbiased as it is not
    divided by the sum of its weights. Its variance is least where :math:`q_k \propto p_k \|u_k\|`. A cohort may hold
    a client more than once; each copy trains for itself. No accounting event: refused under noise for privacy.

    Args:
        chances: [K] q, each positive; they are divided by their sum.
        draws: m.
        sizes: [K] n, what each client counts for in the mean that is estimated; None for all alike.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> sampler = fs.sampler.importance([0.2, 0.3, 0.5], draws=2, sizes=[1, 2, 7])
        >>> cohort, _ = sampler.sample(sampler.init(3), round=0, seed=0)
        >>> cohort.columns["scale"].tolist() == [
        ...     {0: 0.5, 1: np.float32(2 / 3), 2: np.float32(1.4)}[k] for k in cohort.ids
        ... ]
        True
    """
    check_count("draws", draws)
    given = np.asarray(chances, np.float64)
    n = np.ones_like(given) if sizes is None else np.asarray(sizes, np.float64)
    _check_numbers("chances", given, positive=True)
    _check_numbers("sizes", n, positive=False)
    check(n.shape == given.shape, "sizes", n.shape, f"must be one number a client, as chances: {given.shape}.")
    q, p = given / given.sum(), n / n.sum()
    ends, scales = np.cumsum(q), (p / q).astype(np.float32)

    def init(num_clients: int) -> None:
        check(len(q) == num_clients, "chances", q.shape, f"the population has {num_clients} clients.")

    def sample(state: None, round: int, seed: int):
        at = rng.generator(seed, Purpose.SAMPLE, round).random(draws) * ends[-1]
        ids = np.minimum(np.searchsorted(ends, at, side="right"), len(ends) - 1).astype(np.int32)
        ones = np.ones(draws, np.float32)
        return Cohort(ids, ones > 0, ones, columns={"scale": scales[ids]}), state

    return Sampler(
        init=init,
        sample=sample,
        capacity=lambda num_clients: draws,
        expected=lambda num_clients: float(draws),
        name=f"importance({len(q)} chances, {draws})",
        columns={"scale": np.float32(0)},
        repeats=True,
    )


def _check_numbers(name: str, values: np.ndarray, positive: bool) -> None:
    good = values.ndim == 1 and len(values) > 0 and np.isfinite(values).all() and values.sum() > 0
    good = good and ((values > 0).all() if positive else (values >= 0).all())
    what = "positive" if positive else "non-negative"
    check(bool(good), name, values, f"must be [K] {what} numbers, one a client.")
