"""IFCA: iterative federated clustering (Ghosh et al. 2020, Algorithm 1); HypCluster (Mansour et al. 2020) is alike."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer, as_aggregator
from fedjax_sim.algorithms.base import Algorithm, InitFunction
from fedjax_sim.algorithms.local import check_optimizer, difference, discount, train
from fedjax_sim.client import Task, evaluation, local_steps, replace, split_params
from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.errors import check, check_count, check_not_negative
from fedjax_sim.core.metrics import Mean
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class Clusters(NamedTuple):
    """Server state: the models of the clusters, and who chose them last.

    Attributes:
        params: [k, ...] a leaf.
        share: [k], each cluster's share of the last round's weight; all of it the first one's before any.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> server, cluster = fs.ifca(task, optax.sgd(0.1), k=3).init(jnp.ones(2))
        >>> server.params.shape, int(cluster)
        ((3, 2), -1)
    """

    params: Params
    share: Array


@named("task", "aggregator")
def ifca(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    k: int,
    jitter: Scalar = 0.01,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""IFCA: k models, of which each client trains the one that has the least loss on its examples.

    .. math::

        j_i = \arg\min_j F_i(x_j), \qquad
        x_j \leftarrow x_j + \sum_{i: j_i = j} n_i (y_i - x_j) / \sum_{i: j_i = j} n_i

    with :math:`y_i` after local steps from :math:`x_{j_i}`. A cluster that nobody chose stays as it is. :math:`F_i` is
    the mean loss over the client's batches of the round; one pass for each model is computed. k = 1 is FedAvg.

    A client receives k models. Its payload is its change in the place of its cluster and zeros in the others', and the
    cluster's indicator, so that plain and secure sums suffice; `aggregate/uplink_bits` counts all of it, where the
    paper's client sends one model and a number. The row of a client is its last cluster, -1 before its first round.

    An unseen client has the model that most of the last round's weight chose; so does `sim.params`.

    Args:
        task: what is learnt. Collections (batch statistics) are the clusters' own.
        client_optimizer: an optax transformation, started anew in each round.
        k: clusters; one for each hidden population, and with many more than that some stay empty.
        jitter: standard deviation of what is added to the first model for each other cluster, as equal ones would tie
            for good. Clusters that differ too little may all collapse into one: more jitter helps.
        aggregator: a linear chain or reducer; None for the mean by examples.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.ifca(task, optax.sgd(0.05), k=2)
    """
    check_optimizer("client_optimizer", client_optimizer)
    check_count("k", k)
    check_not_negative("jitter", jitter)
    whole = as_aggregator(aggregator)
    check(whole.reducer.linear, "aggregator", whole.name, "clients send zeros for other clusters: use a mean.")
    measure = evaluation(task)

    def client(key, server, row, batches):
        def losses(total, batch, key):
            def of(params):
                loss = measure(params, batch, key)["loss"]
                assert isinstance(loss, Mean)
                return jnp.stack([loss.total, loss.weight])

            return total + jax.vmap(of)(server.params), {}

        total, _ = local_steps(losses, jnp.zeros((k, 2)), batches, key)
        cluster = jnp.argmin(total[:, 0] / jnp.where(total[:, 1] > 0, total[:, 1], 1.0)).astype(jnp.int32)
        received = _of(server.params, cluster)
        done = train(task, client_optimizer, received, batches, key)
        chosen = jax.nn.one_hot(cluster, k)
        delta = jax.tree.map(
            lambda d: jnp.zeros((k, *d.shape), d.dtype).at[cluster].set(d), difference(done.params, received)
        )
        payload = {"delta": delta, "share": chosen / discount(batches)}
        return ClientUpdate(payload, batches.num_examples, state=cluster, metrics=done.metrics)

    def server(key, server, aggregate):
        share = aggregate.value["share"]
        scale = jnp.where(share > 0, 1 / jnp.where(share > 0, share, 1.0), 0.0)
        moved = lambda x, d: x + (scale.reshape(k, *[1] * (x.ndim - 1)) * d).astype(x.dtype)
        return Clusters(jax.tree.map(moved, server.params, aggregate.value["delta"]), share)

    most = lambda server: jnp.argmax(server.share)
    return Algorithm(
        task,
        _init(task, k, jitter),
        client,
        server,
        whole,
        params=lambda server: _of(server.params, most(server)),
        personal=lambda server, row: _of(server.params, jnp.where(row < 0, most(server), row)),
    )


def _init(task: Task, k: int, jitter: Scalar) -> InitFunction:
    """The first model for the first cluster, and others around it."""

    def init(params: Params):
        trained, held = split_params(task, params)
        leaves, structure = jax.tree.flatten(trained)
        keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))  # the same in each run

        def several(key, leaf):
            others = leaf[None] + (jitter * jax.random.normal(key, (k - 1, *leaf.shape))).astype(leaf.dtype)
            return jnp.concatenate([leaf[None], others])

        models = jax.tree.unflatten(structure, [several(*each) for each in zip(keys, leaves, strict=True)])
        same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (k, *leaf.shape)), held)
        return Clusters(replace(models, same), jax.nn.one_hot(0, k)), jnp.full((), -1, jnp.int32)

    return init


def _of(models: Params, cluster: Scalar) -> Params:
    """One of the models."""
    return jax.tree.map(lambda leaf: leaf[cluster], models)
