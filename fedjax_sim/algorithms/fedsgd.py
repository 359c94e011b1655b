"""FedSGD (McMahan et al. 2017): one gradient of all its examples from each client."""

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import check_optimizer
from fedjax_sim.client import Task, gradient, local_steps
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate


@named("task", "aggregator")
def fedsgd(
    task: Task,
    server_optimizer: optax.GradientTransformation,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""FedSGD: the server takes one step on the mean of the clients' full gradients.

    .. math:: x \leftarrow x - \eta \sum_k n_k \nabla f_k(x) / \sum_k n_k

    Each client's gradient is summed over its batches at the received model, so that it is its full-batch gradient
    whatever the batch size; with `epochs=1` and `reduction="mean"` that is centralised gradient descent on the
    cohort's examples. The payload is the negated gradient, a delta as in every method. With token weights the gradient
    of a client is :math:`\sum_i w_i \nabla l_i / \sum_i w_i`, and its weight :math:`\sum_i w_i`.

    Args:
        task: what is learnt; without model collections.
        server_optimizer: `optax.sgd(lr)`, or any other.
        aggregator: a chain or reducer; None for the mean by the clients' weights.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedsgd(task, optax.sgd(0.1))
    """
    check_optimizer("server_optimizer", server_optimizer)
    if task.collections:
        raise ArgumentError(
            f"task.collections={task.collections}: fedsgd has no local model to update them on; use "
            'batch_stats="frozen", or fedavg.'
        )
    gradient_fn = gradient(task._replace(reduction="sum"))
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)

    def client(key, server, row, batches):
        def step(total, batch, key):
            grads, metrics, _ = gradient_fn(server.params, batch, key)
            return jax.tree.map(jnp.add, total, grads), metrics

        zeros = jax.tree.map(jnp.zeros_like, server.params)
        total, metrics = local_steps(step, zeros, batches, key)
        weight = metrics["loss"].weight  # type: ignore[attr-defined]
        scale = 1.0 if task.reduction == "sum" else 1 / jnp.where(weight > 0, weight, 1.0)
        return ClientUpdate(jax.tree.map(lambda g: -scale * g, total), weight=weight, metrics=metrics)

    return Algorithm(
        task,
        init=lambda params: (start(params), None),
        client=client,
        server=lambda key, server, aggregate: update(server, aggregate.value),
        aggregator=aggregator,
        params=lambda server: server.params,
    )
