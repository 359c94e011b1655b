"""What a cohort says of its clients besides who they are, checked: the sampler's own columns, versions and copies."""

from collections.abc import Mapping

import jax
import numpy as np

from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.types import Cohort, Columns

RESERVED = ("weight", "version", "round")
"""What `batches.info` holds of every client."""


def declared(columns: Mapping[str, Array | Scalar] | None) -> dict[str, np.ndarray]:
    """A sampler's `columns`, in order: for each what an empty place holds, of the column's dtype on the devices.

    Raises:
        ArgumentError: a name that is taken; a value that is no number and no array of numbers.
    """
    found = {}
    for name in sorted(columns or {}):
        value = np.asarray((columns or {})[name])
        check(
            name not in RESERVED,
            "sampler.columns",
            name,
            f"batches.info has a {name!r} of its own: rename it.",
        )
        check(
            jax.numpy.issubdtype(value.dtype, np.number) or value.dtype == bool,
            f"sampler.columns[{name!r}]",
            (columns or {})[name],
            "must be a number, or an array of numbers: what an empty place holds.",
        )
        plain = value.shape == () and jax.numpy.issubdtype(value.dtype, np.floating)
        check(name != "scale" or plain, "sampler.columns['scale']", value, "multiplies a message: must be a number.")
        check(value.size > 0, f"sampler.columns[{name!r}]", value, "must hold at least one number.")
        found[name] = value.astype(jax.dtypes.canonicalize_dtype(value.dtype))
    return found


def kinds(columns: Mapping[str, np.ndarray]) -> Columns:
    """Name, dtype and one client's shape of each."""
    return tuple((name, value.dtype, value.shape) for name, value in columns.items())


def columns_of(cohort: Cohort, columns: Mapping[str, np.ndarray], sampler: str) -> dict[str, np.ndarray]:
    """The cohort's columns, [C, ...], which are those that the sampler declared.

    Raises:
        ArgumentError: others; or another shape, or kind of numbers.
    """
    if set(cohort.columns) != set(columns):
        raise ArgumentError(
            f"{sampler}: the cohort has columns {sorted(cohort.columns)}, and the sampler declares {sorted(columns)}: "
            "they must be the same in every round; declare them as Sampler(columns={name: what an empty place holds})."
        )
    found = {}
    for name, empty in columns.items():
        given = np.asarray(cohort.columns[name])
        shape = (len(cohort.ids), *empty.shape)
        if given.shape != shape or jax.dtypes.canonicalize_dtype(given.dtype) != empty.dtype:
            raise ArgumentError(
                f"{sampler}: the cohort's column {name!r} is {given.dtype}{list(given.shape)}: must be "
                f"{empty.dtype}{list(shape)}, as the sampler declares it."
            )
        found[name] = given.astype(empty.dtype, copy=False)
    return found


def versions_of(cohort: Cohort, slot: np.ndarray, round: int, versions: int, sampler: str) -> np.ndarray | int:
    """The versions of those places, which the devices have.

    Args:
        cohort: who takes part.
        slot: [n] places.
        round: the round's number.
        versions: how many server states before the round's own are kept; 0 for none, when versions are not looked at.
        sampler: for messages.

    Raises:
        ArgumentError: one that is not kept.
    """
    if cohort.version is None:
        return round if versions else 0
    given = np.asarray(cohort.version)[slot]
    first = max(0, round - versions)
    if versions and len(given) and (given.min() < first or given.max() > round):
        wrong = int(np.flatnonzero((given < first) | (given > round))[0])
        raise ArgumentError(
            f"{sampler}: client {int(np.asarray(cohort.ids)[slot[wrong]])} starts from version {int(given[wrong])} in "
            f"round {round}, and the server states of rounds {first} to {round} are kept: declare a larger "
            f"Sampler(versions={versions}), or draw no client that is staler."
        )
    return given


def later_copies(ids: np.ndarray) -> np.ndarray:
    """[n] how many of the entries that follow are of the same client, whose entries stand side by side.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.engine.plan.given import later_copies
        >>> later_copies(np.array([4, 4, 4, 1, 7, 7]))
        array([2, 1, 0, 0, 1, 0])
    """
    if not len(ids):
        return ids
    last = np.flatnonzero(np.append(ids[1:] != ids[:-1], True))
    return np.repeat(last, np.diff(last, prepend=-1)) - np.arange(len(ids))


def most_steps(ids: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """[n] for each entry the most steps of its client's, so that those of one client stay together when sorted."""
    clients, which = np.unique(ids, return_inverse=True)
    most = np.zeros(len(clients), steps.dtype)
    np.maximum.at(most, which, steps)
    return most[which]
