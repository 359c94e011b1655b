"""Canaries: clients who send a direction of their own, which a release betrays unless it is noised enough."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array, Key, PyTree, Scalar
from fedjax_sim.core.pytree import squared_norm
from fedjax_sim.core.rng import Purpose, key

INCLUDED = 2**32 - 1
"""What a canary's coin is folded with; its leaves' directions have 0, 1, ..."""


def canary(client_id: Scalar, like: PyTree, norm: Scalar, seed: Scalar = 0) -> PyTree:
    """What a canary sends: a direction of its own, uniform on the sphere, of a given length; zeros if it is held out.

    The audit of whole clients by Andrew et al. (2024), section 3. Directions of d numbers are nearly orthogonal: the
    cosine of one with what it is no part of has a standard deviation of 1 / sqrt(d).

    Args:
        client_id: [] int32.
        like: a pytree of floats, the payload.
        norm: L2, of the chain's clip.
        seed: of directions and coins.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> ids = jnp.arange(4)
        >>> which = fs.privacy.audit.included(ids)
        >>> lengths = [float(jnp.linalg.norm(fs.privacy.audit.canary(i, jnp.zeros(1000), 2.0))) for i in ids]
        >>> bool(jnp.allclose(jnp.array(lengths), 2.0 * which))
        True
    """
    own = _own(client_id, seed)
    scale = norm * jax.random.bernoulli(jax.random.fold_in(own, INCLUDED))
    return jax.tree.map(lambda leaf, unit: (scale * unit).astype(leaf.dtype), like, _direction(own, like))


def included(ids: Array, seed: Scalar = 0) -> np.ndarray:
    """[n] bool, which canaries take part: a fair coin each, by seed and id.

    Args:
        ids: [n] the canaries' client ids.
        seed: as of `canary`.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> bool(400 < fs.privacy.audit.included(np.arange(1000)).sum() < 600)
        True
    """
    toss = lambda i: jax.random.bernoulli(jax.random.fold_in(_own(i, seed), INCLUDED))
    return np.asarray(jax.vmap(toss)(jnp.asarray(ids)))


def canary_scores(release: PyTree, ids: Array, seed: Scalar = 0) -> np.ndarray:
    """[n] cosines of a release with the directions of canaries, one after another in memory of one model.

    Args:
        release: a pytree like a payload: how the model moved, in one round or in all.
        ids: [n] the canaries' client ids.
        seed: as of `canary`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> ids = jnp.arange(8)
        >>> sent = sum(fs.privacy.audit.canary(i, jnp.zeros(1000), 1.0) for i in ids)
        >>> scores = fs.privacy.audit.canary_scores(sent, ids)
        >>> bool(((scores > 0.2) == fs.privacy.audit.included(ids)).all())
        True
    """
    return np.asarray(_cosines(release, jnp.asarray(ids), jnp.asarray(seed, jnp.uint32)))


@jax.jit
def _cosines(release: PyTree, ids: jax.Array, seed: jax.Array) -> jax.Array:
    length = jnp.sqrt(squared_norm(release))

    def cosine(client: jax.Array) -> jax.Array:
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), release, _direction(_own(client, seed), release))
        return sum(jax.tree.leaves(products), jnp.zeros(())) / jnp.where(length > 0, length, 1)

    return jax.lax.map(cosine, ids)


def _own(client_id: Any, seed: Scalar) -> Key:
    return jax.random.fold_in(key(seed, Purpose.CANARY), client_id)


def _direction(own: Key, like: PyTree) -> PyTree:
    """A tree of float32 of length 1."""
    leaves, structure = jax.tree.flatten(like)
    drawn = [jax.random.normal(jax.random.fold_in(own, i), jnp.shape(leaf)) for i, leaf in enumerate(leaves)]
    length = jnp.sqrt(squared_norm(drawn))
    return jax.tree.unflatten(structure, [x / length for x in drawn])
