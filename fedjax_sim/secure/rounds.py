"""The protocol's rounds, played by all clients and the server in one process."""

import functools
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.rng import Purpose
from fedjax_sim.secure import keys, shamir
from fedjax_sim.secure.client import Client, Masks, Setting
from fedjax_sim.secure.faults import RoundAborted
from fedjax_sim.secure.graph import neighbourhoods
from fedjax_sim.secure.protocol import Protocol
from fedjax_sim.secure.server import Mask, Server, masked

ID = 4
"""Bytes of a client's number."""


class Costs(NamedTuple):
    """What one protocol round cost.

    Attributes:
        sent, received: bytes, of all clients together.
        client, server: seconds of work, of all clients together and of the server.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> words = {k: np.arange(2) for k in range(5)}
        >>> fs.secure.sum_of(words, fs.secure.bonawitz()).costs["advertise"].sent  # two keys, a signature and an id
        660
    """

    sent: int = 0
    received: int = 0
    client: float = 0.0
    server: float = 0.0


class Agreement(NamedTuple):
    """After rounds 0 and 1.

    Attributes:
        server: with all public keys and ciphertexts.
        clients: id to client, those that shared.
        masks: id to what it masks its words with.
        uploads: [n] bool, whose words come, for the ids as they were given; but for those that others lose.
        costs: step to its costs.
        aborted: why there is no agreement, or None.
    """

    server: Server
    clients: dict[int, Client]
    masks: dict[int, Masks]
    uploads: np.ndarray
    costs: dict[str, Costs]
    aborted: RoundAborted | None = None


class Unmasked(NamedTuple):
    """After round 4.

    Attributes:
        masks: what the sum is masked with, to be taken off.
        recovered: clients that were lost and whose masks were rebuilt.
        costs: step to its costs.
        aborted: why there is no sum, or None.
    """

    masks: list[Mask]
    recovered: int
    costs: dict[str, Costs]
    aborted: RoundAborted | None = None


@functools.lru_cache(maxsize=4)
def agree(protocol: Protocol, seed: int, round: int, ids: tuple[int, ...]) -> Agreement:
    """Rounds 0 and 1: keys, shares, and who uploads. A pure function, kept for the rounds that are under way.

    Args:
        protocol: with who is lost.
        seed, round: what all keys come from.
        ids: of the cohort.
    """
    (server, clients), costs = players(protocol, seed, round, ids), {}
    there = _without(protocol, "advertise", seed, round, sorted(clients))
    try:
        said, mine = _timed(lambda: [clients[k].advertise() for k in there])
        told, its = _timed(lambda: server.advertised(said))
        size = ID + 2 * keys.PUBLIC + keys.SIGNATURE
        costs["advertise"] = Costs(size * len(said), size * sum(map(len, told.values())), mine, its)

        there = _without(protocol, "share", seed, round, there)
        sent, mine = _timed(lambda: {k: clients[k].share(told[k]) for k in there})
        letters, its = _timed(lambda: server.shared(sent))
        size = ID + 2 * shamir.SIZE + keys.TAG
        each = lambda boxes: size * sum(map(len, boxes.values()))
        costs["share"] = Costs(each(sent), each(letters), mine, its)
        masks, mine = _timed(lambda: {k: clients[k].receive(letters[k]) for k in there})
        costs["upload"] = Costs(client=mine)
    except RoundAborted as aborted:
        return Agreement(server, {}, {}, np.zeros(len(ids), bool), costs, aborted)
    left = set(_without(protocol, "upload", seed, round, there))
    uploads = np.array([k in left for k in ids], bool)
    return Agreement(server, {k: clients[k] for k in there}, masks, uploads, costs)


def unmask(protocol: Protocol, seed: int, round: int, agreement: Agreement, came: Iterable[int]) -> Unmasked:
    """Rounds 3 and 4: the survivors sign their list and open their shares.

    Args:
        protocol: with who is lost.
        seed, round: as in `agree`.
        agreement: of the same.
        came: ids of those whose words are in the sum.
    """
    survivors, costs, server = sorted(came), {}, agreement.server
    try:
        if agreement.aborted is not None:
            raise agreement.aborted
        server.enough("upload", len(survivors))
        there, clients = _without(protocol, "consistency", seed, round, survivors), agreement.clients
        signed, mine = _timed(lambda: {k: clients[k].sign(survivors) for k in there})
        server.enough("consistency", len(signed))
        costs["consistency"] = Costs(keys.SIGNATURE * len(signed), ID * len(survivors) * len(there), mine)

        there, lost = _without(protocol, "unmask", seed, round, there), set(server.lost(survivors))
        near = {k: [v for v in server.neighbours[k] if v in server.letters] for k in there}
        gone = {k: [v for v in near[k] if v in lost] for k in there}
        theirs = {k: {v: signed[v] for v in near[k] if v in signed} for k in there}
        opened, mine = _timed(lambda: {k: clients[k].unmask(survivors, gone[k], theirs[k]) for k in there})
        masks, its = _timed(lambda: server.masks(survivors, opened))
        sent = (ID + shamir.SIZE) * sum(len(o.seeds) + len(o.keys) for o in opened.values())
        heard = sum((ID + keys.SIGNATURE) * len(theirs[k]) + ID * len(gone[k]) for k in there)
        costs["unmask"] = Costs(sent, heard, mine, its)
    except RoundAborted as aborted:
        return Unmasked([], 0, costs, aborted)
    return Unmasked(masks, len(lost), costs)


