"""Class labels, whole numbers from 0 on, and other codes: looked at on the host before anything is trained on them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.client.task import Columns, ColumnsCheck
from fedjax_sim.core.arrays import Array
from fedjax_sim.core.errors import ArgumentError, is_traced
from fedjax_sim.core.kinds import categories_of, is_computable


def check_labels(name: str, y: Array, classes: int, ignored: int | None = None) -> None:
    """Raise `ArgumentError` unless labels are 0, ..., classes - 1, as whole numbers of any type.

    Args:
        name: the column.
        y: [n, ...]. Those with axes of their own may be negative: such tokens or pixels do not count.
        classes: of the model.
        ignored: one more label that does not count, as a pad.
    """
    y = np.asarray(y)
    if y.dtype.kind == "f":
        wrong = y[~(np.isfinite(y) & (y == np.floor(y)))]
        if wrong.size:
            raise ArgumentError(
                f"labels {name!r}: {wrong[0]} is no class. Labels are whole numbers from 0 on; for continuous targets "
                "use fs.flax_task with a loss of your own."
            )
    y_counted = y if ignored is None else y[y != ignored]
    if not y_counted.size:
        return
    low, high = int(y_counted.min()), int(y_counted.max())
    if low < 0 and y.ndim == 1:
        raise ArgumentError(
            f"labels {name!r} run from {low} to {high}: must be 0 to {classes - 1} for {classes} classes. Number them "
            "from 0 on; leave out examples without a label, or make theirs negative in preprocess=, so as not to count."
        )
    if high >= classes:
        shifted = low >= 1 and high == classes + low - 1
        remedy = f"Subtract {low}" if shifted else "Number them anew (np.unique(y, return_inverse=True)[1])"
        raise ArgumentError(
            f"labels {name!r} run from {low} to {high}: must be 0 to {classes - 1} for {classes} classes. {remedy}, "
            f"or give the model {high + 1} classes."
        )


def categories_check(sample: Columns) -> ColumnsCheck | None:
    """A task's `check` that codes stand for what they stand for in its sample; None where that has no codes.

    Args:
        sample: the columns that the task was made with, which know their categories where a source read them.
    """
    known = {name: dict(found) for name, column in sample.items() if (found := categories_of(column))}
    if not known:
        return None

    def check(columns: Columns) -> None:
        for name, own in known.items():
            other = categories_of(columns.get(name))
            for column in own.keys() & other.keys():
                if own[column] != other[column]:
                    raise ArgumentError(
                        f"column {name!r}: the codes of {column!r} stand for {other[column]:.200}, but in the task's "
                        f"sample for {own[column]:.200}. Read these data with categories=, the sample's federation."
                    )

    return check


def label_check(
    name: str, classes: Callable[[], int | None], ignored: int | None = None, before: ColumnsCheck | None = None
) -> ColumnsCheck:
    """A task's `check` of its labels.

    Args:
        name: the column.
        classes: called once, when labels are first looked at; None where the column is not what the loss reads.
        ignored: as in `check_labels`.
        before: another check, which comes first.
    """
    classes = functools.cache(classes)

    def check(columns: Columns) -> None:
        if before is not None:
            before(columns)
        y = columns.get(name)
        if y is None or is_traced(y) or np.asarray(y).dtype.kind not in "biuf":
            return
        count = classes()
        if count is not None:
            check_labels(name, y, count, ignored)

    return check


def whole(y: jax.Array, num_classes: int) -> jax.Array:
    """Labels as int32 inside a program; what is no whole number gets a label past the last class, whose loss is NaN."""
    if jnp.issubdtype(y.dtype, jnp.floating):
        real = y == jnp.floor(y)
        return jnp.where(real, y, num_classes).astype(jnp.int32)
    return y.astype(jnp.int32) if y.dtype == jnp.bool_ else y


def example_of(sample: Columns) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one example and its mask: a batch to trace a model with."""
    like = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype))
    numbers = {name: like(a) for name, a in sample.items() if is_computable(a)}
    return {**numbers, "mask": jax.ShapeDtypeStruct((1,), jnp.float32)}
