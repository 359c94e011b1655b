"""Means of messages that are clipped on the server: around the last aggregate, or around 0."""

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.robust.by_leaf import By, by_leaf
from fedjax_sim.aggregate.robust.distances import combined, norms
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_count, check_positive
from fedjax_sim.core.metrics import Mean


def centered_clipping(tau: Scalar, iterations: int = 1, by: By = "model") -> Reducer:
    r"""The last round's aggregate, moved by clipped differences from it (Karimireddy et al. 2021, Algorithm 2).

    .. math:: v \leftarrow v + \frac{1}{n} \sum_i (x_i - v) \min(1, \tau / \lVert x_i - v \rVert)

    The v of a round is the next one's first, kept and saved with the transforms' states; it begins with 0. Distances
    are over all coordinates. No client moves the aggregate by more than tau / n an iteration. Metrics:
    `clipped_fraction`, of the clients in the last iteration.

    Args:
        tau: the radius.
        iterations: of a round.
        by: "model", distances are over all coordinates; or "leaf", each leaf has a rule of its own.

    Raises:
        ArgumentError: tau that is not positive, or iterations below 1; another word for `by`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[1.0], [1.0], [1e6], [-2.0]])
        >>> places = fs.aggregate.Collected(messages, jnp.ones(4), jnp.ones(4, bool), state=jnp.array([1.0]))
        >>> print(fs.aggregate.centered_clipping(2.0).collect(places).value.round(3))
        [1.]
    """
    check_positive("tau", tau)
    check_count("iterations", iterations)

    def collect(collected: Collected) -> Reduced:
        n, value, apart = jnp.sum(collected.contributes), collected.state, jnp.zeros(())
        for _ in range(iterations):
            apart = norms(collected, value)
            factors = jnp.where(collected.contributes, within(tau, apart) / jnp.maximum(n, 1), 0)
            rest, moved = 1 - jnp.sum(factors), combined(factors, collected)
            value = jax.tree.map(lambda v, m, rest=rest: rest * v + m, value, moved)
        return Reduced(value, value, _clipped(apart > tau, collected))

    def init(shapes):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)

    name = f"centered_clipping({tau}, {iterations})" if iterations > 1 else f"centered_clipping({tau})"
    return by_leaf(by, Reducer(name, weight="uniform", collect=collect, init=init, by_client=True))


def norm_bound(bound: Scalar | Literal["median"], by: By = "model") -> Reducer:
    r"""The mean of the messages, each scaled down to an L2 norm of at most the bound.

    .. math:: \frac{1}{n} \sum_i x_i \min(1, C / \lVert x_i \rVert)

    The server's form of `clip_by_l2` (Sun et al. 2019, "norm thresholding"), for clients that might not clip. Metrics:
    `clipped_fraction`, and `norm_bound`, the C of the round.

    Args:
        bound: C; or "median", that of the round's norms.
        by: "model", norms are over all coordinates; or "leaf", each leaf has a rule of its own.

    Raises:
        ArgumentError: a bound that is neither positive nor "median"; another word for `by`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[1.0], [2.0], [300.0]])
        >>> places = fs.aggregate.Collected(messages, jnp.ones(3), jnp.ones(3, bool))
        >>> print(fs.aggregate.norm_bound("median").collect(places).value.round(3))
        [1.667]
    """
    by_median = isinstance(bound, str)
    if by_median:
        check(bound == "median", "bound", bound, 'must be a positive number or "median".')
    else:
        check_positive("bound", bound)

    def collect(collected: Collected) -> Reduced:
        n, lengths = jnp.sum(collected.contributes), norms(collected)
        most = jnp.asarray(0.0 if by_median else bound, jnp.float32)
        if by_median:
            ordered = jnp.sort(jnp.where(collected.contributes, lengths, jnp.inf))
            middle = (ordered[jnp.maximum(n - 1, 0) // 2] + ordered[n // 2]) / 2
            most = jnp.where(n > 0, middle, 0)
        value = combined(within(most, lengths) / jnp.maximum(n, 1), collected)
        return Reduced(value, metrics={**_clipped(lengths > most, collected), "norm_bound": most})

    return by_leaf(by, Reducer(f"norm_bound({bound!r})", weight="uniform", collect=collect, by_client=True))


def within(bound: Scalar, lengths: jax.Array) -> jax.Array:
    """What a vector of that length is multiplied by to be no longer than the bound."""
    return jnp.where(lengths > bound, bound / jnp.where(lengths > 0, lengths, 1), 1)


def _clipped(over: jax.Array, collected: Collected) -> dict[str, Mean]:
    count = lambda flags: jnp.sum(flags).astype(jnp.float32)
    return {"clipped_fraction": Mean(count(over & collected.contributes), count(collected.contributes))}
