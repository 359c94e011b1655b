"""Clipping: bounds on one client's influence."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Facts, Transform
from fedjax_sim.core.errors import ArgumentError, check_positive
from fedjax_sim.core.metrics import Mean
from fedjax_sim.core.pytree import squared_norm


def clip_by_l2(clip_norm: Any) -> Transform:
    r"""Scale a payload down to an L2 norm of at most C, over all leaves together.

    .. math:: u \leftarrow u \cdot \min(1, C / \lVert u \rVert_2)

    Metrics: `clip_fraction`, the part of the clients that were scaled, and `update_norm`, their mean norm before.

    Args:
        clip_norm: C, positive; may be traced.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.clip_by_l2(0.5))
    """
    check_positive("clip_norm", clip_norm)

    def client(key, state, row, payload, context):
        norm = jnp.sqrt(squared_norm(payload))
        scale = jnp.where(norm > clip_norm, clip_norm / jnp.where(norm > clip_norm, norm, 1.0), 1.0)
        one = jnp.ones((), jnp.float32)
        metrics = {
            "clip_fraction": Mean((norm > clip_norm).astype(jnp.float32), one),
            "update_norm": Mean(norm, one),
        }
        # In float32 at least: rounded to a shorter type, the norm could pass the bound that noise is scaled by.
        return jax.tree.map(lambda p: p * scale, payload), row, metrics

    def facts(facts: Facts) -> Facts:
        if facts.noisy:
            raise ArgumentError(f"{name} stands after noise: the noise would be clipped too. Clip first.")
        if facts.integers:
            raise ArgumentError(f"{name} stands after a quantiser: it would scale integers. Clip first.")
        return facts._replace(clipped=True, bound=str(clip_norm))

    name = f"clip_by_l2({clip_norm})"
    return Transform(
        name=name,
        client=client,
        facts=facts,
        bound=lambda state, incoming, dim: jnp.minimum(incoming, clip_norm),
    )
