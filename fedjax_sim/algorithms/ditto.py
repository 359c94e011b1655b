"""Ditto: fair and robust federated learning through personalisation (Li et al. 2021, Algorithm 1)."""

import jax
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import check_optimizer, difference, first_state, local_step
from fedjax_sim.algorithms.own import current, first_own, personal_metrics, trained_once_more
from fedjax_sim.client import Task, local_steps, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check_not_negative
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate


@named("task", "aggregator")
def ditto(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    lam: Scalar = 1.0,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
    *,
    personal_optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
    r"""Ditto: FedAvg, beside which each client trains a model of its own that is pulled to the server's.

    The server's x is learnt as by `fs.fedavg`, to the bit. A client's own model goes on from where it was by

    .. math:: v_k \leftarrow v_k - \eta \left( g_k(v_k) + \lambda (v_k - x) \right)

    on the same batches, x being the model that it received in this round. :math:`\lambda = 0` is local training alone,
    a large one FedAvg. A round computes two gradients for each local step; the row of a client is one model.

    A client's model begins as the one that it receives in its first round (the paper leaves :math:`v_k^0` open), and an
    unseen client has the server's. `client/personal_loss` is that of the :math:`v_k`.

    Args:
        task: what is learnt. Own models have collections (batch statistics) of their own.
        client_optimizer: an optax transformation, started anew in each round, for both.
        lam: :math:`\lambda`, zero or more; may be traced.
        server_optimizer, aggregator: as in `fs.fedavg`.
        personal_optimizer: for :math:`v_k`, where it is another one.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.ditto(task, optax.sgd(0.05), lam=0.5)
    """
    check_optimizer("client_optimizer", client_optimizer)
    check_not_negative("lam", lam)
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", server_optimizer)
    own_optimizer = client_optimizer if personal_optimizer is None else personal_optimizer
    check_optimizer("personal_optimizer", own_optimizer)
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)

    def client(key, server, row, batches):
        x, _ = split_params(task, server.params)
        pull = lambda v: jax.tree.map(lambda v, x: lam * (v - x), v, x)
        step, own_step = local_step(task, client_optimizer), local_step(task, own_optimizer, pull=pull)

        def both(carry, batch, key):
            """On one batch, which is gathered once."""
            (sent, metrics), (own, own_metrics) = step(carry[0], batch, key), own_step(carry[1], batch, key)
            return (sent, own), {**metrics, **personal_metrics(own_metrics)}

        received, mine = server.params, current(row, server.params)
        first = first_state(task, client_optimizer, received), first_state(task, own_optimizer, mine)
        ((params, _), (own, _)), metrics = local_steps(both, ((received, first[0]), (mine, first[1])), batches, key)
        return ClientUpdate(
            difference(params, received),
            weight=batches.num_examples,
            state=trained_once_more(row, own),
            metrics=metrics,
        )

    return Algorithm(
        task,
        init=lambda params: (start(params), first_own(params)),
        client=client,
        server=lambda key, server, aggregate: update(server, aggregate.value),
        aggregator=aggregator,
        params=lambda server: server.params,
        personal=lambda server, row: current(row, server.params),
    )
