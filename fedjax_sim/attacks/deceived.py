"""A reducer whose messages bad clients had a hand in."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Collected, Reduced, Reducer
from fedjax_sim.aggregate.collecting import of_today, reduced
from fedjax_sim.aggregate.robust.distances import combined
from fedjax_sim.attacks.base import Attack, Collusion, Known, Received, mean_of
from fedjax_sim.core.arrays import Array, Key, PyTree
from fedjax_sim.core.errors import check
from fedjax_sim.core.pytree import squared_norm
from fedjax_sim.core.types import Aggregate

Who = Callable[[Collected], Array]
"""`(collected) -> [n] bool`: the bad clients that contribute to the round."""


def deceived(
    then: Reducer,
    attack: Attack,
    who: Who,
    late: Callable[[Key, PyTree, Received], PyTree] | None,
    received: Callable[..., Received],
) -> Reducer:
    """Another reducer, of the round's messages with those of bad clients put in.

    It reports how far its value is from the mean of the honest messages, `aggregate/distance_to_honest`. The messages
    are made a second time where any are put in, but for a sum, to which one message that all bad clients send is added.

    Args:
        then: any reducer.
        attack: what is put in, if it colludes.
        who: the bad clients.
        late: an attack's update of messages as the server received them, or None.
        received: `(server_state, client_id, round) -> Received`.
    """
    _check_rule(attack, then)

    def collect(collected: Collected) -> Reduced:
        bad = who(collected)
        honest = mean_of(collected, collected.contributes & ~bad)
        if late is not None:
            collected = _updated(late, collected, bad, received)
        message = None if attack.collude is None else colluded(attack.collude, collected, bad)
        if message is None:
            made = summed(then, collected)
        elif then.linear:
            made = summed(then, collected, bad, message)
        else:
            made = summed(then, put_alike(collected, bad, message))
        apart = jax.tree.map(lambda value, mean: value - mean, made.value, honest)
        metrics = {**(made.metrics or {}), "distance_to_honest": jnp.sqrt(squared_norm(apart))}
        return made._replace(metrics=metrics)

    name = f"{attack.name} on {then.name}"
    if then.linear:
        return Reducer(name, weight=then.weight, collect=collect, init=then.init, by_client=True)
    return then._replace(name=name, collect=collect, by_coordinate=False)


def summed(then: Reducer, collected: Collected, bad: Array | None = None, message: PyTree = None) -> Reduced:
    """What a reducer makes of messages that are collected, though it may need their sum alone.

    Args:
        then: the reducer.
        collected: the messages.
        bad: [n] bool, whose messages are all `message` instead; for a reducer of the sum.
    """
    if not then.linear:
        return reduced(of_today(then), collected)
    weights = jnp.where(collected.contributes, collected.weights, 0.0)
    its = weights if bad is None else jnp.where(jnp.asarray(bad), 0.0, weights)
    value = combined(its, collected)
    if bad is not None:
        rest = jnp.sum(weights - its)
        value = jax.tree.map(lambda leaf, sent: leaf + rest * sent, value, message)
    count = jnp.sum(collected.contributes).astype(jnp.float32)
    return Reduced(then.result(Aggregate(value, jnp.sum(weights), count), None))


def colluded(collusion: Collusion, collected: Collected, bad: Array) -> PyTree:
    """What all bad clients send."""
    mine = collected.contributes & (bad if collusion.knows == "own" else ~bad)
    return collusion.message(Known(collected._replace(contributes=mine), collected, bad))


def put_alike(collected: Collected, bad: Array, message: PyTree) -> Collected:
    """The messages, with one message for all bad clients."""
    return put(collected, bad, jax.tree.map(lambda leaf: leaf[None], message))


def put(collected: Collected, bad: Array, sent: PyTree) -> Collected:
    """The messages, with those of bad clients from a tree of [n, ...], or [1, ...] for all alike."""

    def leaf(honest: jax.Array, sent: jax.Array) -> jax.Array:
        where = jnp.asarray(bad).reshape(-1, *[1] * (honest.ndim - 1))
        return jnp.where(where, sent.astype(honest.dtype), honest)

    return collected._replace(messages=jax.tree.map(leaf, collected.messages, sent))


def _updated(
    late: Callable[..., PyTree], collected: Collected, bad: Array, received: Callable[..., Received]
) -> Collected:
    """The messages, with updates that no chain shortened in place of the bad clients'."""
    keys = jax.vmap(lambda client: jax.random.fold_in(collected.key, client))(collected.ids)
    one = lambda key, message, client: late(key, message, received(collected.server, client, collected.round))
    return put(collected, bad, jax.vmap(one)(keys, collected.messages, collected.ids))


def _check_rule(attack: Attack, then: Reducer) -> None:
    rule = attack.collude.rule if attack.collude is not None else None
    if isinstance(rule, Reducer) and rule.keeps_state:
        check(rule.name == then.name, "rule", rule.name, f"keeps a state, which the chain's {then.name} has not.")
