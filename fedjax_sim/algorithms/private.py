r"""Parameters that stay with the client: FedPer, FedRep, FedBN, FedBABU and LG-FedAvg are choices of which."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import GradientFunction, difference, train
from fedjax_sim.client import Task, split_params
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.paths import Pattern, check_pattern, merge, paths_of, split
from fedjax_sim.core.pytree import where
from fedjax_sim.core.types import ClientUpdate, Params

Private = Pattern
"""Which leaves stay: a regular expression that is searched for in their paths, or a function of a path."""


class PrivateState(NamedTuple):
    """Server state with private parameters: trees in which those of the other side are None.

    Attributes:
        params: the public leaves.
        optimizer: the server optimizer's state, for these.
        first: the private leaves' first values: what a client begins with, and an unseen one has.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: {"body": jnp.ones(3), "head": jnp.zeros(())}, lambda w, batch, key: batch["x"])
        >>> server, row = fs.fedavg(task, optax.sgd(0.1), private="head").init(task.init(None))
        >>> print(server.params, row.params["head"])
        {'body': Array([1., 1., 1.], dtype=float32), 'head': None} 0.0
    """

    params: Params
    optimizer: optax.OptState
    first: Params


class PrivateRow(NamedTuple):
    """A client's row: its private leaves, and its optimizer's state where that is kept, or None."""

    params: Params
    optimizer: Any


def private_averaging(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation,
    aggregator: Aggregator | Reducer | None,
    *,
    private: Private,
    head_steps: int | None,
    client_optimizer_state: Literal["reset", "keep", "average"],
    pull: Callable[[Params, Params], Params] | None,
    gradient_fn: GradientFunction | None,
) -> Algorithm:
    """FedAvg of the public leaves, by clients that train them together with their own."""
    keeps = client_optimizer_state == "keep"
    check(
        client_optimizer_state != "average",
        *("client_optimizer_state", client_optimizer_state),
        'has moments of private parameters in it, which must not be sent; use "reset" or "keep".',
    )
    if head_steps is not None:
        check_count("head_steps", head_steps, minimum=0)
        check(not keeps, "head_steps", head_steps, 'counts the steps of a round; use client_optimizer_state="reset".')
        client_optimizer = _head_first(client_optimizer, private, head_steps)
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)

    def init(params):
        _check(private, params)
        public, own = split(private, params)
        kept = client_optimizer.init(split_params(task, params)[0]) if keeps else None
        return PrivateState(*start(public), own), PrivateRow(own, kept)

    def toward(x, pull):
        def pulled(y):
            public, own = split(private, y)
            return merge(pull(public, x), jax.tree.map(jnp.zeros_like, own))

        return pulled

    def client(key, server, row, batches):
        received = merge(server.params, row.params)
        x, _ = split_params(task, server.params)
        first = row.optimizer if keeps else None
        pulled = None if pull is None else toward(x, pull)
        done = train(task, client_optimizer, received, batches, key, pull=pulled, gradient_fn=gradient_fn, state=first)
        public, own = split(private, done.params)
        row = PrivateRow(own, done.optimizer if keeps else None)
        delta = difference(public, server.params)
        return ClientUpdate(delta, weight=batches.num_examples, state=row, metrics=done.metrics)

    def server(key, server, aggregate):
        return PrivateState(*update(server, aggregate.value), server.first)

    return Algorithm(
        task,
        init,
        client,
        server,
        aggregator,
        params=lambda server: merge(server.params, server.first),
        personal=lambda server, row: merge(server.params, row.params),
    )


def _check(private: Private, params: Params) -> None:
    paths = paths_of(params)
    public, own = split(private, params)
    for side, which in ((own, "no parameter"), (public, "every parameter")):
        if not jax.tree.leaves(side):
            raise ArgumentError(
                f"private={private!r} matches {which}: must match some of {paths}, and leave some to be averaged."
            )


def check_private(private: object, head_steps: object) -> None:
    """A pattern that can be read, or a function; and steps of the head where there is one."""
    if private is None:
        check(head_steps is None, "head_steps", head_steps, "needs private=, the parameters that are trained first.")
        return
    check_pattern("private", private)


def _head_first(optimizer: optax.GradientTransformation, private: Private, head_steps: int):
    """An optimizer of its own for each side: the private one's takes the first steps, the public one's the others."""

    def init(params: Any) -> Any:
        public, own = split(private, params)
        return jnp.zeros((), jnp.int32), optimizer.init(public), optimizer.init(own)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        count, *before = state
        head = count < head_steps
        sides = zip(split(private, updates), before, split(private, params), (~head, head), strict=True)
        moved, after = [], []
        for gradient, old, side, moves in sides:
            move, new = optimizer.update(gradient, old, side)
            moved.append(where(moves, move, jax.tree.map(jnp.zeros_like, move)))
            after.append(where(moves, new, old))
        return merge(*moved), (count + 1, *after)

    return optax.GradientTransformation(init, update)
