"""What an attack is: what bad clients learn from, what they send, and what they agree upon."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Collected
from fedjax_sim.aggregate.robust.distances import combined
from fedjax_sim.client import Task
from fedjax_sim.core.arrays import UNSET, Array, Batch, Key, PyTree, Scalar
from fedjax_sim.core.pytree import squared_norm
from fedjax_sim.core.types import Params


class Known(NamedTuple):
    """What colluding clients know of a round.

    Attributes:
        collected: the round's messages; `contributes` marks those that they know.
        everyone: the same, with all that contribute marked: what a rule sees, to choose a scale against it.
        attackers: [n] bool, the bad ones that contribute.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages, bad = jnp.array([[1.0], [3.0], [9.0]]), jnp.array([False, False, True])
        >>> everyone = fs.aggregate.Collected(messages, jnp.ones(3), jnp.ones(3, bool), jnp.arange(3))
        >>> known = fs.attacks.Known(everyone._replace(contributes=~bad), everyone, bad)
        >>> print(fs.attacks.ipm(2.0).collude.message(known), known.clients, known.bad)
        [-4.] 3 1
    """

    collected: Collected
    everyone: Collected
    attackers: Array

    @property
    def clients(self) -> Scalar:
        """[] int32, n, clients that contribute, bad ones among them."""
        return jnp.sum(self.everyone.contributes)

    @property
    def bad(self) -> Scalar:
        """[] int32, m, bad ones that contribute."""
        return jnp.sum(self.attackers)


class Received(NamedTuple):
    """What a client knows when it sends.

    Attributes:
        params: the model that it received.
        client_id: [] int32.
        round: [] int32.
        previous: the model of the round before, for an attack that `remembers`; in round 0 the same one.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> def opposite(key, payload, received):
        ...     return jax.tree.map(jnp.negative, received.params)
        >>> to_zero = fs.attacks.Attack("to_zero", update=opposite)
    """

    params: Params
    client_id: Scalar
    round: Scalar
    previous: Params = UNSET


class Collusion(NamedTuple):
    """What colluding clients send, all of them the same: `start + scale direction`.

    Attributes:
        line: `(known) -> (start, direction)`, two trees like one message.
        scale: `(known, start, direction) -> []`.
        knows: "all" honest messages of the round, or the bad clients' "own" honest ones.
        rule: the reducer that the scale is chosen against, or None.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> def line(known):
        ...     first = jax.tree.map(lambda leaf: leaf[0], known.collected.messages)
        ...     return first, jax.tree.map(jnp.negative, first)
        >>> shout = fs.attacks.Attack("shout", collude=fs.attacks.Collusion(line, lambda known, start, direction: 10.0))
    """

    line: Callable[[Known], tuple[PyTree, PyTree]]
    scale: Callable[[Known, PyTree, PyTree], Scalar]
    knows: str = "all"
    rule: object = None

    def message(self, known: Known) -> PyTree:
        """What each bad client sends: a tree of float32 like one message, no longer than the chain's bound."""
        start, direction = self.line(known)
        return along(start, direction, self.scale(known, start, direction), known.everyone.bound)


class Attack(NamedTuple):
    """What bad clients do; a field that is None stays honest.

    Attributes:
        name: for messages.
        batch: `(key, batch) -> batch`: what they train on, a batch of the data's entries and `mask`, [B, ...] each.
        update: `(key, payload, received) -> payload`: what they send instead of what they honestly would, a `Received`
            at hand.
        collude: what they send once they saw the round's messages.
        check: `(task) -> None`: raises an `fs.ArgumentError` where the attack does not fit a task.
        remembers: its `update` looks at the model of the round before, which the server's state then keeps.

    Example:
        >>> import jax, fedjax_sim as fs
        >>> def shrunk(key, payload, received):
        ...     return jax.tree.map(lambda leaf: leaf / 10, payload)
        >>> lazy = fs.attacks.Attack("lazy", update=shrunk)
    """

    name: str
    batch: Callable[[Key, Batch], Batch] | None = None
    update: Callable[[Key, PyTree, Received], PyTree] | None = None
    collude: Collusion | None = None
    check: Callable[[Task], None] | None = None
    remembers: bool = False

    def __repr__(self) -> str:
        return f"Attack({self.name})"


def mean_of(collected: Collected, among: Array) -> PyTree:
    """The plain mean of some of the messages, float32; zeros of none.

    Args:
        collected: the round's messages.
        among: [n] bool, of those that contribute.
    """
    return combined(jnp.asarray(among, jnp.float32) / jnp.maximum(jnp.sum(among), 1), collected)


def along(start: PyTree, direction: PyTree, scale: Scalar | Array, bound: Scalar) -> PyTree:
    """`start + scale direction`, shortened to an L2 norm of at most `bound`."""
    sent = jax.tree.map(lambda a, b: a + scale * b, start, direction)
    norm = jnp.sqrt(squared_norm(sent))
    shorten = jnp.where(norm > bound, bound / jnp.where(norm > 0, norm, 1.0), 1.0)
    return jax.tree.map(lambda leaf: leaf * shorten, sent)
