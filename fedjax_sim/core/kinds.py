"""What devices compute with: numbers, and no text; what codes stand for; and what kind of numbers a state keeps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array, PyTree, Shapes
from fedjax_sim.core.errors import ArgumentError

_CATEGORIES = "fedjax_sim.categories"


def with_categories(codes: np.ndarray, categories: Mapping[str, str]) -> np.ndarray:
    """The same codes, whose dtype remembers what they stand for: so do views, rows and copies, not what they look up.

    Args:
        codes: [N, ...].
        categories: column of a file to its categories, as one text.

    Example:
        >>> codes = with_categories(np.zeros(3, np.int32), {"colour": '["blue", "red"]'})
        >>> categories_of(codes[1:]), categories_of(np.array([5])[codes])
        ({'colour': '["blue", "red"]'}, {})
    """
    return codes.view(np.dtype(codes.dtype, metadata={_CATEGORIES: dict(categories)})) if categories else codes


def categories_of(column: object) -> Mapping[str, str]:
    """What a column's codes stand for, if it knows."""
    return (getattr(getattr(column, "dtype", None), "metadata", None) or {}).get(_CATEGORIES, {})


def is_wide(dtype: np.dtype) -> bool:
    """Whether numbers are floats of more than 64 bits, or pairs of such: no device has them."""
    return dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16)


def in_native_order(array: np.ndarray) -> np.ndarray:
    """An array with its numbers' bytes in the machine's order, copied where they are not.

    Example:
        >>> in_native_order(np.array([1.5], ">f4"))
        array([1.5], dtype=float32)
    """
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def is_computable(array: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether an array's entries are numbers, truth values or JAX keys, in a form that devices have."""
    kinds = (jnp.number, jnp.bool_, jax.dtypes.extended)
    return any(jnp.issubdtype(array.dtype, kind) for kind in kinds) and not _foreign(array.dtype)


def _foreign(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and (is_wide(dtype) or not dtype.isnative or dtype.kind == "m")


def check_computable(arrays: PyTree) -> None:
    """Raise `ArgumentError` for a column with which no device computes, whether it is used or not."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if is_computable(leaf):
            continue
        name, kind = jax.tree_util.keystr(path, simple=True, separator="/") or "arrays", leaf.dtype
        if kind.kind in "biufc":
            wide = {"f": "np.float64", "c": "np.complex128"}.get(kind.kind) if is_wide(kind) else None
            what, into = ("long doubles", wide) if wide else ("bytes in another order", 'x.dtype.newbyteorder("=")')
            raise ArgumentError(
                f"column {name!r} holds {what} ({kind.str}), which devices do not have: convert it, x.astype({into})."
            )
        what = {"M": "dates", "m": "spans of time", "V": "records"}.get(kind.kind, "text or Python objects")
        raise ArgumentError(
            f"column {name!r} holds {what} ({kind}), with which devices do not compute. Turn it into numbers, as "
            f'fs.data.sources.table(..., categories={{"{name}": [...]}}) does of texts and fs.data.next_token_windows '
            "of sentences, or leave the column out."
        )


def check_leaves(what: str, tree: PyTree) -> None:
    """Raise `ArgumentError`, naming the leaf, for what is no number, such as a function or a text."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        number = isinstance(leaf, bool | int | float | complex)
        if not number and not (hasattr(leaf, "dtype") and hasattr(leaf, "shape") and is_computable(leaf)):
            raise ArgumentError(
                f"{what}{jax.tree_util.keystr(path)} is a {type(leaf).__name__}, {leaf!r}: must be an array or a "
                "number. Keep functions, texts and settings out of it, in the closure of the function that uses them."
            )


def shapes_of(what: str, function: Callable[..., PyTree], *args: PyTree) -> Shapes:
    """`jax.eval_shape`, with an error that names a leaf which is no number."""

    def checked(*args: PyTree) -> PyTree:
        made = function(*args)
        check_leaves(what, made)
        return made

    return jax.eval_shape(checked, *args)


def check_keeps(what: str, old: PyTree, new: PyTree) -> None:
    """Raise `ArgumentError` where a leaf would be cut to the old one's kind, a fraction to a whole number."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        kept, given = jnp.result_type(a), jnp.result_type(b)
        if _rank(given) > _rank(kept):
            raise ArgumentError(
                f"{what}{jax.tree_util.keystr(path)} is {given}, which {kept} would cut: it keeps the type that it "
                "began with. Begin with a float (0.0), or round the new value: jnp.round(value).astype(jnp.int32)."
            )


def _rank(dtype: np.dtype) -> int:
    """Truth values, whole numbers, floats, complex numbers; each holds those before it."""
    for rank, kind in enumerate((jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)):
        if jnp.issubdtype(dtype, kind):
            return rank
    return 0
