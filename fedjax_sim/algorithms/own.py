"""What methods with a whole model for each client have in common: the row, and what it begins with."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.arrays import Array, PyTree
from fedjax_sim.core.pytree import where
from fedjax_sim.core.types import Params


class OwnModel(NamedTuple):
    """A client's row: its model, of any value before its first round, and in how many rounds it was trained."""

    params: Params
    rounds: Array


def first_own(params: Params) -> OwnModel:
    """The row of a client that was not trained yet."""
    return OwnModel(params, jnp.zeros((), jnp.int32))


def current(own: OwnModel, server: Params) -> Params:
    """The client's model; the server's for a client that was not trained yet."""
    return where(own.rounds > 0, own.params, server)


def trained_once_more(own: OwnModel, params: Params) -> OwnModel:
    """The row after a round."""
    return OwnModel(params, own.rounds + 1)


def personal_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of clients' own models beside those of the server's."""
    return {f"personal_{name}": metric for name, metric in metrics.items()}


def dot(a: PyTree, b: PyTree) -> jax.Array:
    """The product of two trees as vectors, in float32."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    flat = lambda leaf: jnp.ravel(leaf).astype(jnp.float32)
    return sum((jnp.dot(flat(x), flat(y)) for x, y in pairs), jnp.zeros((), jnp.float32))
