"""q-FedAvg: fair resource allocation (Li, Sanjabi, Beirami and Smith 2020, Algorithm 2)."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, uniform
from fedjax_sim.algorithms.local import difference, discount, sgd, train
from fedjax_sim.client import Task, evaluation, local_steps, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check_not_negative, check_positive
from fedjax_sim.core.metrics import Mean
from fedjax_sim.core.pytree import squared_norm
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate


@named("task", "aggregator")
def qfedavg(task: Task, client_lr: Scalar, q: Scalar, aggregator: Aggregator | Reducer | None = None) -> Algorithm:
    r"""q-FedAvg: clients whose loss is high count more, so that losses become more alike.

    It minimises :math:`\sum_k F_k^{q+1} / (q + 1)`. With :math:`F_k` the client's loss at the received model x, before
    it trains, and :math:`\Delta_k = y_k - x` after SGD steps at rate :math:`\eta = 1/L`,

    .. math::

        x \leftarrow x + \frac{\sum_S F_k^q \Delta_k}{\sum_S \left( F_k^q + q L F_k^{q-1} \lVert \Delta_k \rVert^2
        \right)}

    which is the paper's :math:`x - \sum \Delta_k / \sum h_k`, both divided by L. The rate fixes L, which is why
    there is no `client_optimizer`. q = 0 is FedAvg with equal weights; large q approaches the fairness of `fs.afl`.

    A client sends its denominator's term beside the numerator's. :math:`F_k` costs a pass over its batches without
    gradients, and is of evaluation (no dropout). Losses must not be negative. A client of loss 0 adds nothing (q > 0),
    and if all have loss 0, the model stays. Collections (batch statistics) are averaged plainly.

    Args:
        task: what is learnt.
        client_lr: :math:`\eta`; may be traced.
        q: zero or more; may be traced.
        aggregator: a chain of uniform weights; None for `fs.aggregate.mean("uniform")`. The payload has the parts
            `delta`, :math:`F_k^q \Delta_k`, and `scale`.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.qfedavg(task, client_lr=0.05, q=1.0)
    """
    check_positive("client_lr", client_lr)
    check_not_negative("q", q)
    measure = evaluation(task)

    def client(key, params, row, batches):
        at_x = lambda _, batch, key: ((), {"loss": measure(params, batch, key)["loss"]})
        loss = local_steps(at_x, (), batches, key)[1]["loss"]
        assert isinstance(loss, Mean)
        loss = loss.total / jnp.where(loss.weight > 0, loss.weight, 1.0)
        done = train(task, sgd(client_lr), params, batches, key)
        delta, held = split_params(task, difference(done.params, params))
        power = loss**q
        slope = jnp.where(loss > 0, q * jnp.where(loss > 0, loss, 1.0) ** (q - 1), 0.0)
        payload = {
            "delta": replace(jax.tree.map(lambda d: power * d, delta), held),
            "scale": (power + slope * squared_norm(delta) / client_lr) / discount(batches),
        }
        return ClientUpdate(payload, weight=1.0, metrics={**done.metrics, "start_loss": Mean(loss, 1.0)})

    def server(key, params, aggregate):
        delta, held = split_params(task, aggregate.value["delta"])
        scale = aggregate.value["scale"]
        factor = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1.0), 0.0)
        return jax.tree.map(jnp.add, params, replace(jax.tree.map(lambda d: factor * d, delta), held))

    return Algorithm(
        task,
        init=lambda params: (params, None),
        client=client,
        server=server,
        aggregator=uniform(aggregator, "the step is a ratio of plain sums over clients"),
    )
