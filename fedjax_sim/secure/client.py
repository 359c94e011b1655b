"""A client of the protocol: what it holds, what it says in each round, and what it refuses to say."""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.secure import keys, shamir
from fedjax_sim.secure.faults import Refused, RoundAborted


class Setting(NamedTuple):
    """What a client knows before a round: all of it public.

    Attributes:
        round: its number; part of every key and signature, so that no message is of use in another round.
        points: client id to the point at which it holds shares.
        neighbours: ids of those it shares masks with.
        holders: ids of those who get a share of its secrets: its neighbours, and itself in the complete graph.
        threshold: t, of the holders.
        verify: client id to its Ed25519 public key, which a registry vouches for.
    """

    round: int
    points: Mapping[int, int]
    neighbours: frozenset[int]
    holders: frozenset[int]
    threshold: int
    verify: Mapping[int, Any]


class Advertised(NamedTuple):
    """A client's public keys of a round: for ciphertexts, for masks, and its signature of both."""

    id: int
    cipher: bytes
    mask: bytes
    signature: bytes


class Masks(NamedTuple):
    """What a client masks its words with: its own seed, and a key with each neighbour, to be added or subtracted."""

    own: bytes
    pairs: dict[int, tuple[bytes, int]]


class Opened(NamedTuple):
    """A client's last message: for each neighbour a share of its seed, or one of its mask key."""

    seeds: dict[int, int]
    keys: dict[int, int]


