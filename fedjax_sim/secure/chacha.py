"""ChaCha20's key stream on the devices (RFC 8439), for many blocks at once."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Scalar

CONSTANTS = tuple(np.frombuffer(b"expand 32-byte k", "<u4").tolist())

WORDS = 16
"""Words of 32 bits in a block."""

PIECE = 8192
"""Blocks at once: the 16 words of each are half a megabyte, which fits a core's cache."""

State = tuple[jax.Array, ...]
"""The 16 words of each of n blocks: 16 arrays [n] uint32, which XLA keeps in registers and a matrix it would not."""

_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def blocks(key: jax.Array, counters: jax.Array, nonce: tuple[Scalar, Scalar, Scalar]) -> State:
    """Blocks of a key stream.

    Args:
        key: [8] uint32.
        counters: [n] uint32, which blocks.
        nonce: three uint32.

    Returns:
        The 16 words of each, [n] uint32.
    """
    wide = lambda word: jnp.broadcast_to(jnp.asarray(word, jnp.uint32), counters.shape)
    first = (*map(wide, CONSTANTS), *(wide(key[i]) for i in range(8)), counters, *map(wide, nonce))
    last = jax.lax.fori_loop(0, 10, lambda _, state: _double_round(state), first)
    return tuple(a + b for a, b in zip(first, last, strict=True))


def mask(keys: jax.Array, signs: jax.Array, words: int, stream: int = 0) -> jax.Array:
    r"""The sum of key streams, each added or subtracted, modulo :math:`2^{32}`.

    One key after another, so that memory does not grow with their number.

    Args:
        keys: [m, 8] uint32.
        signs: [m] uint32: 1, or 2^32 - 1 for minus one, or 0 for a place without a key.
        words: how many.
        stream: the last word of the nonce.

    Returns:
        [words] uint32.
    """
    count = -(-words // WORDS)
    piece = min(count, PIECE)

    def of(first: jax.Array) -> jax.Array:
        counters = first + jnp.arange(piece, dtype=jnp.uint32)

        def add(i: jax.Array, total: State) -> State:
            made = blocks(keys[i], counters, (0, 0, stream))
            return tuple(a + signs[i] * b for a, b in zip(total, made, strict=True))

        zero = tuple(jnp.zeros(piece, jnp.uint32) for _ in range(WORDS))
        return jnp.stack(jax.lax.fori_loop(0, keys.shape[0], add, zero), axis=1)

    firsts = jnp.arange(0, count, piece, dtype=jnp.uint32)
    made = of(firsts[0]) if len(firsts) == 1 else jax.lax.map(of, firsts)
    return made.reshape(-1)[:words]


def _double_round(state: State) -> State:
    for quarter in (*_COLUMNS, *_DIAGONALS):
        state = _quarter_round(state, *quarter)
    return state


def _quarter_round(state: State, i: int, j: int, k: int, m: int) -> State:
    a, b, c, d = state[i], state[j], state[k], state[m]
    a = a + b
    d = _rotated(d ^ a, 16)
    c = c + d
    b = _rotated(b ^ c, 12)
    a = a + b
    d = _rotated(d ^ a, 8)
    c = c + d
    b = _rotated(b ^ c, 7)
    new = {i: a, j: b, k: c, m: d}
    return tuple(new.get(at, word) for at, word in enumerate(state))


def _rotated(x: jax.Array, by: int) -> jax.Array:
    return (x << by) | (x >> (32 - by))
