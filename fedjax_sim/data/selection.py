"""Parts of a federation: some of each client's examples, or some of the clients."""

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import check, check_count
from fedjax_sim.core.rng import Purpose
from fedjax_sim.data.federated import FederatedData


def split(data: FederatedData, test: float, by: str = "example", seed: int = 0) -> tuple[FederatedData, FederatedData]:
    """Hold out a part of every client's examples, or a part of the clients.

    By example, a client of n examples gives round(test x n) of them, drawn without replacement, to the test set,
    and both sets have the same clients. By client, round(test x K) clients move to the test set with all they hold.

    Args:
        data: the federation.
        test: fraction in [0, 1].
        by: "example", or "client" for unseen clients.
        seed: 32-bit seed. A client's draw depends on the seed and its number alone.

    Returns:
        (train, test), over the same arrays.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"x": np.arange(10)}, offsets=[0, 5, 10])
        >>> train, test = fs.data.split(data, test=0.4)
        >>> train.sizes, test.sizes
        (array([3, 3]), array([2, 2]))
    """
    rng.check_seed(seed)
    check(0 <= test <= 1, "test", test, "must be a fraction in [0, 1].")
    check(by in ("example", "client"), "by", by, 'must be "example" or "client".')
    if by == "client":
        count = round(test * data.num_clients)
        check(
            0 < count < data.num_clients,
            "test",
            test,
            f"leaves one side without any of the {data.num_clients} clients.",
        )
        order = rng.generator(seed, Purpose.SPLIT).permutation(data.num_clients)
        return _take_clients(data, np.sort(order[count:])), _take_clients(data, np.sort(order[:count]))
    sizes = data.sizes
    held_out = _ranks(data, seed, Purpose.SPLIT) < np.repeat(np.rint(test * sizes).astype(np.int64), sizes)
    return _take_rows(data, ~held_out), _take_rows(data, held_out)


def limit(data: FederatedData, minimum: int = 0, maximum: int | None = None, seed: int = 0) -> FederatedData:
    """Leave out clients of few examples, and keep at most so many examples of each of the others.

    Args:
        data: the federation.
        minimum: clients of fewer examples are left out.
        maximum: of a client with more, so many are drawn, without replacement, and stay in their order.
        seed: 32-bit seed. A client's draw depends on the seed and its number alone.

    Returns:
        `FederatedData` over the same arrays.

    Raises:
        ArgumentError: no client is left; a maximum below the minimum.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"x": np.arange(10)}, offsets=[0, 1, 4, 10])
        >>> fs.data.limit(data, minimum=2, maximum=4).sizes
        array([3, 4])
    """
    rng.check_seed(seed)
    check_count("minimum", minimum, minimum=0)
    if maximum is not None:
        check_count("maximum", maximum)
        check(maximum >= minimum, "maximum", maximum, f"must not be below minimum={minimum}.")
        data = _take_rows(data, _ranks(data, seed, Purpose.LIMIT) < maximum)
    enough = np.flatnonzero(data.sizes >= minimum)
    check(len(enough) > 0, "minimum", minimum, f"no client has so many examples; the largest has {data.sizes.max()}.")
    return data if len(enough) == data.num_clients else _take_clients(data, enough)


def _ranks(data: FederatedData, seed: int, purpose: Purpose) -> np.ndarray:
    """[n] each example's place in a random order of its client's examples, drawn from the client's number alone."""
    owner = np.repeat(np.arange(data.num_clients), data.sizes)
    position = np.arange(data.num_examples) - np.repeat(data.offsets[:-1], data.sizes)
    draw = rng.hash32(seed, purpose, 0, owner, position)
    rank = np.empty(data.num_examples, np.int64)
    rank[np.lexsort((position, draw, owner))] = position
    return rank


def _take_rows(data: FederatedData, keep: np.ndarray) -> FederatedData:
    owner = np.repeat(np.arange(data.num_clients), data.sizes)
    sizes = np.bincount(owner[keep], minlength=data.num_clients)
    index = np.flatnonzero(keep) if data.index is None else data.index[keep]
    return FederatedData(data.arrays, np.concatenate([[0], np.cumsum(sizes)]), index, data.client_ids, data.about)


def _take_clients(data: FederatedData, clients: np.ndarray) -> FederatedData:
    index = np.concatenate([data.rows(int(k)) for k in clients])
    offsets = np.concatenate([[0], np.cumsum(data.sizes[clients])])
    names = np.asarray([data.name(int(k)) for k in clients])
    return FederatedData(data.arrays, offsets, index, names, data.about)
