"""What devices compute with: numbers, and no text."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.errors import ArgumentError


def is_computable(array: Any) -> bool:
    """Whether an array's entries are numbers, truth values or JAX keys."""
    return any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.number, jnp.bool_, jax.dtypes.extended))


def check_computable(arrays: Any) -> None:
    """Raise `ArgumentError` for a column with which no device computes, whether it is used or not."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if is_computable(leaf):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "arrays"
        what = {"M": "dates", "m": "spans of time"}.get(leaf.dtype.kind, "text or Python objects")
        raise ArgumentError(
            f"column {name!r} holds {what} ({leaf.dtype}), with which devices do not compute. Turn it into numbers, as "
            f'fs.data.sources.table(..., categories={{"{name}": [...]}}) does of texts and fs.data.next_token_windows of '
            "sentences, or leave the column out."
        )