def upload(masks: Masks) -> list[Mask]:
    """A client's masks as they are added to its words."""
    return [Mask(masks.own, 1), *(Mask(key, sign) for key, sign in masks.pairs.values())]


class Summed(NamedTuple):
    """A sum by the protocol, on the host.

    Attributes:
        value: [d] uint32, the survivors' sum modulo 2^bits; None where the round was aborted.
        survivors: ids of those whose words are in it.
        uploads: id to [d] uint32, what the server saw of each.
        recovered: clients that were lost after they had shared, and whose masks were rebuilt.
        costs: step to its `Costs`.
        aborted: a `RoundAborted`, or None.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> words = {k: np.array([k, 10 * k]) for k in (2, 5, 9, 11)}
        >>> made = fs.secure.sum_of(words, fs.secure.bonawitz())
        >>> made.value.tolist(), made.survivors, made.aborted
        ([27, 270], [2, 5, 9, 11], None)
    """

    value: np.ndarray | None
    survivors: list[int]
    uploads: dict[int, np.ndarray]
    recovered: int
    costs: dict[str, Costs]
    aborted: RoundAborted | None


def sum_of(
    words: Mapping[int, np.ndarray], protocol: Protocol, *, seed: int = 0, round: int = 0, bits: int = 32
) -> Summed:
    """The sum of clients' whole numbers modulo 2^bits by all rounds of the protocol, with NumPy, to look at.

    Args:
        words: client id to [d] integers.
        protocol: `fs.secure.bonawitz` or `fs.secure.secagg_plus`, with its dropouts.
        seed, round: what keys and dropouts come from.
        bits: of the modulus, from 2 to 32.

    Raises:
        ArgumentError: a cohort that the protocol cannot sum.
        Refused: a client's, where the protocol is not kept.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> lost = fs.secure.dropouts(upload=lambda round, ids: ids == 9)
        >>> words = {k: np.array([k, 10 * k]) for k in (2, 5, 9, 11)}
        >>> made = fs.secure.sum_of(words, fs.secure.bonawitz(threshold=3, dropouts=lost))
        >>> made.value.tolist(), made.recovered
        ([18, 180], 1)
    """
    ids = tuple(int(k) for k in words)
    protocol.check(len(ids))
    made = agree(protocol, seed, round, ids)
    survivors = [k for k, there in zip(ids, made.uploads, strict=True) if there]
    uploads = {k: masked(np.asarray(words[k]), upload(made.masks[k]), 0, bits) for k in survivors}
    said = unmask(protocol, seed, round, made, survivors)
    costs = {**made.costs, **said.costs}
    if said.aborted is not None:
        return Summed(None, survivors, uploads, said.recovered, costs, said.aborted)
    total = np.asarray(np.sum(np.stack(list(uploads.values())), axis=0, dtype=np.uint32))
    return Summed(masked(total, said.masks, 0, bits), survivors, uploads, said.recovered, costs, None)


class Players(NamedTuple):
    """Of one round."""

    server: Server
    clients: dict[int, Client]


def players(protocol: Protocol, seed: int, round: int, ids: Sequence[int]) -> Players:
    """All clients of a cohort and their server, before round 0."""
    members = sorted(ids)
    points = {k: i + 1 for i, k in enumerate(members)}
    near = neighbourhoods(members, protocol.neighbours, seed, round)
    signing = {k: _signing(seed, k) for k in members}
    verify = {k: key.public_key() for k, key in signing.items()}
    n = len(members)
    t = protocol.needed(n)
    itself: Any = (lambda k: {k}) if protocol.neighbours is None else (lambda k: set())
    clients = {
        k: Client(
            k,
            keys.derived(struct.pack("<I", seed), "client", Purpose.SECURE, round, k),
            signing[k],
            Setting(round, points, frozenset(near[k]), frozenset(near[k]) | itself(k), t, verify),
        )
        for k in members
    }
    return Players(Server(round, points, near, t, protocol.least(n)), clients)


@functools.lru_cache(maxsize=4096)
def _signing(seed: int, id: int) -> Any:
    """A client's signing key, the same in all rounds."""
    return keys.signing_key(keys.derived(struct.pack("<I", seed), "signing", Purpose.SECURE, id))


def _without(protocol: Protocol, step: str, seed: int, round: int, there: list[int]) -> list[int]:
    """Those that are still there after a step."""
    lost = protocol.dropouts.lost(step, seed, round, np.asarray(there, np.int64))
    return [k for k, gone in zip(there, lost, strict=True) if not gone]


def _timed(work: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    made = work()
    return made, time.perf_counter() - start
