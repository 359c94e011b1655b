"""Several processes, on one host or many, that run the same program over all their devices together.

Every process samples, plans and checks the same rounds; its devices train their own clients. What only one of them may
do, such as writing a run's folder, is done by the first, and what only one of them can know is told to the others.
"""

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import (
    ArgumentError,
    FedSimError,
    NonFiniteUpdateError,
    RefusedRoundError,
    RunInterrupted,
    check_count,
)

ALIKE = (NonFiniteUpdateError, RefusedRoundError, RunInterrupted)
"""Errors that all processes meet in the same round."""

HEARTBEAT = 10
"""Seconds without a sign of life after which a process counts as dead, and the others end."""


def use_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> int:
    """Join the processes that run this program together; simulations then train on the devices of all of them.

    Call it in each process, before JAX computes anything. Without arguments JAX looks for a cluster that it knows
    (SLURM, a TPU pod slice, Open MPI, Kubernetes). All processes must run the same program on the same data:
    `fs.Simulation` and its methods wait for one another. The first process alone writes a run's folder and calls a
    run's callbacks. A process that dies ends the others within 30 seconds; the run goes on from its folder
    afterwards, also with another number of processes.

    Args:
        coordinator: "host:port" of the first process, where the others reach it.
        num_processes: how many there are.
        process_id: this one's number, from 0 on.

    Returns:
        This process's number; 0 where nothing was given and no cluster is known: the process stays alone.

    Raises:
        ArgumentError: some of the arguments without the others.
        FedSimError: JAX has started already, or the processes did not find each other.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.use_processes("10.0.0.1:7777", num_processes=4, process_id=2)  # doctest: +SKIP
        2
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ArgumentError(f"{', '.join(missing)}: missing; give coordinator, num_processes and process_id together.")
    if not missing:
        check_count("num_processes", num_processes)
        check_count("process_id", process_id, minimum=0)
        if process_id >= num_processes:  # type: ignore[operator]
            raise ArgumentError(f"process_id={process_id}: there are {num_processes} processes, counted from 0.")
        if ":" not in coordinator:  # type: ignore[operator]
            raise ArgumentError(f"coordinator={coordinator!r}: must be host:port.")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
            cluster_detection_method=None if missing else "deactivate",
        )
    except ValueError as error:  # no cluster
        if missing:
            return 0
        raise ArgumentError(f"coordinator={coordinator!r}: {error}") from error
    except RuntimeError as error:
        raise FedSimError(
            f"the processes could not be joined: {error}. Call fs.use_processes() first, once, and in every process."
        ) from error
    atexit.register(lambda: leave(getattr(sys, "last_value", None)))  # before JAX's own, which waits for the others
    return jax.process_index()


def leave(error: BaseException | None, status: int = 1) -> None:
    """End this process after an error of its own, without the others, so that they end too instead of waiting for it.

    Nothing happens without an error, in the only process, or after one that all processes have alike.
    """
    if error is None or jax.process_count() == 1 or isinstance(error, ALIKE):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def started() -> bool:
    """Whether JAX has computed something, so that it can no longer join others."""
    count: int = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_num_cpu_devices", count + 1)  # which JAX refuses once it has started
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return True
    return False


def first() -> bool:
    """Whether this is the first process, or the only one."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Until all processes are here."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def any_of(flag: bool) -> bool:
    """Whether any process says so."""
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def told(value: int) -> int:
    """The first process's number, in all of them."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def gathered(tree: PyTree) -> Any:
    """Arrays that are dealt over the processes, whole and on the host, in the first of them; in the others nothing.

    A leaf at a time, in blocks of about 64 MB: a table of rows need not fit a device.
    """
    from jax.experimental import multihost_utils

    def whole(leaf: jax.Array) -> np.ndarray | None:
        rows = max(1, 2**26 // max(1, leaf.nbytes // max(1, len(leaf))))
        out = np.empty(leaf.shape, leaf.dtype) if first() else None
        for begin in range(0, len(leaf), rows):
            part = multihost_utils.process_allgather(_slice(leaf, begin, min(rows, len(leaf) - begin)), tiled=True)
            if out is not None:
                out[begin : begin + len(part)] = part
        return out

    return jax.tree.map(whole, tree)


def _slice(leaf: jax.Array, begin: int, count: int) -> jax.Array:
    cut: Callable[..., jax.Array] = jax.jit(jax.lax.dynamic_slice_in_dim, static_argnums=(2,))
    return cut(leaf, begin, count)
