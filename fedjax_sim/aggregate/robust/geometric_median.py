"""The geometric median, by smoothed Weiszfeld steps."""

from typing import Literal

import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.robust.by_leaf import By, by_leaf
from fedjax_sim.aggregate.robust.distances import combined, norms_around
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_count, check_positive


def geometric_median(
    iterations: int = 3,
    nu: Scalar = 1e-6,
    weight: Literal["examples", "uniform"] = "uniform",
    by: By = "model",
) -> Reducer:
    r"""RFA's approximate geometric median, :math:`\arg\min_v \sum_i \alpha_i \lVert x_i - v \rVert`.

    From the mean on, so many steps of the smoothed Weiszfeld algorithm (Pillutla et al. 2022, Algorithm 2):

    .. math:: v \leftarrow \sum_i \beta_i x_i / \sum_i \beta_i, \quad
        \beta_i = \alpha_i / \max(\nu, \lVert x_i - v \rVert)

    Distances are over all coordinates. It withstands fewer than half of the weight; 0 iterations are the mean.

    Args:
        iterations: steps.
        nu: the least distance that is divided by.
        weight: "uniform", 1 a client; or "examples" as in the paper, where a bad client chooses its own weight.
        by: "model", distances are over all coordinates; or "leaf", each leaf has a rule of its own.

    Raises:
        ArgumentError: a negative number of iterations, or nu that is not positive; another word for `by`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[0.0], [1.0], [50.0]])
        >>> places = fs.aggregate.Collected(messages, jnp.ones(3), jnp.ones(3, bool))
        >>> print(fs.aggregate.geometric_median(iterations=30).collect(places).value.round(2))
        [1.]
    """
    check_count("iterations", iterations, minimum=0)
    check_positive("nu", nu)
    check(weight in ("examples", "uniform"), "weight", weight, 'must be "examples" or "uniform".')

    def collect(collected: Collected) -> Reduced:
        alpha = jnp.where(collected.contributes, collected.weights, 0)
        shares = lambda beta: beta / jnp.where(jnp.sum(beta) > 0, jnp.sum(beta), 1)
        factors = shares(alpha)
        for _ in range(iterations):  # one pass each: v is made and left block by block
            factors = shares(alpha / jnp.maximum(nu, norms_around(factors, collected)))
        return Reduced(combined(factors, collected))

    told = "" if weight == "uniform" else f", {weight}"
    return by_leaf(
        by, Reducer(f"geometric_median({iterations}, {nu}{told})", weight=weight, collect=collect, by_client=True)
    )
