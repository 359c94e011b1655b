"""Client rows: the private state that clients keep between rounds, one table a leaf.

Row k is client k's. The table's leading axis is dealt over the devices in blocks, and a client with a row trains on the
device that holds it: rows are gathered and scattered chunk by chunk, in place, and never travel. Tables that are too
large for that are kept on the host instead (`host_rows`, `waves`).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import check
from fedjax_sim.core.pytree import bits
from fedjax_sim.core.types import ClientRows
from fedjax_sim.engine.store.residency import SHARE, memory_of
from fedjax_sim.engine.store.row_file import HostRows

Rows = Literal["auto", "device", "host"]
"""Where client rows live."""


SMALL = 2**28
"""Bytes of a table on CPU devices: from there on copying it each round costs more than reading a cohort's rows."""


def place(rows: Rows, template: PyTree, num_clients: int, devices: tuple[Any, ...], shared: bool = False) -> Rows:
    """Where they live: on devices if there are none, or several processes train together.

    Raises:
        ArgumentError: an unknown place; the host's, for several processes.
    """
    check(rows in ("auto", "device", "host"), "rows", rows, 'must be "auto", "device" or "host".')
    check(not (shared and rows == "host"), "rows", rows, 'several processes keep rows on their devices: use "device".')
    if rows == "auto":
        cpu = devices[0].platform == "cpu"
        most = min(SMALL, SHARE * memory_of(devices[0])) if cpu else SHARE * memory_of(devices[0]) * len(devices)
        rows = "host" if bits(template) // 8 * num_clients > most and not shared else "device"
    return rows if has_rows(template) else "device"


def rows_per_device(num_clients: int, devices: int) -> int:
    """Rows of a device's block."""
    return -(-num_clients // devices)


def homes(num_clients: int, devices: int) -> np.ndarray:
    """[K] the device that holds each client's row."""
    return np.arange(num_clients) // rows_per_device(num_clients, devices)


def has_rows(template: PyTree) -> bool:
    """True when a client keeps anything."""
    return bool(jax.tree.leaves(template))


def make_table(template: PyTree, num_clients: int, devices: int) -> Any:
    """`num_clients` copies of one client's first row, and padding up to whole blocks."""
    count = rows_per_device(num_clients, devices) * devices
    return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (count, *jnp.shape(leaf))), template)


def trim(rows: ClientRows, num_clients: int) -> ClientRows:
    """The tables without their padding."""
    return jax.tree.map(lambda table: table[:num_clients], rows)


def pad(rows: ClientRows, num_clients: int, devices: int) -> ClientRows:
    """Trimmed tables on the host, with the padding that so many devices need."""
    missing = rows_per_device(num_clients, devices) * devices - num_clients
    return jax.tree.map(lambda table: np.pad(table, [(0, missing)] + [(0, 0)] * (table.ndim - 1)), rows)


def client_row(rows: ClientRows | HostRows, client: int) -> Any:
    """The algorithm's row of one client, on the host.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.core.types import ClientRows
        >>> from fedjax_sim.engine.store.row_table import client_row
        >>> client_row(ClientRows(client={"c": np.array([[1.0], [2.0]])}), 1)
        {'c': array([2.])}
    """
    if isinstance(rows, HostRows):
        return rows.row(client).client
    return jax.tree.map(lambda table: np.asarray(table[client]), rows.client)
