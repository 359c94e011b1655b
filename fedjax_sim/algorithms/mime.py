"""Mime and MimeLite: a centralised optimizer's state, held still while clients train (Karimireddy et al. 2020)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, Phase, ServerState, server_init
from fedjax_sim.algorithms.local import check_optimizer, difference, full_gradient, train
from fedjax_sim.client import Gradient, Task, gradient, replace, split_params
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class MimeState(NamedTuple):
    """Server state of Mime: the model, the optimizer's state, and the cohort's gradient in the round under way.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> server, _ = fs.mime(task, optax.sgd(0.1, momentum=0.9)).init(jnp.ones(2))
        >>> print(server.params, server.optimizer[0].trace, server.gradient)
        [1. 1.] [0. 0.] [0. 0.]
    """

    params: Params
    optimizer: optax.OptState
    gradient: Params


@named("task", "aggregator")
def mimelite(
    task: Task, optimizer: optax.GradientTransformation, aggregator: Aggregator | Reducer | None = None
) -> Algorithm:
    r"""MimeLite: local steps of any optimizer whose state is the server's, the same for all and still during a round.

    With the optimizer's step U and its change of state V,

    .. math::

        y \leftarrow y - U(g_k(y), s), \qquad x \leftarrow x + \sum_k p_k (y_k - x), \qquad
        s \leftarrow V \left( \sum_k p_k \nabla f_k(x), s \right), \qquad p_k = n_k / \sum_S n_k

    so that s is what centralised training would make of full gradients at the received models, never of local steps. A
    client sends both sums in one message; it computes two gradients for each local step of FedAvg.

    Choose it where a momentum or an adaptive rate helps and clients drift. Without a state it is FedAvg.

    Deviations: clients weigh by examples (pass `fs.aggregate.mean("uniform")` for the paper's plain mean);
    :math:`\nabla f_k(x)` is over the batches of the round, which under `drop_remainder` or `steps` are not all; the
    paper's momentum, :math:`(1 - \beta) g + \beta m`, is optax's at a rate :math:`1 - \beta` times as large.
    Collections (batch statistics) are averaged plainly.

    Args:
        task: what is learnt.
        optimizer: an optax transformation, rate included: `optax.sgd(lr, momentum=0.9)`, `optax.adam(lr)`. A schedule
            advances once a round.
        aggregator: a chain or reducer; None for the mean by examples. The payload has the parts `delta`, `gradient`.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.mimelite(task, optax.sgd(0.05, momentum=0.9))
    """
    check_optimizer("optimizer", optimizer)
    start = server_init(task, optimizer)

    def client(key, server, row, batches):
        at_x, _ = full_gradient(task, server.params, batches, key)
        done = train(task, _still(optimizer, server.optimizer), server.params, batches, key)
        payload = {"delta": difference(done.params, server.params), "gradient": at_x}
        return ClientUpdate(payload, weight=batches.num_examples, metrics=done.metrics)

    def server(key, server, aggregate):
        state = _advanced(task, optimizer, server, aggregate.value["gradient"])
        return ServerState(jax.tree.map(jnp.add, server.params, aggregate.value["delta"]), state)

    return Algorithm(
        task, lambda params: (start(params), None), client, server, aggregator, params=lambda server: server.params
    )


@named("task", "aggregator")
def mime(
    task: Task, optimizer: optax.GradientTransformation, aggregator: Aggregator | Reducer | None = None
) -> Algorithm:
    r"""Mime: MimeLite whose local gradients are corrected towards the cohort's.

    .. math::

        c = \sum_k p_k \nabla f_k(x), \qquad y \leftarrow y - U(g_k(y) - g_k(x) + c, s), \qquad s \leftarrow V(c, s)

    where both gradients of a local step are of the same batch, with the same draws. Two passes over the cohort: the
    first finds c, which the second needs, so that a client computes three gradients for each local step of FedAvg.
    Unlike MimeLite it has the federation's optimum for a fixed point.

    Deviations and arguments are as of `fs.mimelite`; the aggregator is that of either pass.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.mime(task, optax.sgd(0.05, momentum=0.9))
    """
    check_optimizer("optimizer", optimizer)
    gradient_fn = gradient(task)
    start = server_init(task, optimizer)

    def init(params: Params):
        return MimeState(*start(params), jax.tree.map(jnp.zeros_like, split_params(task, params)[0])), None

    def measure(key, server, row, batches):
        at_x, metrics = full_gradient(task, server.params, batches, key)
        return ClientUpdate(at_x, weight=batches.num_examples, metrics={"start_loss": metrics["loss"]})

    def keep(key, server, aggregate):
        return server._replace(gradient=aggregate.value)

    def client(key, server, row, batches):
        def corrected(params, batch, key):
            here, there = gradient_fn(params, batch, key), gradient_fn(server.params, batch, key)
            (g, held), (at_x, _) = split_params(task, here.grads), split_params(task, there.grads)
            g = jax.tree.map(lambda g, at_x, c: g - at_x + c, g, at_x, server.gradient)
            return Gradient(replace(g, held), here.metrics, here.variables)

        still = _still(optimizer, server.optimizer)
        done = train(task, still, server.params, batches, key, gradient_fn=corrected)
        delta = difference(done.params, server.params)
        return ClientUpdate(delta, weight=batches.num_examples, metrics=done.metrics)

    def move(key, server, aggregate):
        state = _advanced(task, optimizer, server, server.gradient)
        return MimeState(jax.tree.map(jnp.add, server.params, aggregate.value), state, server.gradient)

    return Algorithm(
        task,
        init,
        params=lambda server: server.params,
        phases=(Phase(measure, keep, aggregator), Phase(client, move, aggregator)),
    )


def _still(optimizer: optax.GradientTransformation, state: optax.OptState) -> optax.GradientTransformation:
    """The optimizer with its state held as it is."""
    update = lambda grads, nothing, params=None: (optimizer.update(grads, state, params)[0], nothing)
    return optax.GradientTransformation(lambda params: (), update)  # type: ignore[arg-type]


def _advanced(
    task: Task, optimizer: optax.GradientTransformation, server: ServerState | MimeState, gradient: Params
) -> optax.OptState:
    """The optimizer's state after a full gradient at the server's model."""
    return optimizer.update(gradient, server.optimizer, split_params(task, server.params)[0])[1]
