"""What users' functions return, checked: updates, server states and first models."""

import jax
import jax.numpy as jnp

from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.kinds import check_keeps, check_leaves
from fedjax_sim.core.types import ClientUpdate, Params


def checked_update(update: PyTree, row: PyTree) -> ClientUpdate:
    """Check what a client function returned; fill in an unchanged row."""
    if not isinstance(update, ClientUpdate):
        raise ArgumentError(f"the client function returned {type(update).__name__}: must be a fs.ClientUpdate.")
    if jnp.shape(update.weight) != ():
        raise ArgumentError(f"ClientUpdate.weight has shape {jnp.shape(update.weight)}: must be a scalar.")
    check_leaves("ClientUpdate.payload", update.payload)
    state = row if update.state is None or not jax.tree.leaves(row) else update.state
    check_leaves("ClientUpdate.state", state)
    _check_like("ClientUpdate.state", row, state, "the row that the algorithm's init returned")
    payload = jax.tree.map(jnp.asarray, update.payload)
    return ClientUpdate(payload, update.weight, state=state, metrics=metrics_lib.as_metrics(update.metrics))


def check_server(old: PyTree, new: PyTree) -> None:
    """A server function gave a state like the one that it got."""
    check_leaves("the server function's result", new)
    _check_like("the server function's result", old, new, "the server state")


def _check_like(what: str, old: PyTree, new: PyTree, like: str) -> None:
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ArgumentError(
            f"{what} has structure {jax.tree.structure(new)}: must be that of {like}, {jax.tree.structure(old)}."
        )
    leaves = jax.tree_util.tree_leaves_with_path(old)
    for (path, a), b in zip(leaves, jax.tree.leaves(new), strict=True):
        if jnp.shape(a) != jnp.shape(b):
            raise ArgumentError(
                f"{what}{jax.tree_util.keystr(path)} has shape {jnp.shape(b)}: must be {jnp.shape(a)}, as in {like}."
            )
    check_keeps(what, old, new)


def check_params(like: Params, params: Params) -> None:
    """Given parameters have the structure, shapes and kinds of the task's."""
    check_leaves("params", params)
    expected, given = jax.tree.structure(like), jax.tree.structure(params)
    if expected != given:
        raise ArgumentError(f"params have structure {given}: the task's have {expected}.")
    leaves = jax.tree_util.tree_leaves_with_path(like)
    for (path, a), b in zip(leaves, jax.tree.leaves(params), strict=True):
        if a.shape != jnp.shape(b):
            raise ArgumentError(
                f"params{jax.tree_util.keystr(path)} has shape {jnp.shape(b)}: the task's has {a.shape}."
            )
    check_keeps("params", like, params)
