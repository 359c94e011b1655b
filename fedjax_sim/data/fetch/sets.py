"""What `fs.data.load` gives: a central set, or one that is federated by nature."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data.federated import FederatedData


class CentralData(NamedTuple):
    """One central data set, to be federated.

    Attributes:
        train: dict of arrays, [N, ...] each.
        test: dict of arrays, [M, ...] each.
        name: its name.
        about: title, licence, source, client, partition.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> digits.name, digits.test["y"].shape, digits.about["partition"]
        ('digits', (360,), 'none')
    """

    train: dict[str, Any]
    test: dict[str, np.ndarray]
    name: str
    about: Mapping[str, str] = {}


class FederatedSet(NamedTuple):
    """A set whose clients are real, or drawn with it.

    Attributes:
        train: the clients' training examples.
        test: their test examples, of the same clients in the same order unless the set says otherwise.
        name: its name.
        about: title, licence, source, client, partition.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.load("synthetic", alpha=1, beta=1).train.num_clients
        30
    """

    train: FederatedData
    test: FederatedData
    name: str
    about: Mapping[str, str] = {}
