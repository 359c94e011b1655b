"""Federated averaging (McMahan et al. 2017, Algorithm 1), with any client and server optimizer.

With a proximal term it is FedProx (Li et al. 2020, Algorithm 2): the same client, another gradient.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import GradientFunction, check_optimizer, difference, train
from fedjax_sim.algorithms.private import Private, check_private, private_averaging
from fedjax_sim.client import Task, split_params
from fedjax_sim.core.arrays import PyTree, Scalar
from fedjax_sim.core.errors import check, check_not_negative
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params

Kept = Literal["reset", "keep", "average"]
"""What becomes of the state of a client's optimizer after a round."""


class AveragedState(NamedTuple):
    """Server state of `client_optimizer_state="average"`: the model, the server optimizer's state and the clients'.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> algorithm = fs.fedavg(task, optax.sgd(0.1, 0.9), client_optimizer_state="average")
        >>> server, _ = algorithm.init(jnp.ones(2))
        >>> print(server.params, server.client_optimizer[0].trace)
        [1. 1.] [0. 0.]
    """

    params: Params
    optimizer: optax.OptState
    client_optimizer: optax.OptState


@named("task", "aggregator")
def fedavg(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
    client_optimizer_state: Kept = "reset",
    *,
    private: Private | None = None,
    head_steps: int | None = None,
) -> Algorithm:
    r"""FedAvg, and with an adaptive server optimizer FedOpt (Reddi et al. 2021, Algorithm 1).

    .. math:: \Delta_k = y_k - x, \qquad x \leftarrow x + \sum_k n_k \Delta_k / \sum_k n_k

    where :math:`y_k` is the client's model after its local steps from x, and the server optimizer takes the place of
    the sum's plain addition.

    Args:
        task: what is learnt.
        client_optimizer: an optax transformation.
        server_optimizer: one of `fs.server` or any optax transformation, fed with the pseudo-gradient; None for
            `optax.sgd(1.0)`, FedAvg itself.
        aggregator: a chain or reducer; None for the mean by examples.
        client_optimizer_state: of momentum and the like. "reset": each round starts anew, as in the paper. "keep": a
            client goes on from its own of the last round that it took part in, a row a client. "average": it is sent
            up too and averaged like the model, and clients start from the mean; the payload then has the parts
            `delta` and `optimizer`, and numbers that are whole, such as counts of steps, are rounded to whole ones.
        private: which parameters and collections stay with the client, as its row: a regular expression that is
            searched for in their paths ("layers/1/w"), or a function of a path. The rest is averaged, and all that is
            sent either way. A client begins with their first values, which `sim.params` holds for clients never seen.
            With `fs.compress_downlink` say `broadcast=lambda server: server.params`.
        head_steps: None to train both together, as FedPer does. Otherwise a client's first steps of a round train the
            private parameters alone, and its others the rest alone (FedRep); 0 leaves them as they are (FedBABU).

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedavg(task, optax.sgd(0.05), server_optimizer=fs.server.fedyogi(1e-2))
    """
    return averaging(
        task,
        client_optimizer,
        server_optimizer,
        aggregator,
        client_optimizer_state=client_optimizer_state,
        private=private,
        head_steps=head_steps,
    )


@named("task", "aggregator")
def fedprox(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
    client_optimizer_state: Kept = "reset",
    *,
    mu: Scalar,
    private: Private | None = None,
) -> Algorithm:
    r"""FedProx: FedAvg whose clients minimise :math:`f_k(y) + \frac{\mu}{2} \lVert y - x \rVert^2`.

    The term's gradient :math:`\mu (y - x)` is added to each step's; x is the model that the client received. Partial
    work of slow clients is kept, as in the paper. Deviation: clients are weighted by examples, where the paper
    samples them in that proportion and averages plainly; pass `aggregator=fs.aggregate.mean("uniform")` for the
    latter.

    Args:
        mu: :math:`\mu`, zero or more; 0 is FedAvg. Others as in `fs.fedavg`; private parameters are not pulled.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedprox(task, optax.sgd(0.05), mu=0.1)
    """
    check_not_negative("mu", mu)
    return averaging(
        task,
        client_optimizer,
        server_optimizer,
        aggregator,
        client_optimizer_state=client_optimizer_state,
        private=private,
        pull=lambda y, x: jax.tree.map(lambda a, b: mu * (a - b), y, x),
    )


def averaging(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None,
    aggregator: Aggregator | Reducer | None,
    *,
    client_optimizer_state: Kept = "reset",
    pull: Callable[[Params, Params], Params] | None = None,
    gradient_fn: GradientFunction | None = None,
    private: Private | None = None,
    head_steps: int | None = None,
) -> Algorithm:
    """FedAvg with another local gradient.

    Args:
        pull: `(trained params, the received ones) ->` an addition to each gradient.
        gradient_fn: in place of the task's gradient.
        private, head_steps: as of `fs.fedavg`.
    """
    kept = client_optimizer_state
    check_optimizer("client_optimizer", client_optimizer)
    check(kept in ("reset", "keep", "average"), "client_optimizer_state", kept, 'must be "reset", "keep" or "average".')
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", server_optimizer)
    check_private(private, head_steps)
    if private is not None:
        return private_averaging(
            task,
            client_optimizer,
            server_optimizer,
            aggregator,
            private=private,
            head_steps=head_steps,
            client_optimizer_state=kept,
            pull=pull,
            gradient_fn=gradient_fn,
        )
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)

    def init(params):
        state = start(params)
        of_client = client_optimizer.init(split_params(task, params)[0])
        if kept == "average":
            return AveragedState(*state, of_client), None
        return state, of_client if kept == "keep" else None

    def client(key, server, row, batches):
        first = None if kept == "reset" else row if kept == "keep" else server.client_optimizer
        x, _ = split_params(task, server.params)
        pulled = None if pull is None else lambda y, pull=pull: pull(y, x)
        done = train(
            task, client_optimizer, server.params, batches, key, pull=pulled, gradient_fn=gradient_fn, state=first
        )
        payload = difference(done.params, server.params)
        if kept == "average":
            moved = jax.tree.map(lambda a, b: jnp.asarray(a - b, _wide(b)), done.optimizer, first)
            payload = {"delta": payload, "optimizer": moved}
        state = done.optimizer if kept == "keep" else None
        return ClientUpdate(payload, weight=batches.num_examples, state=state, metrics=done.metrics)

    def server(key, server, aggregate):
        if kept != "average":
            return update(server, aggregate.value)
        moved = jax.tree.map(_added, server.client_optimizer, aggregate.value["optimizer"])
        return AveragedState(*update(server, aggregate.value["delta"]), moved)

    return Algorithm(task, init, client, server, aggregator, params=lambda server: server.params)


def _wide(leaf: jax.Array) -> jnp.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _added(leaf: PyTree, change: jax.Array) -> jax.Array:
    """A leaf and its clients' mean change; a whole number stays whole."""
    change = change if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.round(change)
    return (leaf + change).astype(leaf.dtype)
