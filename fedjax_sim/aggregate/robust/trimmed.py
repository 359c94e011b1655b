"""Trimmed means, coordinate by coordinate."""

import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.numerics.sorting import mean_of_places
from fedjax_sim.aggregate.robust.faults import faulty
from fedjax_sim.core.arrays import Scalar


def trimmed_mean(f: Scalar) -> Reducer:
    r"""The mean of each coordinate without its f smallest and f largest values (Yin et al. 2018, Definition 2).

    .. math:: \frac{1}{n - 2f} \sum_{i = f + 1}^{n - f} x_{(i)}

    where x is ordered by value; each client counts once, and f = 0 is the mean. It withstands f bad clients. A round
    of n <= 2f clients that contribute is abandoned. Memory as of `median`.

    Args:
        f: clients to drop at each end, or their share of n, rounded down.

    Raises:
        ArgumentError: a negative f, or a share of a half or more.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[1.0], [2.0], [3.0], [1e6], [-1e6]])
        >>> places = fs.aggregate.Collected(messages, jnp.ones(5), jnp.ones(5, bool))
        >>> print(fs.aggregate.trimmed_mean(1).collect(places).value)
        [2.]
    """
    bad = faulty(f)

    def collect(collected: Collected) -> Reduced:
        n = jnp.sum(collected.contributes)
        dropped = bad(n)
        values = collected.messages.astype(jnp.float32)
        value = mean_of_places(values, collected.contributes, dropped, n - dropped - 1)
        return Reduced(value, refused=n <= 2 * dropped)

    return Reducer(f"trimmed_mean({f})", weight="uniform", collect=collect, by_coordinate=True)
