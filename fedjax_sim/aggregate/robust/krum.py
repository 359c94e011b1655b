"""Krum and Multi-Krum: the clients that are closest to their neighbours."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.robust.by_leaf import By, by_leaf
from fedjax_sim.aggregate.robust.distances import combined, rank, squared_distances
from fedjax_sim.aggregate.robust.faults import OnFew, faulty, few, obeying
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check_count


def krum(f: Scalar, on_few: OnFew = "abandon", by: By = "model") -> Reducer:
    r"""The message of the client that is closest to its neighbours (Blanchard et al. 2017, Section 4).

    .. math:: \arg\min_i \sum_{j \in N_i} \lVert x_i - x_j \rVert^2

    where N_i are the n - f - 2 nearest of the other clients, over all coordinates; of equal scores the smaller client
    id is chosen. f = 0 is not the mean. A round of n <= 2f + 2 clients that contribute is abandoned.

    Args:
        f: clients that may be bad, or their share of n, rounded down.
        on_few: what such a round is instead: "mean", that of all that contribute, and `aggregate/averaged` is 1; or
            "error", it ends the run.
        by: "model", distances are over all coordinates; or "leaf", each leaf has a rule of its own.

    Raises:
        ArgumentError: a negative f, or a share of a half or more; another word for `on_few` or `by`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[1.0], [1.1], [1.3], [2.0], [1e6]])
        >>> places = fs.aggregate.Collected(messages, jnp.ones(5), jnp.ones(5, bool), ids=jnp.arange(5))
        >>> print(fs.aggregate.krum(1).collect(places).value)
        [1.1]
    """
    return _reducer(f"krum({f})", f, lambda n, bad: 1, on_few, by)


def multi_krum(f: Scalar, m: int | None = None, on_few: OnFew = "abandon", by: By = "model") -> Reducer:
    """The plain mean of the m messages of the best scores of `krum` (Blanchard et al. 2017, Section 6).

    With f = 0 and all m it is the mean. A round of n <= 2f + 2 clients that contribute is abandoned.

    Args:
        f: clients that may be bad, or their share of n, rounded down.
        m: clients to average, at most n - f; None for n - f.
        on_few, by: as of `krum`.

    Raises:
        ArgumentError: a negative f, a share of a half or more, or m below 1; another word for `on_few` or `by`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[1.0], [1.1], [1.3], [2.0], [1e6]])
        >>> places = fs.aggregate.Collected(messages, jnp.ones(5), jnp.ones(5, bool), ids=jnp.arange(5))
        >>> print(fs.aggregate.multi_krum(1, m=2).collect(places).value)
        [1.05]
    """
    if m is not None:
        check_count("m", m)
    name = f"multi_krum({f})" if m is None else f"multi_krum({f}, m={m})"
    return _reducer(name, f, lambda n, bad: n - bad if m is None else jnp.minimum(m, n - bad), on_few, by)


def _reducer(name: str, f: Scalar, chosen: Callable[..., Scalar], on_few: OnFew, by: By) -> Reducer:
    bad = faulty(f)

    def collect(collected: Collected) -> Reduced:
        n = jnp.sum(collected.contributes)
        short = few(on_few, n <= 2 * bad(n) + 2)
        count = jnp.where(short.averaged, n, chosen(n, bad(n)))
        scores = krum_scores(squared_distances(collected), n - bad(n) - 2)
        kept = rank(scores, collected) < count
        value = combined(kept / jnp.maximum(jnp.sum(kept), 1), collected)
        return Reduced(value, metrics=short.metrics, refused=short.refused)

    return obeying(on_few, by_leaf(by, Reducer(name, weight="uniform", collect=collect, by_client=True)))


def krum_scores(distances: jax.Array, neighbours: jax.Array) -> jax.Array:
    """[n] sums of the squared distances to so many nearest others."""
    others = jnp.where(jnp.eye(len(distances), dtype=bool), jnp.inf, distances)
    near = jnp.arange(len(distances))[None] < neighbours
    return jnp.sum(jnp.where(near, jnp.sort(others, axis=1), 0), axis=1)
