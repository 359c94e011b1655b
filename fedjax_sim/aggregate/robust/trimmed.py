"""Trimmed means, coordinate by coordinate."""

import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.numerics.sorting import mean_of_places
from fedjax_sim.aggregate.robust.faults import OnFew, faulty, few, obeying
from fedjax_sim.core.arrays import Scalar


def trimmed_mean(f: Scalar, on_few: OnFew = "abandon") -> Reducer:
    r"""The mean of each coordinate without its f smallest and f largest values (Yin et al. 2018, Definition 2).

    .. math:: \frac{1}{n - 2f} \sum_{i = f + 1}^{n - f} x_{(i)}

    where x is ordered by value; each client counts once, and f = 0 is the mean. It withstands f bad clients. A round
    of n <= 2f clients that contribute is abandoned. Memory as of `median`.

    Args:
        f: clients to drop at each end, or their share of n, rounded down.
        on_few: what such a round is instead: "mean", that of all that contribute, and `aggregate/averaged` is 1; or
            "error", it ends the run.

    Raises:
        ArgumentError: a negative f, or a share of a half or more; another word for `on_few`.

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
        short = few(on_few, n <= 2 * bad(n))
        dropped = jnp.where(short.averaged, 0, bad(n))
        values = collected.messages.astype(jnp.float32)
        value = mean_of_places(values, collected.contributes, dropped, n - dropped - 1)
        return Reduced(value, metrics=short.metrics, refused=short.refused)

    return obeying(on_few, Reducer(f"trimmed_mean({f})", weight="uniform", collect=collect, by_coordinate=True))
