"""What the examples are held against before anything is computed with them, and looked at when a loss is not finite."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.client import Task
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import FedSimError, is_traced
from fedjax_sim.data.federated import FederatedData

_CLIENTS, _EXAMPLES = 8, 8
"""Of streamed data, how much is looked at when a simulation is built."""


class Columns(Mapping[str, Any]):
    """The columns of some examples by name, taken out of the data one by one as they are asked for.

    Args:
        arrays: pytree of [N, ...]; a dict, or one array, which clients see as "x".
        rows: [n] which of the N; None for all.
    """

    def __init__(self, arrays: PyTree, rows: PyTree = None):
        self.arrays, self.rows = arrays if isinstance(arrays, dict) else {"x": arrays}, rows

    def __getitem__(self, name: str) -> Any:
        column = self.arrays[name]
        if is_traced(column) or self.rows is None:
            return column
        return jax.tree.map(lambda leaf: np.asarray(leaf)[self.rows], column)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def check_all(task: Task, data: FederatedData, streamed: bool) -> None:
    """`task.check` of what clients hold; of streamed data a few examples of a few clients."""
    if task.check is None:
        return
    if not streamed:
        held = data.index if data.index is not None else slice(int(data.offsets[-1]))
        task.check(Columns(data.arrays, held))
        return
    clients = np.unique(np.linspace(0, data.num_clients - 1, _CLIENTS).astype(np.int64))
    try:
        examples = data.read(clients, np.minimum(data.sizes_of(clients), _EXAMPLES))
    except Exception:
        return  # a round that needs them says what cannot be read, and of whom
    task.check(Columns(examples))


def said_of(task: Task, data: FederatedData, client: int) -> str:
    """What is wrong with a client's examples, in words; nothing where they seem right or cannot be read."""
    try:
        examples = data.client(client)
    except Exception:
        return ""
    for path, leaf in jax.tree_util.tree_leaves_with_path(examples):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite = np.isfinite(leaf.astype(np.float32) if leaf.dtype.kind == "V" else leaf)
            if not finite.all():
                name = jax.tree_util.keystr(path, simple=True, separator="/") or "x"
                rows = int((~finite.reshape(len(finite), -1).all(1)).sum())
                return f"column {name!r} holds NaN or infinity in {rows} of its {len(finite)} examples"
    try:
        if task.check is not None:
            task.check(Columns(examples))
    except FedSimError as error:
        return str(error).rstrip(".")
    return ""
