"""Scaffnew: ProxSkip's local steps between rounds that coins decide (Mishchenko et al. 2022, Algorithm 2)."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, uniform
from fedjax_sim.algorithms.local import difference, sgd, train
from fedjax_sim.client import Task, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_positive
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


@named("task", "aggregator")
def scaffnew(task: Task, p: Scalar, gamma: Scalar, aggregator: Aggregator | Reducer | None = None) -> Algorithm:
    r"""Scaffnew: gradient steps with a shift, and a mean over all clients whenever a common coin says so.

    In each step every client does :math:`y_k \leftarrow y_k - \gamma (g_k(y_k) - h_k)`; then with probability p

    .. math:: x = \frac{1}{N} \sum_k y_k, \qquad h_k \leftarrow h_k + \frac{p}{\gamma} (x - y_k), \qquad
        y_k \leftarrow x

    A round is the steps from one mean to the next. All clients take as many, a geometric number of mean 1 / p, which
    `fs.sampler.coins(p)` draws, along with everyone as the cohort: the rule is of full participation and right for no
    other. Give a `Batching(steps=)` that such a number hardly exceeds, 10 / p say; later coins are not thrown.

    The fixed point is the optimum of the clients' plain mean, with :math:`h_k` its gradients there. A client's row is
    one model, :math:`h_k - p\, y_k / \gamma`, as it hears of x when the next round begins. Collections (batch
    statistics) are averaged.

    Args:
        task: what is learnt.
        p: the probability of a mean after a step, in (0, 1]; may be traced. The sampler needs the same.
        gamma: :math:`\gamma`, the rate of local SGD; may be traced.
        aggregator: a chain of uniform weights; None for `fs.aggregate.mean("uniform")`.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> clients = fs.data.federate(digits.train, fs.partition.shards(5), seed=0)
        >>> task = fs.classification(fs.models.LogisticRegression(10), digits.train)
        >>> algorithm = fs.scaffnew(task, p=0.2, gamma=0.1)
        >>> sim = fs.Simulation(algorithm, clients, fs.sampler.coins(0.2), fs.Batching(64, steps=50))
        >>> state, history = sim.run(sim.init(), rounds=2)
    """
    check((p > 0) & (p <= 1), "p", p, "must lie in (0, 1]; 1 / p is the mean number of steps in a round.")
    check_positive("gamma", gamma)
    stretch = p / gamma

    def init(params: Params):
        return params, jax.tree.map(lambda x: -stretch * x, split_params(task, params)[0])

    def client(key, params, row, batches):
        x, _ = split_params(task, params)
        h = jax.tree.map(lambda u, x: u + stretch * x, row, x)
        against = jax.tree.map(lambda h: -h, h)
        done = train(task, sgd(gamma), params, batches, key, pull=lambda y: against)
        y, _ = split_params(task, done.params)
        row = jax.tree.map(lambda h, y: h - stretch * y, h, y)
        return ClientUpdate(difference(done.params, params), weight=1.0, state=row, metrics=done.metrics)

    return Algorithm(
        task,
        init,
        client,
        server=lambda key, params, aggregate: jax.tree.map(jnp.add, params, aggregate.value),
        aggregator=uniform(aggregator, "the shifts sum to zero under a plain mean"),
    )
