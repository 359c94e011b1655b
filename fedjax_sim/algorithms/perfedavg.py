"""Per-FedAvg: personalized federated learning by MAML (Fallah, Mokhtari and Ozdaglar 2020, Algorithm 1)."""

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Aggregator, Reducer, mean
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import difference, sgd
from fedjax_sim.client import Task, gradient, local_steps, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_positive
from fedjax_sim.core.pytree import squared_norm
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate

QUOTIENT = 0.01
"""How far the difference quotient of `order="hf"` goes, as a length: what rounding leaves of it is least about here."""


@named("task", "aggregator")
def perfedavg(
    task: Task,
    alpha: Scalar,
    beta: Scalar,
    order: Literal["exact", "first", "hf"] = "exact",
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""Per-FedAvg: a model that is good after one gradient step on a client's own examples.

    The objective of a client is :math:`f_k(w - \alpha \nabla f_k(w))`. A local step takes three batches:

    .. math::

        u = w - \alpha\, g(w; B), \qquad
        w \leftarrow w - \beta \left( I - \alpha \nabla^2 f(w; B'') \right) g(u; B')

    `order="exact"` has the product with the Hessian by forward differentiation of the gradient, about three gradients a
    step; "hf" by the quotient :math:`(g(w + h d) - g(w - h d)) / 2h`, four; "first" leaves it out, two.
    B' and B'' are the client's next batches, its first ones after its last: a client of one batch has it three times.

    The result is the server's model, for all. A client's own is one step from it,
    `fs.personalise(task, sim.params(state), clients, steps=1, optimizer=optax.sgd(alpha))`.

    Args:
        task: what is learnt. Collections (batch statistics) are those of B.
        alpha: :math:`\alpha`, the rate of the step that will be taken; may be traced.
        beta: :math:`\beta`, the local rate; may be traced.
        order: of the derivative.
        aggregator: a chain or reducer; None for the plain mean, as in the paper.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.perfedavg(task, alpha=0.01, beta=0.05)
    """
    check_positive("alpha", alpha)
    check_positive("beta", beta)
    check(order in ("exact", "first", "hf"), "order", order, 'must be "exact", "first" or "hf".')
    start, update = server_init(task, sgd(1.0)), server_update(task, sgd(1.0))
    gradient_fn = gradient(task)

    def client(key, server, row, batches):
        def step(carry, batch, key):
            params, number = carry
            w, held = split_params(task, params)
            after = lambda ahead: batches.batch((number + ahead) % jnp.maximum(batches.num_steps, 1))
            here = gradient_fn(params, batch, key)

            def slope(w, batch):
                return split_params(task, gradient_fn(replace(w, held), batch, key).grads)[0]

            moved = lambda w, d, rate: jax.tree.map(lambda w, d: w + (rate * d).astype(w.dtype), w, d)
            direction = slope(moved(w, split_params(task, here.grads)[0], -alpha), after(1))
            if order != "first":
                third = after(2)
                curved = _curvature(order, lambda w: slope(w, third), w, direction)
                direction = moved(direction, curved, -alpha)
            held = {**held, **here.variables}
            return (replace(moved(w, direction, -beta), held), number + 1), here.metrics

        first = server.params, jnp.zeros((), jnp.int32)
        (params, _), metrics = local_steps(step, first, batches, key)
        return ClientUpdate(difference(params, server.params), batches.num_examples, metrics=metrics)

    return Algorithm(
        task,
        init=lambda params: (start(params), None),
        client=client,
        server=lambda key, server, aggregate: update(server, aggregate.value),
        aggregator=mean("uniform") if aggregator is None else aggregator,
        params=lambda server: server.params,
    )


def _curvature(order, slope, w, direction):
    """The Hessian's product with a direction."""
    if order == "exact":
        return jax.jvp(slope, (w,), (direction,))[1]
    norm = jnp.sqrt(squared_norm(direction))
    h = QUOTIENT / jnp.where(norm > 0, norm, 1.0)
    ends = [slope(jax.tree.map(lambda w, d, s=s: w + (s * d).astype(w.dtype), w, direction)) for s in (h, -h)]
    return jax.tree.map(lambda a, b: (a - b) / (2 * h), *ends)
