"""Names for the types of numbers, arrays and trees of them; what a function says of its shapes is in its docstring."""

from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
"""An array of the device, traced or not, or of the host."""

Scalar = Array | np.number | float
"""One number: an array of shape [], or a number of NumPy's or Python's."""

PyTree = Any
"""Any pytree of arrays, or None."""

Shapes = Any
"""A pytree of `jax.ShapeDtypeStruct`, or of arrays of which shapes and dtypes alone are read."""

Key = jax.Array
"""A typed JAX key, scalar."""

Batch = dict[str, jax.Array]
"""The user's arrays, [B, ...] each, and the reserved entry `mask`, [B] float32: 0 for padding examples."""

Planned = Any
"""An array that is NumPy's on the host, where it is made, and JAX's in a program."""

UNSET: Any = None
"""The default of a record's field that is set before anybody reads it."""
