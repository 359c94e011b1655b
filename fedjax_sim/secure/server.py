"""The server of the protocol: it passes on, counts, rebuilds what it may, and takes the masks off."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fedjax_sim.core.errors import FedSimError
from fedjax_sim.secure import keys, shamir
from fedjax_sim.secure.client import Advertised, Opened, pair_key
from fedjax_sim.secure.faults import RoundAborted


class Mask(NamedTuple):
    """A key stream in the sum of what came, to be taken off with this sign."""

    key: bytes
    sign: int


class Server:
    """The server in one round.

    Args:
        round: its number.
        points: client id to the point of its shares.
        neighbours: client id to its neighbours.
        threshold: t, of a client's holders.
        least: clients that must be left in every protocol round: t of the complete graph.
    """

    def __init__(
        self,
        round: int,
        points: Mapping[int, int],
        neighbours: Mapping[int, list[int]],
        threshold: int,
        least: int,
    ):
        self.round, self.points, self.neighbours = round, points, neighbours
        self.threshold, self.least = threshold, least
        self.keys: dict[int, Advertised] = {}
        self.letters: dict[int, dict[int, bytes]] = {}

    def advertised(self, said: Iterable[Advertised]) -> dict[int, list[Advertised]]:
        """Round 0: for each client that advertised, its neighbours' keys."""
        self.keys = {one.id: one for one in said}
        self.enough("advertise", len(self.keys))
        return {k: [self.keys[v] for v in self.neighbours[k] if v in self.keys] for k in self.keys}

    def shared(self, sent: Mapping[int, dict[int, bytes]]) -> dict[int, dict[int, bytes]]:
        """Round 1: for each client that shared, the ciphertexts for it, by sender."""
        self.letters = dict(sent)
        self.enough("share", len(sent))
        return {k: {v: sent[v][k] for v in self.neighbours[k] if v in sent and k in sent[v]} for k in sent}

    def enough(self, step: str, count: int) -> None:
        """Raise `RoundAborted` where too few are left."""
        if count < self.least:
            raise RoundAborted(step, count, self.least)

    def lost(self, survivors: Iterable[int]) -> list[int]:
        """Those that shared and whose words did not come: pairwise masks with them are in the sum."""
        return sorted(self.letters.keys() - set(survivors))

    def masks(self, survivors: Iterable[int], opened: Mapping[int, Opened]) -> list[Mask]:
        """Round 4: what the sum of the survivors' words is masked with, from t shares of each secret.

        Args:
            survivors: those whose words came.
            opened: what clients said last.

        Raises:
            RoundAborted: fewer than t shares of a seed, or of a key that is needed.
        """
        came = sorted(survivors)
        self.enough("unmask", len(opened))
        seeds = {v: {self.points[u]: said.seeds[v] for u, said in opened.items() if v in said.seeds} for v in came}
        found, there = [Mask(self._joined(seeds[v]), -1) for v in came], set(came)
        for v in self.lost(came):
            left = [u for u in self.neighbours[v] if u in there]
            if left:
                found += self._recovered(v, left, opened)
        return found

    def _recovered(self, v: int, left: list[int], opened: Mapping[int, Opened]) -> list[Mask]:
        """The masks of a lost client that its neighbours' words hold."""
        secret = keys.exchange_key(self._joined({self.points[u]: o.keys[v] for u, o in opened.items() if v in o.keys}))
        if keys.public_bytes(secret) != self.keys[v].mask:
            raise FedSimError(f"the shares of client {v}'s key give another key than it advertised: a client lied.")
        sign = lambda u: -1 if v > u else 1  # u added the mask of those above it
        return [Mask(pair_key(secret, self.keys[u].mask, self.round), sign(u)) for u in left]

    def _joined(self, shares: Mapping[int, int]) -> bytes:
        if len(shares) < self.threshold:
            raise RoundAborted("unmask", len(shares), self.threshold, "shares of a secret came")
        return shamir.join(shares, self.threshold).to_bytes(shamir.SIZE, "little")[: keys.SECRET]


def masked(leaf: np.ndarray, masks: Iterable[Mask], stream: int, bits: int) -> np.ndarray:
    """Words with key streams added or subtracted, modulo 2^bits: uint32 of the leaf's shape.

    Args:
        leaf: integers; a sum of words, or one client's.
        masks: the streams.
        stream: the leaf's number among those of a payload.
        bits: of the modulus.
    """
    words = np.ascontiguousarray(leaf).reshape(-1).astype(np.uint32)
    for mask in masks:
        stream_words = keys.keystream(mask.key, stream, len(words))
        if mask.sign > 0:
            words += stream_words
        else:
            words -= stream_words
    return (words & np.uint32((1 << bits) - 1)).reshape(np.shape(leaf))
