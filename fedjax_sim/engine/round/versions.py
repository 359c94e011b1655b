"""Old server states: of each phase what clients read of it, from the rounds before this one.

A ring of V states: that of round r is in place r % V until round r + V is over. It is written after its round, so that
a round finds those of the V rounds before it here, and its own where it always is.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from fedjax_sim.core.arrays import PyTree

Ring = tuple[jax.Array, ...]
"""[V, ...] for each leaf of the server state that a phase's clients read."""


def first(server: PyTree, read: Sequence[bool], count: int) -> Ring:
    """A ring of so many states, all the same one.

    Args:
        server: the state.
        read: for each of its leaves, whether clients read it.
        count: V.
    """
    return tuple(jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))) for leaf in _of(server, read))


def remembered(ring: Ring, server: PyTree, round: jax.Array, read: Sequence[bool], count: jax.Array) -> Ring:
    """The ring with a round's state in the place of the oldest.

    Args:
        ring: before.
        server: the state that the round began with.
        round: its number.
        read: for each leaf of the state, whether clients read it.
        count: clients that contributed, known when the last one has read the ring. The place is made to depend on it:
            XLA then writes into the ring, and otherwise into a copy of it.
    """
    round = round + (count < 0)
    put = jax.lax.dynamic_update_index_in_dim
    return tuple(
        put(states, leaf, round % len(states), 0) for states, leaf in zip(ring, _of(server, read), strict=True)
    )


def of_version(ring: Ring | None, server: PyTree, version: jax.Array, round: jax.Array, read: Sequence[bool]) -> PyTree:
    """The server state that clients of a version read, this round's or an old one; what none reads is this round's."""
    if ring is None:
        return server
    leaves, structure = jax.tree.flatten(server)
    rest = iter(ring)

    def chosen(leaf: jax.Array, states: jax.Array) -> jax.Array:
        old = jax.lax.dynamic_index_in_dim(states, version % len(states), keepdims=False)
        return jnp.where(version == round, leaf, old)

    each = [chosen(leaf, next(rest)) if used else leaf for leaf, used in zip(leaves, read, strict=True)]
    return jax.tree.unflatten(structure, each)


def _of(server: PyTree, read: Sequence[bool]) -> Iterator[jax.Array]:
    return (leaf for leaf, used in zip(jax.tree.leaves(server), read, strict=True) if used)
