"""FedDyn: dynamic regularisation (Acar et al. 2021, Algorithm 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, uniform
from fedjax_sim.algorithms.local import difference, sgd, train
from fedjax_sim.client import Task, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check_count, check_positive
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class FedDynState(NamedTuple):
    """Server state: the mean of the clients' models, the model that is sent, and h (for what gradients train).

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> server, client_gradient = fs.feddyn(task, client_lr=0.1).init(jnp.ones(2))
        >>> print(server.params, server.sent, server.h, client_gradient)
        [1. 1.] [1. 1.] [0. 0.] [0. 0.]
    """

    params: Params
    sent: Params
    h: Params


@named("task", "aggregator")
def feddyn(
    task: Task,
    client_lr: Scalar,
    alpha: Scalar = 0.01,
    num_clients: int | None = None,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""FedDyn: each client's objective is bent so that all of them have the federation's optimum in common.

    A client that receives x takes SGD steps on

    .. math:: f_k(y) - \langle g_k, y \rangle + \frac{\alpha}{2} \lVert y - x \rVert^2, \qquad
        g_k \leftarrow g_k - \alpha (y_k - x)

    where :math:`g_k` is its row. The server keeps their mean and corrects the model by it:

    .. math:: h \leftarrow h - \frac{\alpha}{N} \sum_S (y_k - x), \qquad \bar y = \frac{1}{|S|} \sum_S y_k, \qquad
        x \leftarrow \bar y - h / \alpha

    Two models come of a round. :math:`\bar y` is the one that `sim.params` gives, to be evaluated; x, which may be far
    off while :math:`h` is not yet small, is `state.server.sent`, and all that clients receive. Where the local problems
    are solved, the fixed point is the optimum of the clients' plain mean.

    Deviation: the paper's local problem is solved exactly; here by as many SGD steps as the batching has. The authors'
    code moreover divides :math:`\alpha` by a client's share of examples; here all clients have the same. Collections
    (batch statistics) are averaged.

    Args:
        task: what is learnt.
        client_lr: of the local SGD; may be traced.
        alpha: :math:`\alpha`, positive; may be traced. Large values bind clients to x, small ones correct more.
        num_clients: N, the whole population, not the cohort; None for the simulation's. Another one is refused.
        aggregator: a chain of uniform weights; None for `fs.aggregate.mean("uniform")`.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.feddyn(task, client_lr=0.05, alpha=0.1)
    """
    check_positive("client_lr", client_lr)
    check_positive("alpha", alpha, "As it goes to 0 the corrections grow without bound; use fs.fedavg for none.")
    if num_clients is not None:
        check_count("num_clients", num_clients)

    def init(params: Params):
        zeros = jax.tree.map(jnp.zeros_like, split_params(task, params)[0])
        return FedDynState(params, params, zeros), zeros

    def client(key, server, g, batches):
        x, _ = split_params(task, server.sent)
        bend = lambda y: jax.tree.map(lambda y, x, g: alpha * (y - x) - g, y, x, g)
        done = train(task, sgd(client_lr), server.sent, batches, key, pull=bend)
        delta = difference(done.params, server.sent)
        g = jax.tree.map(lambda g, d: g - alpha * d, g, split_params(task, delta)[0])
        return ClientUpdate(delta, weight=1.0, state=g, metrics=done.metrics)

    def server(key, server, aggregate):
        delta, _ = split_params(task, aggregate.value)
        population = aggregate.population if num_clients is None else num_clients
        assert population is not None  # a simulation tells it
        share = aggregate.count / population
        h = jax.tree.map(lambda h, d: h - alpha * share * d, server.h, delta)
        mean = jax.tree.map(jnp.add, server.sent, aggregate.value)
        trained, held = split_params(task, mean)
        sent = jax.tree.map(lambda y, h: y - h / alpha, trained, h)
        return FedDynState(mean, replace(sent, held), h)

    return Algorithm(
        task,
        init,
        client,
        server,
        aggregator=uniform(aggregator, "h is a plain mean over clients"),
        params=lambda server: server.params,
        num_clients=num_clients,
    )
