"""Where the examples live: on the devices, or in files (or nowhere), from which each round's are streamed.

A streamed round has a plan whose `order` counts rows within what its device's clients hold together
(`Planner(streamed=True)`). A background thread reads those examples, and no others, into a block of a fixed number of
rows a device, while the devices compute the rounds before it. A round computes the same numbers either way, bit by bit.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, ClientError, check
from fedjax_sim.core.pytree import pytree
from fedjax_sim.core.types import RoundPlan
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.store.data_checks import Columns

Residency = Literal["auto", "device", "stream"]
"""Where the examples live."""

SHARE = 0.5
"""Of a device's memory, on a CPU of the host's: larger data are streamed."""


def streams(residency: Residency, data: FederatedData, device: placement.Device) -> bool:
    """Whether the data are streamed.

    Raises:
        ArgumentError: an unknown residency; `"device"` for data without arrays, or of more rows than 32 bits count.
    """
    check(residency in ("auto", "device", "stream"), "residency", residency, 'must be "auto", "device" or "stream".')
    leaves = jax.tree.leaves(data.arrays)
    rows, size = leaves[0].shape[0], sum(leaf.dtype.itemsize * int(np.prod(leaf.shape)) for leaf in leaves)
    if residency == "device":
        stored = not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        check(stored, "residency", residency, 'procedural data have no arrays to keep on a device: use "stream".')
        check(rows < 2**31, "residency", residency, f'{rows} rows are more than 32 bits count: use "stream".')
    if residency == "auto":
        return not data.resident or rows >= 2**31 or size > SHARE * memory_of(device)
    return residency == "stream"


def memory_of(device: placement.Device) -> int:
    """Bytes that a device may use; of a CPU, the host's, or what its control group allows."""
    stats = None if device.platform == "cpu" else device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if os.path.exists(path) else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits, default=2**34)


@pytree
class Constants:
    """What rounds read and leave as it is.

    Attributes:
        examples: pytree of [N, ...], everybody's, on every device; or `Dealt`, those of some rounds.
        frozen: a task's frozen constants on every device, or None.
    """

    examples: PyTree
    frozen: PyTree = None


def resident(mesh: jax.sharding.Mesh, tree: PyTree) -> Any:
    """Arrays on every device; files' are read whole."""
    whole = lambda leaf: leaf if isinstance(leaf, np.ndarray | jax.Array) else np.asarray(leaf)
    return placement.replicate(mesh, jax.tree.map(whole, tree))


class Reader:
    """Reads rounds' examples in the background, in the order in which they are asked for.

    Args:
        data: the federation.
        mesh: the devices; of those of several processes, each reads for its own.
        check: a task's, of the examples that are read.
    """

    def __init__(self, data: FederatedData, mesh: jax.sharding.Mesh, check: Callable[[Columns], None] | None = None):
        self.data, self.mesh, self.check = data, mesh, check
        here = jax.process_index()
        self._mine = [d for d, device in enumerate(mesh.devices.flat) if device.process_index == here]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fedjax_sim-reader")
        self._rows: dict[Any, int] = {}

    def ask(self, plans: list[RoundPlan], slots: int, rows: int, key: object = None) -> "Future[placement.Dealt]":
        """Start to read for a block of rounds; their plans' `order` is moved, in place, to where each round begins.

        Args:
            plans: of the rounds, made by `Planner(streamed=True)`.
            slots: rounds that the block has room for.
            rows: examples a device and round that suffice as a rule, `Planner.examples`.
            key: what blocks of the same shapes have in common.

        Raises:
            ArgumentError: a block of more rows than 32 bits count.
        """
        wanted = [self._wanted(plan) for plan in plans]
        most = max(int(counts.sum()) for devices in wanted for _, counts in devices)
        room = self._rows.setdefault(key, rows)
        while room < most:  # cohorts of cut clients, who hold more than they train on
            room *= 2
        self._rows[key] = room
        check(slots * room < 2**31, "rounds_per_dispatch", slots, f"blocks of {room} rows each pass 32 bits; lower it.")
        for i, plan in enumerate(plans):
            plan.order[...] += i * room
        rounds = [int(plan.round[0]) for plan in plans]
        return self._thread.submit(self._read, wanted, rounds, slots, room)

    def _wanted(self, plan: RoundPlan) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each device's clients, in the order of its lanes, and their examples."""
        lanes = plan.lanes
        return [(ids[on], size[on]) for ids, size, on in zip(lanes.client_id, lanes.size, lanes.steps > 0, strict=True)]

    def _read(self, wanted: Any, rounds: list[int], slots: int, room: int) -> placement.Dealt:
        def empty(like: PyTree) -> np.ndarray:
            dtype = jax.dtypes.canonicalize_dtype(like.dtype)
            return placement.aligned_empty((slots * room, *like.shape[1:]), dtype)

        blocks = [jax.tree.map(empty, self.data.arrays) for _ in self._mine]
        for i, (round, devices) in enumerate(zip(rounds, wanted, strict=True)):
            for block, (clients, counts) in zip(blocks, [devices[d] for d in self._mine], strict=True):
                if len(clients):
                    part = slice(i * room, i * room + int(counts.sum()))
                    examples = self._examples(round, clients, counts)
                    jax.tree.map(lambda b, e, part=part: np.copyto(b[part], e, casting="unsafe"), block, examples)
        return placement.deal_blocks(self.mesh, blocks)

    def _checked(self, clients: np.ndarray, counts: np.ndarray) -> Any:
        examples = self.data.read(clients, counts)
        placement.check_32_bits(examples)
        if self.check is not None:
            self.check(Columns(examples))
        return examples

    def _examples(self, round: int, clients: np.ndarray, counts: np.ndarray) -> Any:
        try:
            return self._checked(clients, counts)
        except Exception as error:
            for client, count in zip(clients, counts, strict=True):
                try:
                    self._checked(np.array([client]), np.array([count]))
                except Exception as its:
                    raise ClientError(
                        f"client {self.data.name(int(client))} (id {client}, {count} examples): its data could not be "
                        f"read for round {round}: {type(its).__name__}: {its}"
                    ) from error
            raise ArgumentError(
                f"the data of round {round}'s clients {clients[:10].tolist()} could not be read together, though one "
                f"by one: {type(error).__name__}: {error}"
            ) from error
