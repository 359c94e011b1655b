"""A random rotation that the round's clients share: it spreads energy, and the server undoes it on the sum."""

import dataclasses
import math

import jax

from fedjax_sim.aggregate.base import Facts, Transform
from fedjax_sim.aggregate.compress.messages import check_floats
from fedjax_sim.aggregate.numerics.hadamard import padded_size, rotate_back, rotate_randomly
from fedjax_sim.core.arrays import Key
from fedjax_sim.core.pytree import Layout, pytree


@pytree
class Rotated:
    """A payload after a random rotation: its numbers are alike, which later stages may count on.

    Attributes:
        values: [2^k] float32.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> states, rows = fs.aggregate.chain(fs.aggregate.rotate()).init(jnp.zeros(5))
        >>> fs.aggregate.Rotated(jnp.zeros(8)).values.shape
        (8,)
    """

    values: jax.Array


TAIL = 1e-6


def spread(dim: int) -> float:
    r"""The largest number of a rotated vector of norm 1, but for one rotation in a million.

    .. math:: t = \min\left(1, \sqrt{2 \ln(2 d / \delta) / d}\right), \qquad \delta = 10^{-6}

    by Hoeffding's inequality, as each of the d numbers is a sum of d terms with random signs.

    Example:
        >>> from fedjax_sim.aggregate.compress.rotate import spread
        >>> print(round(spread(2**18), 5), spread(4))
        0.01435 1.0
    """
    return min(1.0, math.sqrt(2 * math.log(2 * dim / TAIL) / dim))


def rotate() -> Transform:
    r"""Rotate the whole payload at random, :math:`z = 2^{-k/2} H D x`, the same way on all clients of a round.

    The leaves are laid into one vector, padded with zeros to 2^k numbers (which are sent), given random signs D from
    the round's shared key, and transformed by `hadamard`. Norms stay as they are, while no number is much larger than
    :math:`\lVert x \rVert / \sqrt d`: so a quantiser behind it does with few levels. Being linear it passes through
    secure sums, and the server rotates the sum back (Suresh, Yu, Kumar and McMahan 2017; Kairouz, Liu and Steinke
    2021).

    Raises:
        ArgumentError: it stands after a quantiser, or after what is decoded message by message.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(
        ...     fs.aggregate.clip_by_l2(1.0), fs.aggregate.rotate(), fs.aggregate.quantize(8)
        ... )
    """

    def init(payload_shapes):
        return Layout.of(payload_shapes), None

    def client(key, state, row, payload, context):
        x = state.ravel(payload, padded_size(state.size))
        return Rotated(rotate_randomly(_signs(context.round_key), x)), row, {}

    def server(key, state, aggregate):
        back = rotate_back(_signs(aggregate.round_key), aggregate.value.values, state.size)
        return dataclasses.replace(aggregate, value=state.unravel(back)), state, {}

    def facts(facts: Facts) -> Facts:
        check_floats("rotate()", facts)
        return facts._replace(bits=32.0)

    return Transform(
        "rotate()",
        init=init,
        client=client,
        server=server,
        facts=facts,
        bits=lambda message, incoming: 32.0 * message.values.size,
    )


def _signs(round_key: Key) -> Key:
    return jax.random.fold_in(round_key, 0x5167)
