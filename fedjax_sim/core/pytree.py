"""Frozen dataclasses as JAX pytrees, and the few tree functions that `jax.tree` and `optax.tree` lack."""

import dataclasses
import math
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array, PyTree, Scalar, Shapes
from fedjax_sim.core.shown import record

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A dataclass field that is part of the pytree's structure: compared, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields are the children of a JAX pytree.

    Example:
        >>> import jax
        >>> from fedjax_sim.core.pytree import pytree, static
        >>> @pytree
        ... class Point:
        ...     x: float
        ...     name: str = static(default="p")
        >>> jax.tree.map(lambda v: v + 1, Point(1.0))
        Point(x=2.0)
    """
    own = "__repr__" in vars(cls)
    cls = dataclasses.dataclass(frozen=True, repr=False)(cls)
    if not own:
        cls.__repr__ = record  # type: ignore[assignment]
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)
    return cls


def where(condition: Scalar, yes: PyTree, no: PyTree) -> PyTree:
    """Leaf by leaf `condition ? yes : no` for a scalar condition; `yes` may hold NaN where it loses."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def put(entries: PyTree, entry: PyTree, index: Scalar) -> PyTree:
    """Entries, [n, ...] a leaf, with that one at an index: no `at[].set`, a scatter, which takes long to compile."""
    write = lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, index, 0)
    return jax.tree.map(write, entries, entry)


def strong(tree: PyTree) -> PyTree:
    """The leaves as arrays of their dtype for good: a Python number would take part in a program's type otherwise."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), tree)


def squared_norm(tree: PyTree) -> jax.Array:
    """Sum of squares over every leaf, in float32: not finite whenever a leaf holds NaN or infinity.

    A dot product, as XLA's CPU reductions to a scalar are not vectorised.
    """
    total = jnp.zeros((), jnp.float32)
    for leaf in jax.tree.leaves(tree):
        flat = jnp.ravel(leaf).astype(jnp.float32)
        total = total + jnp.dot(flat, flat)
    return total


def size(tree: Shapes) -> int:
    """Number of scalars in all leaves; shapes alone will do."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def bits(tree: Shapes) -> int:
    """Bits of all leaves as they are stored; shapes alone will do."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize * 8 for leaf in map(_shaped, jax.tree.leaves(tree)))


def _shaped(leaf: Scalar | jax.ShapeDtypeStruct) -> Array | np.number | jax.ShapeDtypeStruct:
    return jnp.asarray(leaf) if isinstance(leaf, bool | int | float | complex) else leaf


@pytree
class Layout:
    """How a tree's leaves lie in one vector; a pytree without leaves, so that a state can hold it.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_sim.core.pytree import Layout
        >>> layout = Layout.of({"a": jnp.zeros((1, 2)), "b": jnp.zeros(())})
        >>> layout.ravel({"a": jnp.array([[1.0, 2.0]]), "b": 3.0}, padded=4).tolist()
        [1.0, 2.0, 3.0, 0.0]
        >>> layout.unravel(jnp.array([5.0, 6.0, 7.0, 0.0]))["b"].item()
        7.0
    """

    structure: Any = static()
    shapes: tuple[tuple[int, ...], ...] = static()

    @classmethod
    def of(cls, tree: Shapes) -> "Layout":
        """The layout of a tree of arrays, or of their shapes."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(tuple(jnp.shape(leaf)) for leaf in leaves))

    @property
    def size(self) -> int:
        """Numbers in all leaves."""
        return sum(math.prod(shape) for shape in self.shapes)

    def ravel(self, tree: PyTree, padded: int = 0) -> jax.Array:
        """The leaves one after another, [size] float32, and zeros up to `padded` numbers."""
        parts = [jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
        return jnp.concatenate([*parts, jnp.zeros(max(padded - self.size, 0), jnp.float32)])

    def unravel(self, vector: jax.Array) -> PyTree:
        """The tree whose leaves lie in the vector; what is over at its end is dropped."""
        leaves, at = [], 0
        for shape in self.shapes:
            leaves.append(vector[at : at + math.prod(shape)].reshape(shape))
            at += math.prod(shape)
        return jax.tree.unflatten(self.structure, leaves)
