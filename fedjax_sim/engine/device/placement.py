"""Devices: the mesh, and where arrays live. The only module that names devices."""

import contextlib
import contextvars
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import FedSimError, check, check_count, is_traced
from fedjax_sim.core.pytree import pytree

Device = Any
"""A JAX device."""

AXIS = "clients"
SHARDED = PartitionSpec(AXIS)
REPLICATED = PartitionSpec()

_COLLECTIVE_TIMEOUTS = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=3600",
    "--xla_cpu_collective_call_terminate_timeout_seconds=360000",
)


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cpu_cores(n: int | None = None) -> int:
    """One JAX device a core, so that a CPU trains as many clients at a time as it has cores.

    Call it before JAX computes anything. It also raises XLA's time-outs for CPU collectives: by default the process is
    ended when one device waits 60 seconds for a busier one. Platforms other than the CPU are not touched.

    Args:
        n: devices; None for the cores that this process may use.

    Returns:
        The number of CPU devices.

    Raises:
        FedSimError: JAX has started already, with another number of CPU devices.

    Example:
        >>> import fedjax_sim as fs
        >>> count = fs.use_cpu_cores()  # doctest: +SKIP
    """
    n = cpu_cores() if n is None else n
    check_count("n", n)
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [flag for flag in _COLLECTIVE_TIMEOUTS if flag.split("=")[0] not in flags]
    try:
        jax.config.update("jax_num_cpu_devices", n)
    except RuntimeError as error:
        if len(jax.local_devices(backend="cpu")) == n:
            return n
        raise FedSimError(
            f"n={n}: JAX has started already with {len(jax.local_devices(backend='cpu'))} CPU device(s). Call "
            "fs.use_cpu_cores() first, before any JAX computation."
        ) from error
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    return n


_default: contextvars.ContextVar[Sequence[Device] | None] = contextvars.ContextVar("devices", default=None)


@contextlib.contextmanager
def default_devices(devices: Sequence[Device]) -> Iterator[None]:
    """What `client_mesh` takes where it is told nothing."""
    token = _default.set(devices)
    try:
        yield
    finally:
        _default.reset(token)


def client_mesh(devices: Sequence[Device] | None = None, of_all: bool = False, depth: int = 0) -> Mesh:
    """A mesh of one axis, `clients`, over the given devices, by default this process's, or `of_all` processes.

    A warning names the line that is `depth` calls above the caller's own caller.
    """
    devices = _default.get() if devices is None else devices
    if devices is None:
        devices = jax.devices() if of_all else jax.local_devices()
        _warn_of_idle_cores(jax.local_devices(), depth)
    check(len(devices) > 0, "devices", devices, "must hold at least one device.")
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


_warned = False


def _warn_of_idle_cores(devices: Sequence[Device], depth: int) -> None:
    global _warned
    idle = devices[0].platform == "cpu" and len(devices) == 1 and cpu_cores() > 1
    if idle and not _warned:
        _warned = True
        warnings.warn(
            f"training on one CPU device, with {cpu_cores()} cores at hand: call fs.use_cpu_cores() before "
            "JAX starts, for a device a core.",
            stacklevel=4 + depth,
        )


def everywhere(mesh: Mesh) -> NamedSharding:
    """The placement of what every device holds."""
    return NamedSharding(mesh, REPLICATED)


def dealt(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The placement of what is dealt over the devices in blocks, by its leading axis or another one."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Host arrays where the shardings, a prefix of the tree, say. Each process gives the whole and keeps its part."""

    def place(leaf: Any, sharding: NamedSharding) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    def place_all(sharding: NamedSharding, part: Any) -> Any:
        if sharding.is_fully_addressable:
            return jax.device_put(part, sharding)
        return jax.tree.map(lambda leaf: place(leaf, sharding), part)

    return jax.tree.map(place_all, shardings, tree)


def local(tree: PyTree) -> PyTree:
    """What every device of all processes holds, as arrays of this process alone."""

    def mine(leaf: Any) -> Any:
        shared = isinstance(leaf, jax.Array) and not is_traced(leaf) and not leaf.is_fully_addressable
        return leaf.addressable_data(0) if shared else leaf

    return jax.tree.map(mine, tree)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """The tree on every device. CPU devices share one copy of a host array: the caller's own, where XLA can use it.

    Raises:
        ArgumentError: whole numbers past 32 bits, which JAX would wrap in silence.
    """
    check_32_bits(tree)
    shared = mesh.devices.flat[0].platform == "cpu"
    place = lambda leaf: _one_copy(mesh, leaf) if shared and isinstance(leaf, np.ndarray) else leaf
    placed = jax.tree.map(place, tree)
    if not mesh.is_multi_process:
        return jax.device_put(placed, everywhere(mesh))
    there = lambda leaf: isinstance(leaf, jax.Array) and leaf.sharding == everywhere(mesh)
    return jax.tree.map(lambda leaf: leaf if there(leaf) else put(leaf, everywhere(mesh)), placed)


@pytree
class Dealt:
    """Examples of which each device holds those of its own clients: [D x P, ...], in blocks of P."""

    arrays: PyTree


def deal_blocks(mesh: Mesh, blocks: list[PyTree]) -> Dealt:
    """One pytree of host arrays for each of this process's devices, all of the same shapes, each on its device."""

    def place(*leaves: np.ndarray) -> jax.Array:
        placed = [jax.device_put(leaf, device) for leaf, device in zip(leaves, mesh.local_devices, strict=True)]
        shape = (mesh.size * len(leaves[0]), *leaves[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, dealt(mesh), placed)

    return Dealt(jax.tree.map(place, *blocks))


def check_32_bits(tree: PyTree) -> None:
    """Raise for whole numbers past 32 bits."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        wide = isinstance(leaf, np.ndarray) and leaf.dtype in (np.int64, np.uint64) and leaf.size
        if wide and not jax.config.read("jax_enable_x64"):
            low, high = int(leaf.min()), int(leaf.max())
            check(
                low >= -(2**31) and high < (2**31 if leaf.dtype == np.int64 else 2**32),
                f"arrays{jax.tree_util.keystr(path)}",
                (low, high),
                "does not fit 32 bits, which is what devices compute with.",
            )


_ALIGNMENT = 64
"""Bytes: XLA uses a host buffer in place where it starts at a multiple of that."""


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A host array that a CPU device uses in place."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _one_copy(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """A host array on all CPU devices, which share its memory; copied once if it is not aligned or needs a cast."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    usable = array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0 and array.dtype == dtype
    if not usable:
        made = aligned_empty(array.shape, dtype)
        np.copyto(made, array, casting="unsafe")
        array = made
    placed = [jax.device_put(array, device) for device in mesh.local_devices]
    return jax.make_array_from_single_device_arrays(array.shape, everywhere(mesh), placed)


def shard(mesh: Mesh, tree: PyTree) -> PyTree:
    """The tree's leading axis dealt over the devices, in blocks."""
    return put(tree, dealt(mesh))
