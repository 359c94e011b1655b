"""AFL: the mixture of domains that is worst for the model (Mohri, Sivek and Suresh 2019; Ro et al. 2021)."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.aggregate import mean
from fedjax_sim.algorithms.base import Algorithm, Phase, server_init, server_update
from fedjax_sim.algorithms.local import check_optimizer, difference, train
from fedjax_sim.client import Task, local_steps
from fedjax_sim.client.bound import keyword
from fedjax_sim.client.task import Columns, ColumnsCheck, named_loss
from fedjax_sim.core.arrays import Batch, Scalar
from fedjax_sim.core.errors import ArgumentError, check, check_count, check_not_negative
from fedjax_sim.core.metrics import Mean
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class AFLState(NamedTuple):
    """Server state: the model, the server optimizer's state, and [D] of the domains.

    Attributes:
        params, optimizer: of the model.
        domain_weights: lambda, which sums to 1.
        losses: each domain's mean loss at the last round's received model; 0 where it was absent.
        sizes: each domain's examples in the last round, over the number of clients.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> server, _ = fs.afl(task, optax.sgd(0.1), domains=2).init(jnp.ones(2))
        >>> print(server.domain_weights)
        [0.5 0.5]
    """

    params: Params
    optimizer: optax.OptState
    domain_weights: jax.Array
    losses: jax.Array
    sizes: jax.Array


@named("task", "aggregator")
def afl(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    domains: int,
    gamma: Scalar = 0.01,
    rule: Literal["exponentiated", "projected"] = "exponentiated",
    server_optimizer: optax.GradientTransformation | None = None,
    column: str = "domain",
) -> Algorithm:
    r"""Agnostic federated averaging: the model that is best for the worst mixture of domains.

    Examples belong to D domains of losses :math:`L_d`, and :math:`\min_x \max_\lambda \sum_d \lambda_d L_d(x)` is
    played out. In a round with domains' sizes :math:`N_d` over its clients, an example of d weighs
    :math:`\alpha_d = \lambda_d / N_d` in its client's loss, a client's delta the sum of its examples' weights, and

    .. math:: x \leftarrow x + \frac{\sum_k \beta_k (y_k - x)}{\sum_k \beta_k}, \qquad
        \lambda_d \propto \lambda_d e^{\gamma L_d(x)} \quad \text{or} \quad
        \lambda \leftarrow \mathrm{Proj}(\lambda + \gamma L(x)), \qquad \beta_k = \sum_{i \in k} \alpha_{d(i)}

    with the losses of the received model x, and the projection onto the simplex. A domain that is absent from the round
    keeps its weight; the others share what is left.

    Two passes over a cohort: the first finds :math:`N_d` and :math:`L_d`, without gradients. Deviations: Ro et al. take
    :math:`N_d` from past rounds in place of that pass, and Mohri et al. return the mean of all models.

    Args:
        task: what is learnt.
        client_optimizer: an optax transformation, started anew in each round.
        domains: D.
        gamma: :math:`\gamma`, the domains' rate, zero or more; may be traced. 0 keeps an even mixture.
        rule: how :math:`\lambda` moves: "exponentiated" (Ro et al.), never to 0; or "projected" (Mohri et al.).
        server_optimizer: as in `fs.fedavg`.
        column: the batch's entry of domains, [B] whole numbers from 0 on.

    Example:
        >>> import numpy as np, optax, fedjax_sim as fs
        >>> from fedjax_sim.data import FederatedData
        >>> draw = np.random.default_rng(0)
        >>> arrays = {"x": draw.normal(size=(8, 3)), "domain": np.repeat([0, 1], 4)}
        >>> data = FederatedData(arrays, offsets=[0, 4, 8])
        >>> task = fs.Task(lambda key: np.zeros(3), lambda w, batch, key: ((batch["x"] - w) ** 2).sum(-1))
        >>> algorithm = fs.afl(task, optax.sgd(0.1), domains=2, gamma=0.1)
        >>> sim = fs.Simulation(algorithm, data, fs.sampler.uniform(2), fs.Batching(4))
        >>> state, _ = sim.run(sim.init(), rounds=2)
        >>> print(state.server.domain_weights.sum())
        1.0
    """
    check_optimizer("client_optimizer", client_optimizer)
    check_count("domains", domains)
    check_not_negative("gamma", gamma)
    check(rule in ("exponentiated", "projected"), "rule", rule, 'must be "exponentiated" or "projected".')
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", server_optimizer)
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)

    def init(params: Params):
        zeros = jnp.zeros(domains)
        return AFLState(*start(params), jnp.full(domains, 1 / domains), zeros, zeros), None

    def measure(key, server, row, batches):
        def step(sums, batch, key):
            result = named_loss((task.evaluate or task.loss)(server.params, batch, key, **keyword(task.frozen)))
            weight = batch["mask"] if result.weight is None else batch["mask"] * result.weight
            own = jax.nn.one_hot(_domains(batch, column), domains).T
            value = jnp.where(batch["mask"] > 0, result.value, 0.0)
            return {"loss": sums["loss"] + own @ (weight * value), "size": sums["size"] + own @ weight}, {}

        zeros = jnp.zeros(domains)
        return ClientUpdate(local_steps(step, {"loss": zeros, "size": zeros}, batches, key)[0], weight=1.0)

    def keep(key, server, aggregate):
        losses, sizes = aggregate.value["loss"], aggregate.value["size"]
        return server._replace(losses=losses / jnp.where(sizes > 0, sizes, 1.0), sizes=sizes)

    def client(key, server, row, batches):
        sizes = server.sizes
        alpha = jnp.where(sizes > 0, server.domain_weights / jnp.where(sizes > 0, sizes, 1.0), 0.0) * jnp.sum(sizes)
        done = train(_weighted(task, alpha, column), client_optimizer, server.params, batches, key)
        metrics = dict(done.metrics)
        own = metrics.pop(_OWN)
        assert isinstance(own, Mean)
        weight = batches.num_examples * own.total / jnp.where(own.weight > 0, own.weight, 1.0)
        return ClientUpdate(difference(done.params, server.params), weight=weight, metrics=metrics)

    def move(key, server, aggregate):
        weights = moved(server.domain_weights, gamma * server.losses, server.sizes > 0, rule)
        return AFLState(*update(server, aggregate.value), weights, server.losses, server.sizes)

    return Algorithm(
        task._replace(check=_checks(task, domains, column)),
        init,
        params=lambda server: server.params,
        phases=(Phase(measure, keep, mean("uniform")), Phase(client, move)),
    )


_OWN = "domain_weight"


def _weighted(task: Task, alpha: jax.Array, column: str) -> Task:
    """The task whose examples weigh by their domain's alpha, with the mean of that among its metrics."""

    def loss(params, batch, key, **frozen):
        result = named_loss(task.loss(params, batch, key, **frozen))
        own = alpha[_domains(batch, column)]
        weight = own if result.weight is None else own * result.weight
        return dataclasses.replace(result, weight=weight, metrics={**(result.metrics or {}), _OWN: own})

    return task._replace(loss=loss)


