"""PowerSGD: matrices as products of two thin ones, found by one power iteration a round."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Transform
from fedjax_sim.aggregate.compress.feedback import error_feedback
from fedjax_sim.aggregate.compress.messages import decoded_singly
from fedjax_sim.core.arrays import Array, Key
from fedjax_sim.core.errors import check_count
from fedjax_sim.core.pytree import Layout


class _Factors(NamedTuple):
    left: jax.Array
    right: jax.Array


def power_sgd(rank: int, feedback: bool = True) -> Transform:
    r"""PowerSGD (Vogels, Karimireddy and Jaggi 2019): each matrix M, [n, m], as :math:`\hat P Q^\top` of rank r.

    .. math:: P = M Q_{\text{last}}, \qquad \hat P = \operatorname{orthonormalise}(P), \qquad Q = M^\top \hat P

    The client keeps Q as a row and starts the next iteration from it, so that over rounds the factors follow the
    leading singular vectors; a column of Q that is zero is drawn anew, lest it stay zero. A matrix of rank r or less
    comes back exactly. Leaves of more than two axes are matrices [rest, last axis]; vectors, and matrices whose factors
    would be no smaller, are sent as they are. Here each client's update has its own factors, 32 r (n + m) bits,
    which the server multiplies and adds up, where the paper's workers share P in a second exchange.

    Args:
        rank: r.
        feedback: with error feedback, as in the paper.

    Raises:
        ArgumentError: it stands after a quantiser or what is decoded message by message.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.power_sgd(2))
    """
    check_count("rank", rank)
    name = f"power_sgd({rank})" if feedback else f"power_sgd({rank}, feedback=False)"

    def init(payload_shapes):
        leaves = jax.tree.leaves(payload_shapes)
        start = [
            jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (_matrix_shape(leaf)[1], rank))
            if _pays(leaf, rank)
            else None
            for i, leaf in enumerate(leaves)
        ]
        return Layout.of(payload_shapes), tuple(start)

    def client(key, state, row, payload, context):
        message, kept = [], []
        for i, (x, q) in enumerate(zip(jax.tree.leaves(payload), row, strict=True)):
            x = x.astype(jnp.float32)
            if q is not None:
                x = _iterate(jax.random.fold_in(key, i), x.reshape(_matrix_shape(x)), q)
                q = x.right
            message.append(x)
            kept.append(q)
        return tuple(message), tuple(kept), {}

    def receive(key, state, message):
        leaves = [
            (part.left @ part.right.T).reshape(shape) if isinstance(part, _Factors) else part
            for part, shape in zip(message, state.shapes, strict=True)
        ]
        return jax.tree.unflatten(state.structure, leaves)

    def bits(message, incoming):
        return 32.0 * sum(leaf.size for leaf in jax.tree.leaves(message))

    factors = Transform(
        name,
        init=init,
        client=client,
        receive=receive,
        facts=lambda facts: decoded_singly(name, 32.0)(facts)._replace(rows=True),
        bits=bits,
    )
    return error_feedback(factors)._replace(name=name) if feedback else factors


def orthonormalise(matrix: jax.Array) -> jax.Array:
    """An orthonormal basis, [n, r] with r <= n, whose first columns span those of the matrix; of any rank.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_sim.aggregate.compress.low_rank import orthonormalise
        >>> basis = orthonormalise(jnp.array([[3.0, 6.0], [4.0, 8.0], [0.0, 0.0]]))  # of rank 1
        >>> print(jnp.abs(basis[:, 0]), jnp.abs(basis.T @ basis).round(5))
        [0.6 0.8 0. ] [[1. 0.]
         [0. 1.]]
    """
    return jnp.linalg.qr(matrix)[0]


def _iterate(key: Key, matrix: jax.Array, q: jax.Array) -> _Factors:
    dead = jnp.sum(jnp.square(q), axis=0, keepdims=True) == 0
    q = jnp.where(dead, jax.random.normal(key, q.shape), q)
    left = orthonormalise(matrix @ q)
    return _Factors(left, matrix.T @ left)


def _matrix_shape(leaf: Array | jax.ShapeDtypeStruct) -> tuple[int, int]:
    return math.prod(leaf.shape[:-1]), leaf.shape[-1]


def _pays(leaf: Array | jax.ShapeDtypeStruct, rank: int) -> bool:
    if len(leaf.shape) < 2:
        return False
    n, m = _matrix_shape(leaf)
    return rank * (n + m) < n * m
