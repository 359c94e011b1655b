"""Rows whose clients are named by a column: sorted by client, in the order they have, by an index alone."""

from collections.abc import Mapping

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData


def group(
    arrays: Mapping[str, np.ndarray], clients: np.ndarray, where: str, about: dict[str, str] | None = None
) -> FederatedData:
    """A federation of the rows that have the same client; clients are sorted, a client's rows keep their order.

    Args:
        arrays: name to [N, ...].
        clients: [N] whole numbers, or objects that are `bytes` in UTF-8 or `str`.
        where: the file and its column, for errors.
        about: where the data come from.

    Raises:
        ArgumentError: no rows, clients of another kind or length, a client without a name, no column.

    Example:
        >>> import numpy as np
        >>> data = group({"x": np.array([1, 2, 3])}, np.array([7, 5, 7]), "here")
        >>> list(data.client_ids), data.client(1)["x"]
        ([np.str_('5'), np.str_('7')], array([1, 3]))
    """
    if not arrays:
        raise ArgumentError(f"{where}: there is no column besides the client's.")
    if not len(clients):
        raise ArgumentError(f"{where}: there are no rows.")
    for name, array in arrays.items():
        if len(array) != len(clients):
            raise ArgumentError(f"{where}: {name!r} has {len(array)} rows, but the clients' column {len(clients)}.")
    if clients.ndim != 1 or clients.dtype.kind not in "iuO":
        raise ArgumentError(
            f"{where}: a client must be a text or a whole number, but is of dtype {clients.dtype} and shape "
            f"{clients.shape[1:]}."
        )
    if clients.dtype.kind == "O":
        texts = [text_of(value, where) for value in clients]
        if "" in texts:
            raise ArgumentError(f"{where}, row {texts.index('')}: there is no client; name it, or take the row out.")
        clients = np.array(texts)
    ids, codes = np.unique(clients, return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(ids)))])
    index = None if np.all(codes[1:] >= codes[:-1]) else np.argsort(codes, kind="stable")
    return FederatedData(arrays, offsets, index, ids.astype(str), about or {})


def text_of(value: object, where: str) -> str:
    """A client's id as text.

    Example:
        >>> text_of(b"anne", "here")
        'anne'
    """
    try:
        if isinstance(value, bytes):
            value = value.decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{where}: client {value!r} is not UTF-8 ({error}).") from error
    if not isinstance(value, str) or "\0" in value:
        raise ArgumentError(f"{where}: client {value!r} must be a text without zero bytes.")
    return value
