"""Populations whose examples are made when they are needed: nothing is stored but the clients' sizes."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
import numpy.typing as npt

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.data.federated import FederatedData

Generate = Callable[[np.ndarray, np.ndarray], PyTree]
"""`(client [n], example [n]) -> pytree of [n, ...]`."""


class ProceduralData(FederatedData):
    """A federation whose examples come from a function; made by `procedural`.

    Its `arrays` are shapes. It is always streamed: rounds ask for their cohort's examples and no others.

    Example:
        >>> import fedjax_sim as fs
        >>> data = fs.data.procedural(1000, sizes=2, generate=lambda client, example: {"x": 10 * client + example})
        >>> data.client(7)["x"].tolist(), data.arrays["x"].shape, data.resident
        ([70, 71], (2000,), False)
    """

    generate: Generate

    def __init__(self, arrays: PyTree, offsets: np.ndarray, generate: Generate, about: Mapping[str, str]):
        fields = {"arrays": arrays, "offsets": offsets, "index": None, "client_ids": None, "about": about}
        for name, value in {**fields, "generate": generate}.items():
            object.__setattr__(self, name, value)

    @property
    def resident(self) -> bool:
        """False: there are no arrays to put on a device."""
        return False

    def kinds(self, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The sizes that occur and how many clients have each."""
        counts = np.bincount(self.sizes if among is None else self.sizes[among])
        return np.flatnonzero(counts), counts[counts > 0]

    def read(self, clients: np.ndarray, counts: np.ndarray) -> PyTree:
        """The first `counts[i]` examples of each client, made now."""
        clients, counts = np.asarray(clients, np.int64), np.asarray(counts, np.int64)
        example = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        made = jax.tree.map(np.asarray, self.generate(np.repeat(clients, counts), example))
        expected = jax.tree.map(lambda a: ((len(example), *a.shape[1:]), a.dtype), self.arrays)
        found = jax.tree.map(lambda a: (a.shape, a.dtype), made)
        if found != expected:
            raise ArgumentError(f"generate gave {found} for {len(example)} examples: must be {expected}.")
        return made

    def client(self, client: int) -> PyTree:
        """The arrays of one client, [n, ...] each."""
        client = self._check_client(client)
        return self.read(np.array([client]), self.sizes_of([client]))


def procedural(
    num_clients: int, sizes: npt.ArrayLike, generate: Generate, about: Mapping[str, str] | None = None
) -> ProceduralData:
    """A population of which nothing is stored: a client's examples are made whenever it takes part.

    A round costs what its cohort costs, whatever the population: ten million clients hold 80 MB of sizes.

    Args:
        num_clients: K.
        sizes: examples of each client: a number for all, or [K].
        generate: `(client [n], example [n]) -> pytree of [n, ...]`: the rows of those examples (number within the
            client) of those clients, all of the cohort at once. It must depend on nothing else, or a client's data
            change from round to round. It runs in a background thread.
        about: what reports say of the data.

    Raises:
        ArgumentError: sizes that do not fit; a `generate` whose arrays have the wrong length.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> def generate(client, example):
        ...     return {"x": np.sin(client + 0.1 * example).astype(np.float32)}
        >>> data = fs.data.procedural(10_000_000, sizes=20, generate=generate)
        >>> data.num_clients, data.client(9_999_999)["x"].shape
        (10000000, (20,))
    """
    check_count("num_clients", num_clients)
    sizes = np.asarray(sizes)
    check(np.issubdtype(sizes.dtype, np.integer), "sizes.dtype", sizes.dtype, "must be whole numbers.")
    check(sizes.shape in ((), (num_clients,)), "sizes.shape", sizes.shape, f"must be () or ({num_clients},).")
    check(int(sizes.min()) >= 0, "sizes", int(sizes.min()), "must not be negative.")
    offsets = np.zeros(num_clients + 1, np.int64)
    np.cumsum(np.broadcast_to(sizes, num_clients), out=offsets[1:])
    one = jax.tree.map(np.asarray, generate(np.zeros(1, np.int64), np.zeros(1, np.int64)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(one):
        name = f"generate's value{jax.tree_util.keystr(path)}"
        check(leaf.ndim >= 1 and len(leaf) == 1, name, leaf.shape, "must be [n, ...], n the length of its arguments.")
    arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct((int(offsets[-1]), *a.shape[1:]), a.dtype), one)
    return ProceduralData(arrays, offsets, generate, {"partition": "procedural", **(about or {})})
