"""APFL: adaptive personalized federated learning (Deng, Kamani and Mahdavi 2020, Algorithm 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import check_optimizer, difference
from fedjax_sim.algorithms.own import OwnModel, current, dot, first_own, personal_metrics, trained_once_more
from fedjax_sim.client import Task, gradient, local_steps, replace, split_params
from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.errors import check, check_fraction, check_positive
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class MixedModel(NamedTuple):
    """A client's row: the model of its own, and how much of it there is in the mixture.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> _, row = fs.apfl(task, client_lr=0.1, alpha=0.25).init(jnp.ones(2))
        >>> print(row.own.params, row.alpha)
        [1. 1.] 0.25
    """

    own: OwnModel
    alpha: Array


@named("task", "aggregator")
def apfl(
    task: Task,
    client_lr: Scalar,
    alpha: Scalar = 0.5,
    adaptive: bool = True,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""APFL: each client mixes a model of its own into the server's, and learns how much of it.

    With w the model that a client trains for the server, v its own and :math:`\bar v = \alpha v + (1 - \alpha) w`, a
    local step is

    .. math::

        w \leftarrow w - \eta g(w), \qquad v \leftarrow v - \eta \alpha\, g(\bar v), \qquad
        \alpha \leftarrow \left[ \alpha - \eta \langle v - w, g(\bar v) \rangle \right]_0^1

    all three from the values before it; one :math:`\alpha` a client, by the chain rule. The server averages w as
    `fs.fedavg` does, to the bit. A round computes two gradients for each local step; the row of a client is one model
    and :math:`\alpha`.

    A client's own model begins as the one that it receives in its first round, and an unseen client has the server's.
    Deviation: :math:`\alpha` moves in each local step, where the paper's experiments move it once a round.

    Args:
        task: what is learnt. Own models have collections (batch statistics) of their own, those of :math:`\bar v`.
        client_lr: :math:`\eta`, of plain SGD; may be traced.
        alpha: the first :math:`\alpha`, in [0, 1]; may be traced. Fixed at 0 it is FedAvg, at 1 local training.
        adaptive: False keeps :math:`\alpha` as it is.
        server_optimizer, aggregator: as in `fs.fedavg`.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.apfl(task, client_lr=0.05)
    """
    check_positive("client_lr", client_lr)
    check_fraction("alpha", alpha, closed=True)
    check(isinstance(adaptive, bool), "adaptive", adaptive, "must be True or False.")
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", server_optimizer)
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)
    gradient_fn = gradient(task)

    def client(key, server, row, batches):
        descend = lambda params, grads, rate: jax.tree.map(lambda p, g: p - (rate * g).astype(p.dtype), params, grads)

        def step(carry, batch, key):
            whole_w, whole_v, a = carry
            (w, held_w), (v, held_v) = split_params(task, whole_w), split_params(task, whole_v)
            of_w = gradient_fn(whole_w, batch, key)
            of_mixture = gradient_fn(replace(mixed(v, w, a), held_v), batch, key)
            (up, _), (up_mixed, _) = split_params(task, of_w.grads), split_params(task, of_mixture.grads)
            moved = jnp.clip(a - client_lr * dot(difference(v, w), up_mixed), 0.0, 1.0) if adaptive else a
            w, v = descend(w, up, client_lr), descend(v, up_mixed, client_lr * a)
            after = replace(w, {**held_w, **of_w.variables}), replace(v, {**held_v, **of_mixture.variables}), moved
            return after, {**of_w.metrics, **personal_metrics(of_mixture.metrics)}

        first = server.params, current(row.own, server.params), row.alpha
        (w, v, a), metrics = local_steps(step, first, batches, key)
        row = MixedModel(trained_once_more(row.own, v), a)
        delta = difference(w, server.params)
        return ClientUpdate(delta, weight=batches.num_examples, state=row, metrics=metrics)

    def personal(server, row):
        v, held = split_params(task, current(row.own, server.params))
        return replace(mixed(v, split_params(task, server.params)[0], row.alpha), held)

    return Algorithm(
        task,
        init=lambda params: (start(params), MixedModel(first_own(params), jnp.asarray(alpha, jnp.float32))),
        client=client,
        server=lambda key, server, aggregate: update(server, aggregate.value),
        aggregator=aggregator,
        params=lambda server: server.params,
        personal=personal,
    )


def mixed(own: Params, other: Params, alpha: Scalar) -> Params:
    """Leaf by leaf alpha of the one and the rest of the other."""
    return jax.tree.map(lambda v, w: (alpha * v + (1 - alpha) * w).astype(v.dtype), own, other)
