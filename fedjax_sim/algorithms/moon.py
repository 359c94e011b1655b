"""MOON: model-contrastive federated learning (Li, He and Song 2021, Algorithm 1)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import check_optimizer, difference, train
from fedjax_sim.client import Task
from fedjax_sim.client.task import named_loss
from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.errors import check, check_not_negative, check_positive
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate

Features = Callable[..., Array]
"""`(params, batch, key) -> [B, F]`, what a model makes of each example before its last layer; `frozen` as a loss."""


@named("task", "aggregator")
def moon(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    features: Features,
    mu: Scalar = 1.0,
    tau: Scalar = 0.5,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""MOON: FedAvg whose clients keep what they see close to what the received model sees.

    With features z of an example under the model that trains, :math:`z_x` under the received one and :math:`z_o` under
    the client's own of its last round, each example's loss has

    .. math:: \mu \left( -\log \frac{e^{\cos(z, z_x) / \tau}}{e^{\cos(z, z_x) / \tau} + e^{\cos(z, z_o) / \tau}} \right)

    added to it. The row of a client is its last local model, the first model before that. A step computes one gradient
    and two more forward passes. :math:`\mu = 0` is FedAvg.

    Args:
        task: what is learnt.
        client_optimizer: an optax transformation, started anew in each round.
        features: `(params, batch, key) -> [B, F]`; of a Flax module, a method that stops before the last layer.
        mu: :math:`\mu`, zero or more; may be traced.
        tau: the temperature :math:`\tau`; may be traced.
        server_optimizer, aggregator: as in `fs.fedavg`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, fedjax_sim as fs
        >>> def features(params, batch, key):
        ...     return jnp.tanh(batch["x"] @ params["body"])
        >>> def loss(params, batch, key):
        ...     return (features(params, batch, key) @ params["head"] - batch["y"]) ** 2
        >>> task = fs.Task(lambda key: {"body": jax.random.normal(key, (3, 4)), "head": jnp.zeros(4)}, loss)
        >>> algorithm = fs.moon(task, optax.sgd(0.1), features, mu=1.0)
    """
    check_optimizer("client_optimizer", client_optimizer)
    check(callable(features), "features", features, "must be a function (params, batch, key) -> [B, F].")
    check_not_negative("mu", mu)
    check_positive("tau", tau)
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", server_optimizer)
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)

    def client(key, server, own, batches):
        def loss(params, batch, key, **frozen):
            result = named_loss(task.loss(params, batch, key, **frozen))
            z, received, last = (features(model, batch, key, **frozen) for model in (params, server.params, own))
            # -log of a softmax over two: the softplus of their difference.
            contrast = jax.nn.softplus((_cosine(z, last) - _cosine(z, received)) / tau)
            return dataclasses.replace(result, value=result.value + mu * contrast)

        done = train(task._replace(loss=loss), client_optimizer, server.params, batches, key)
        delta = difference(done.params, server.params)
        return ClientUpdate(delta, weight=batches.num_examples, state=done.params, metrics=done.metrics)

    return Algorithm(
        task,
        init=lambda params: (start(params), params),
        client=client,
        server=lambda key, server, aggregate: update(server, aggregate.value),
        aggregator=aggregator,
        params=lambda server: server.params,
    )


def _cosine(a: Array, b: Array) -> jax.Array:
    """[B]; 0 where either has no length. Norms are not taken of zero, where they have no derivative."""
    product = jnp.sum(a * b, axis=-1)
    squares = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    return jnp.where(squares > 0, product / jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
