"""Sparse messages: the k largest numbers, or k at random."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Transform
from fedjax_sim.aggregate.compress.messages import decoded_singly
from fedjax_sim.core.errors import check, is_traced
from fedjax_sim.core.pytree import Layout, pytree, static
from fedjax_sim.core.types import Key


@pytree
class _Sparse:
    """Some numbers, their places, and the bits that the places take."""

    values: jax.Array
    index: jax.Array
    places: float = static()


def top_k(fraction: float) -> Transform:
    r"""Send the :math:`k = \lceil \text{fraction} \cdot d \rceil` numbers of greatest magnitude of all leaves.

    The squared error is the energy of the numbers left out, at most :math:`(1 - k/d) \lVert x \rVert^2`. It is biased:
    use `error_feedback(top_k(...))` (Stich, Cordonnier and Jaggi 2018). Each number takes 32 bits, and its place
    :math:`\lceil \log_2 d \rceil`.

    Args:
        fraction: of the numbers, over 0 to 1.

    Raises:
        ArgumentError: it stands after a quantiser or what is decoded message by message.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.error_feedback(fs.aggregate.top_k(0.01)))
    """
    name = f"top_k({fraction})"

    def choose(key: Key, x: jax.Array, k: int) -> jax.Array:
        return jax.lax.top_k(jnp.abs(x), k)[1]

    place = lambda k, dim: float(k * max(dim - 1, 0).bit_length())
    return _sparse(name, fraction, choose, False, place)


def random_k(fraction: float, scale: bool = True) -> Transform:
    r"""Send :math:`k = \lceil \text{fraction} \cdot d \rceil` numbers, drawn anew by each client, times d / k.

    Unbiased, with an expected squared error of :math:`(d/k - 1) \lVert x \rVert^2` (Konecny et al. 2016, "random mask";
    Stich, Cordonnier and Jaggi 2018). Without the scale it is biased with the error
    :math:`(1 - k/d) \lVert x \rVert^2`, which is the form for error feedback. Places follow from a seed: 32 bits a
    number and 32 in all.

    Args:
        fraction: of the numbers, over 0 to 1.
        scale: multiply by d / k.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.random_k(0.1))
    """
    name = f"random_k({fraction})" if scale else f"random_k({fraction}, scale=False)"

    choose = lambda key, x, k: random_places(key, x.size, k)
    return _sparse(name, fraction, choose, scale, lambda k, dim: 32.0)


def random_places(key: Key, size: int, count: int) -> jax.Array:
    """Distinct places, each of `size` with the same chance, in time proportional to `count`: no shuffle of all.

    The first `count` images of a random permutation: a Feistel network of eight rounds, each a hash under a random
    word, permutes the numbers of 2m bits, and what falls outside is permuted on until it falls inside.

    Example:
        >>> import jax
        >>> from fedjax_sim.aggregate.compress.sparsify import random_places
        >>> print(sorted(random_places(jax.random.key(0), size=5, count=5).tolist()))
        [0, 1, 2, 3, 4]
    """
    half = max(-(-(size - 1).bit_length() // 2), 1)
    mask = jnp.uint32(2**half - 1)
    rounds = jax.random.bits(key, (8,))

    def permute(n: jax.Array) -> jax.Array:
        left, right = n >> half, n & mask
        for word in rounds:
            left, right = right, left ^ (_hash(right + word) & mask)
        return (left << half) | right

    outside = lambda n: n >= size
    places = jax.lax.while_loop(
        lambda n: jnp.any(outside(n)),
        lambda n: jnp.where(outside(n), permute(n), n),
        permute(jnp.arange(count, dtype=jnp.uint32)),
    )
    return places.astype(jnp.int32)


def _hash(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3 (Appleby): each bit of 32 depends on all."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _sparse(name: str, fraction: float, choose: Any, scale: bool, places: Any) -> Transform:
    ok = isinstance(fraction, int | float) and not isinstance(fraction, bool) and 0 < fraction <= 1
    check(ok and not is_traced(fraction), "fraction", fraction, "must be over 0, and 1 at most.")
    count = lambda dim: math.ceil(fraction * dim)

    def init(payload_shapes):
        return Layout.of(payload_shapes), None

    def client(key, state, row, payload, context):
        x = state.ravel(payload)
        index = choose(key, x, count(x.size))
        values = x[index] * (x.size / max(index.size, 1) if scale else 1.0)
        return _Sparse(values, index, places(index.size, x.size)), row, {}

    def receive(key, state, message):
        return state.unravel(jnp.zeros(state.size).at[message.index].set(message.values))

    def bound(state, incoming, dim):
        return incoming * (dim / max(count(dim), 1)) if scale else incoming

    def bits(message, incoming):
        return 32.0 * message.values.size + message.places

    return Transform(
        name,
        init=init,
        client=client,
        receive=receive,
        facts=decoded_singly(name, 32.0 * fraction),
        bound=bound,
        bits=bits,
    )