def moved(weights: jax.Array, gain: jax.Array, present: jax.Array, rule: str) -> jax.Array:
    """The domains' weights, [D], after a step along their gains; those that are not present keep theirs."""
    mass = jnp.sum(jnp.where(present, weights, 0.0))
    if rule == "exponentiated":
        new = mass * jax.nn.softmax(jnp.where(present, jnp.log(weights) + gain, -jnp.inf))
    else:
        new = _projected(jnp.where(present, weights + gain, -jnp.inf), mass)
    return jnp.where(present, new, weights)


def _projected(values: jax.Array, mass: jax.Array) -> jax.Array:
    """The nearest point with nothing negative and that sum: all are lowered by the same, and cut at 0."""
    ordered = jnp.sort(values)[::-1]
    counts = jnp.arange(1, len(values) + 1)
    level = (jnp.cumsum(jnp.where(jnp.isfinite(ordered), ordered, 0.0)) - mass) / counts
    last = jnp.maximum(jnp.sum(ordered > level), 1) - 1
    return jnp.maximum(values - level[last], 0.0)


def _domains(batch: Batch, column: str) -> jax.Array:
    """[B] whole numbers."""
    if column not in batch:
        raise ArgumentError(f"column={column!r}: examples have {sorted(set(batch) - {'mask'})}; give each its domain.")
    if not jnp.issubdtype(batch[column].dtype, jnp.integer):
        raise ArgumentError(f"column={column!r} is {batch[column].dtype}: domains are whole numbers from 0 on.")
    return batch[column]


def _checks(task: Task, domains: int, column: str) -> ColumnsCheck:
    """The task's check, and that of the domains."""

    def check_columns(columns: Columns) -> None:
        if task.check is not None:
            task.check(columns)
        found = np.asarray(columns[column])
        wrong = found[(found < 0) | (found >= domains)]
        if wrong.size:
            raise ArgumentError(f"column={column!r} holds {wrong.flat[0]}: domains are 0 to {domains - 1}.")

    return check_columns
