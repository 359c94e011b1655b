"""Randomness from (seed, purpose, round, client id) and from nothing else.

No key is kept in state, none is split over a cohort, none depends on a place in it: permuting, padding or
regrouping a cohort changes no draw, and resuming needs the seed and the round alone. The device side folds the
four numbers into a JAX key; the host side hashes them, for all clients at once.
"""

import enum
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array, Key, Scalar
from fedjax_sim.core.errors import check, check_count, is_traced


class Purpose(enum.IntEnum):
    """What a draw is for. Values are part of a run's identity: never renumber them."""

    INIT = 0
    PARTITION = 1
    SPLIT = 2
    SAMPLE = 3
    SHUFFLE = 4
    CLIENT = 5
    ENCODE = 6
    DECODE = 7
    SERVER = 8
    EVALUATE = 9
    LIMIT = 10
    GROUP = 11
    SHARED = 12  # between the clients of a round and the server
    RECEIVE = 13
    NOISE = 14  # for privacy, by a client
    CENTRAL_NOISE = 15  # for privacy, by the server
    REDUCE = 16  # by a reducer that collects
    SECURE = 17  # keys, seeds and the graph of a secure sum, and who is lost in it
    ADVERSARIES = 40  # which clients are bad
    CANARY = 41  # a canary's direction, and its coin
    AVAILABLE = 50  # whether a client is there
    FATE = 51  # what happens to one that is invited
    DEVICE = 52  # what it has in its hands


NOISES = (Purpose.NOISE, Purpose.CENTRAL_NOISE)
"""Purposes whose keys come from a run's noise seed."""


def check_seed(seed: Scalar, name: str = "seed") -> None:
    """A seed is a whole number of 32 bits: JAX would silently cut a longer one."""
    if is_traced(seed):
        check(seed >= 0, name, seed, "must be a whole number, at least 0.")
        return
    check_count(name, seed, minimum=0)
    check(int(seed) < 2**32, name, seed, "must be below 2**32, as JAX keys are made from 32 bits.")


def round_keys(seeds: Array, purposes: Iterable[Purpose], round: Scalar, phase: Scalar) -> dict[Purpose, Key]:
    """The keys of a phase of a round, by purpose; those that noise for privacy is drawn from have their own seed.

    Args:
        seeds: [2] uint32, the run's and its noise's.
        purposes: what for.
        round: the round's number; may be traced.
        phase: its index.
    """
    purposes = tuple(purposes)
    seed = jnp.where(np.isin(purposes, NOISES), seeds[1], seeds[0])
    of = lambda seed, purpose: jax.random.fold_in(key(seed, purpose, round), phase)
    keys = jax.vmap(of)(seed, np.array(purposes, np.uint32))  # at once, which compiles faster than one by one
    return {purpose: keys[i] for i, purpose in enumerate(purposes)}


def key(seed: Scalar, purpose: Purpose, round: Scalar = 0) -> Key:
    """The JAX key of a purpose in a round; fold a client's id into it for a client's own key.

    Args:
        seed: the run's seed; may be traced, so that seeds can be vmapped.
        purpose: what the draws are for.
        round: the round's number; may be traced.

    Returns:
        A typed key, scalar.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), round)


def client_key(key: Key, client_id: Scalar, copy: Scalar | None = None) -> Key:
    """A client's own key of a round's.

    Args:
        key: of the round, for a purpose.
        client_id: [] int32.
        copy: [] int32, which copy of the client this is; None or 0 for one that is alone. Any other draws for itself,
            from a key that no client's id gives.
    """
    if copy is not None:
        of_copy = jax.random.fold_in(key, jnp.uint32(2**31) + jnp.asarray(copy).astype(jnp.uint32))
        key = jnp.where(jnp.asarray(copy) > 0, of_copy, key)
    return jax.random.fold_in(key, client_id)


def generator(seed: int, purpose: Purpose, round: int = 0) -> np.random.Generator:
    """A NumPy generator for one host-side draw of a whole round (never one per client)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, purpose, round))))


def hash32(seed: int, purpose: Purpose, round: int, client_id: np.ndarray, counter: np.ndarray | int) -> np.ndarray:
    """32 random bits for each (client, counter): a counter-based generator, vectorised over both.

    Two rounds of the SplitMix64 finaliser (Steele, Lea and Flood 2014) over the folded numbers.

    Args:
        seed, purpose, round: scalars.
        client_id: [n] client ids.
        counter: [n] which draw of that client; any unsigned number.

    Returns:
        [n] uint64, each below 2**32.
    """
    base = _base(seed, purpose, round)
    with np.errstate(over="ignore"):
        stream = _mix(np.asarray(client_id).astype(np.uint64) * _GOLDEN + base)
        return _mix(np.asarray(counter).astype(np.uint64) * _GOLDEN + stream) >> np.uint64(32)


def uniforms(seed: int, purpose: Purpose, round: int, client_id: np.ndarray, counter: np.ndarray | int) -> np.ndarray:
    """[n] float64 in (0, 1), of 32 bits, for each (client, counter); arguments as of `hash32`."""
    return (hash32(seed, purpose, round, client_id, counter).astype(np.float64) + 0.5) * 2.0**-32


@functools.lru_cache(maxsize=16)
def _base(seed: int, purpose: Purpose, round: int) -> np.uint64:
    return np.uint64(np.random.SeedSequence((seed, purpose, round)).generate_state(1, np.uint64)[0])


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
