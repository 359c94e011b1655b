"""Concept shift: groups of clients that call the same things by different names."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.rng import Purpose
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.partition.owners import check_column

GROUPS, PERMUTATIONS = 1, 2  # streams of the seed; `federate` draws from 0


def permute_labels(
    data: FederatedData, num_groups: int, labels: str = "y", seed: int = 0, classes: Any = None
) -> FederatedData:
    """Deal clients to groups, and permute the classes of each group's labels: the same inputs, other names.

    Group 0 keeps its labels; every other group has a permutation of the classes of its own, drawn until no two are
    the same. One model cannot fit all groups, a model for each can: the setting of clustered federated learning
    (Sattler et al. 2020; IFCA, Ghosh et al. 2020, by rotations). `label_groups` says who is in which group.

    Args:
        data: the federation; its arrays are a dict. No row belongs to two clients.
        num_groups: at most the number of clients, and of permutations of the classes.
        labels: the entry that holds the classes, [N].
        seed: 32-bit seed. Federations of as many clients and the same classes, such as the two sides of a split, get
            the same groups and permutations from the same seed.
        classes: [C] all the classes; by default those in the whole entry. Give them where a test set may lack some.

    Returns:
        `FederatedData` of the same rows and clients, with a new entry of labels in the old dtype.

    Raises:
        ArgumentError: no such entry, labels outside of `classes`, too many groups, a row of two clients.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"y": np.array([0, 1, 0, 1])}, offsets=[0, 2, 4])
        >>> shifted = fs.data.permute_labels(data, num_groups=2)
        >>> groups = fs.data.label_groups(num_clients=2, num_groups=2)
        >>> [shifted.client(int(np.flatnonzero(groups == g)[0]))["y"].tolist() for g in (0, 1)]
        [[0, 1], [1, 0]]
    """
    groups = label_groups(data.num_clients, num_groups, seed)
    column = data.arrays.get(labels) if isinstance(data.arrays, Mapping) else None
    if column is None:
        raise ArgumentError(f"labels={labels!r}: the arrays have no entry of that name; pass labels=NAME.")
    column = check_column(np.asarray(column), labels, "label")
    known = np.unique(column if classes is None else np.asarray(classes))
    strange = column[~np.isin(column, known)]
    check(len(strange) == 0, "classes", known, f"lacks the label {strange[0] if len(strange) else None}; name all.")
    possible = math.factorial(min(len(known), 20))  # 20! is more than there are clients
    check(num_groups <= possible, "num_groups", num_groups, f"{len(known)} classes have {possible} permutations.")
    rows = np.arange(data.num_examples) if data.index is None else data.index
    once = len(np.unique(rows)) == len(rows)
    check(once, "data", data, "a row belongs to two clients, whose labels may come to differ.")

    permutations = {tuple(range(len(known))): None}  # a dict keeps the order
    generator = rng.generator(seed, Purpose.PARTITION, PERMUTATIONS)
    while len(permutations) < num_groups:
        permutations.setdefault(tuple(generator.permutation(len(known)).tolist()))
    table = known[np.array(list(permutations))]  # [groups, C]
    new = column.copy()
    new[rows] = table[np.repeat(groups, data.sizes), np.searchsorted(known, column[rows])]
    return dataclasses.replace(data, arrays={**data.arrays, labels: new})


def label_groups(num_clients: int, num_groups: int, seed: int = 0) -> np.ndarray:
    """The group of each client in `permute_labels`: random, and as many clients in each, but for one.

    Args:
        num_clients: K.
        num_groups: at most K.
        seed: 32-bit seed.

    Returns:
        [K] int64, 0 to num_groups - 1.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> np.bincount(fs.data.label_groups(num_clients=7, num_groups=3))
        array([3, 2, 2])
    """
    rng.check_seed(seed)
    check_count("num_clients", num_clients)
    check_count("num_groups", num_groups)
    check(num_groups <= num_clients, "num_groups", num_groups, f"there are only {num_clients} clients.")
    return rng.generator(seed, Purpose.PARTITION, GROUPS).permutation(np.arange(num_clients) % num_groups)