class Client:
    """One client in one round.

    Args:
        id: its number.
        secret: 32 bytes of its own for this round; all its keys, seeds and coefficients come from it.
        signing: its Ed25519 private key.
        setting: what is public.
    """

    def __init__(self, id: int, secret: bytes, signing: Any, setting: Setting):
        self.id, self.setting = id, setting
        self._secret, self._signing = secret, signing
        self._cipher = keys.exchange_key(keys.derived(secret, "cipher"))
        self._mask_secret = keys.derived(secret, "mask")
        self._mask = keys.exchange_key(self._mask_secret)
        self._seed = keys.derived(secret, "seed")
        self._heard: dict[int, Advertised] = {}
        self._held: dict[int, tuple[int, int]] = {}
        self._channels: dict[int, bytes] = {}
        self._survivors: list[int] | None = None

    def advertise(self) -> Advertised:
        """Round 0: its public keys, signed."""
        cipher, mask = keys.public_bytes(self._cipher), keys.public_bytes(self._mask)
        signature = self._signing.sign(advertisement(self.setting.round, self.id, cipher, mask))
        return Advertised(self.id, cipher, mask, signature)

    def share(self, advertised: Iterable[Advertised]) -> dict[int, bytes]:
        """Round 1: shares of its mask key and its seed, a ciphertext for each neighbour that advertised.

        Raises:
            Refused: keys that are not signed by who they are said to be of, or are twice in the list, or are of no
                neighbour.
            RoundAborted: fewer holders than the threshold.
        """
        said = list(advertised)
        seen = {keys.public_bytes(self._cipher), keys.public_bytes(self._mask)}
        for one in said:
            self._check_keys(one, seen)
            self._heard[one.id] = one
        holders = [k for k in sorted(self.setting.holders) if k in self._heard or k == self.id]
        self._enough("share", len(holders), "holders of a client's shares are left")
        points = [self.setting.points[k] for k in holders]
        made = zip(
            self._shares("mask", self._mask_secret, points), self._shares("seed", self._seed, points), strict=True
        )
        sent = {}
        for k, (key, seed) in zip(holders, made, strict=True):
            if k == self.id:
                self._held[k] = key, seed
                continue
            plain = key.to_bytes(shamir.SIZE, "little") + seed.to_bytes(shamir.SIZE, "little")
            sent[k] = keys.sealed(self._channel(k), _nonce(self.id, k), plain, self._bound(self.id, k))
        return sent

    def receive(self, ciphertexts: Mapping[int, bytes]) -> Masks:
        """Round 2: opens its neighbours' shares, and has what masks its words.

        Raises:
            Refused: a ciphertext that is not what that neighbour sent it in this round.
            RoundAborted: fewer came than the threshold.
        """
        for k, ciphertext in ciphertexts.items():
            if k not in self._heard:
                raise Refused(f"client {self.id}: shares of client {k}, whose keys it was not told.")
            plain = keys.opened(self._channel(k), _nonce(k, self.id), ciphertext, self._bound(k, self.id))
            if plain is None or len(plain) != 2 * shamir.SIZE:
                raise Refused(
                    f"client {self.id}: the ciphertext of client {k} is not one that it made in round "
                    f"{self.setting.round} for this client: it was changed, swapped or replayed."
                )
            cut = shamir.SIZE
            self._held[k] = int.from_bytes(plain[:cut], "little"), int.from_bytes(plain[cut:], "little")
        self._enough("share", len(self._held), "shares came to a client")
        sign = lambda k: 1 if k > self.id else -1
        return Masks(self._seed, {k: (self._pair(k), sign(k)) for k in sorted(ciphertexts)})

    def sign(self, survivors: Iterable[int]) -> bytes:
        """Round 3: its signature of the list of those whose words came, which it takes once.

        Raises:
            Refused: a second list; one that it is not in.
            RoundAborted: fewer of its holders are in it than the threshold.
        """
        listed = sorted(survivors)
        if self.id not in listed or len(set(listed)) != len(listed):
            raise Refused(f"client {self.id}: it is to sign a list of survivors that it is not in, or one twice.")
        if self._survivors not in (None, listed):
            raise Refused(f"client {self.id}: it is told a second list of survivors, and has signed another.")
        self._enough("consistency", len(self._held.keys() & set(listed)), "holders of a client's shares are left")
        self._survivors = listed
        return self._signing.sign(survivor_list(self.setting.round, listed))

    def unmask(self, survivors: Iterable[int], lost: Iterable[int], signatures: Mapping[int, bytes]) -> Opened:
        """Round 4: for each survivor the share of its seed, for each that was lost the share of its key; never both.

        Args:
            survivors: those whose words came.
            lost: those that shared and whose words did not come.
            signatures: of the list of survivors, by clients that it shares with and itself.

        Raises:
            Refused: a client in both lists; survivors other than those it signed; a signature that does not hold.
            RoundAborted: fewer signatures than the threshold.
        """
        alive, gone = set(survivors), set(lost)
        both = sorted(alive & gone)
        if both:
            raise Refused(f"client {self.id}: it is asked for both shares of clients {both}, which would unmask them.")
        if self._survivors is None or sorted(alive) != self._survivors:
            raise Refused(f"client {self.id}: it is asked for shares by a list of survivors that it did not sign.")
        message = survivor_list(self.setting.round, self._survivors)
        for k, signature in signatures.items():
            if k not in alive or not keys.signed_by(self.setting.verify[k], signature, message):
                raise Refused(
                    f"client {self.id}: the signature of client {k} is not one of this list of survivors: lists differ."
                )
        signed = (set(signatures) | {self.id}) & self._held.keys()
        self._enough("unmask", len(signed), "signatures of the survivors came to a client")
        unknown = sorted(gone - self._held.keys())
        if unknown:
            raise Refused(f"client {self.id}: it is asked for shares of clients {unknown}, and holds none of them.")
        seeds = {k: seed for k, (_, seed) in self._held.items() if k in alive}
        return Opened(seeds, {k: key for k, (key, _) in self._held.items() if k in gone})

    def _enough(self, step: str, count: int, of: str) -> None:
        if count < self.setting.threshold:
            raise RoundAborted(step, count, self.setting.threshold, of)

    def _check_keys(self, one: Advertised, seen: set[bytes]) -> None:
        if one.id not in self.setting.neighbours or one.id in self._heard:
            raise Refused(f"client {self.id}: it is told keys of client {one.id}, no neighbour of its, or told twice.")
        if one.cipher in seen or one.mask in seen or one.cipher == one.mask:
            raise Refused(f"client {self.id}: a key of client {one.id} is another's too: one of them is not its own.")
        message = advertisement(self.setting.round, one.id, one.cipher, one.mask)
        if not keys.signed_by(self.setting.verify[one.id], one.signature, message):
            raise Refused(f"client {self.id}: the keys of client {one.id} are not signed by it for this round.")
        seen |= {one.cipher, one.mask}

    def _channel(self, other: int) -> bytes:
        """The key of ciphertexts between this client and another."""
        if other not in self._channels:
            secret = keys.agreed(self._cipher, self._heard[other].cipher)
            self._channels[other] = keys.derived(secret, "channel", self.setting.round)
        return self._channels[other]

    def _pair(self, other: int) -> bytes:
        return pair_key(self._mask, self._heard[other].mask, self.setting.round)

    def _shares(self, of: str, secret: bytes, points: list[int]) -> list[int]:
        """Shares of 32 bytes, by coefficients that are drawn for them: 48 bytes each, so that none is more likely."""
        size, count = 48, self.setting.threshold - 1
        drawn = keys.keystream(keys.derived(self._secret, f"shares of {of}"), 0, 12 * count).tobytes()
        coefficients = [int.from_bytes(drawn[size * j : size * (j + 1)], "little") % shamir.PRIME for j in range(count)]
        return shamir.split(int.from_bytes(secret, "little"), points, coefficients)

    def _bound(self, sender: int, receiver: int) -> bytes:
        return struct.pack("<QII", self.setting.round, sender, receiver)


def pair_key(secret: Any, public: bytes, round: int) -> bytes:
    """The key of the masks of two clients, by one's private and the other's public key."""
    return keys.derived(keys.agreed(secret, public), "pair", round)


def advertisement(round: int, id: int, cipher: bytes, mask: bytes) -> bytes:
    """What a client signs in round 0."""
    return b"keys" + struct.pack("<QI", round, id) + cipher + mask


def survivor_list(round: int, survivors: list[int]) -> bytes:
    """What a client signs in round 3."""
    listed = np.asarray(survivors, "<u4").tobytes()
    return b"survivors" + struct.pack("<Q", round) + hashlib.sha256(listed).digest()


def _nonce(sender: int, receiver: int) -> bytes:
    """A channel's key is of one round and two clients: a nonce for each direction is enough."""
    return struct.pack("<III", sender, receiver, 0)
