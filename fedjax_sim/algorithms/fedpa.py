"""FedPA: federated posterior averaging (Al-Shedivat, Gillenwater, Xing and Rostamizadeh 2021, Algorithms 3 and 4)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import check_optimizer, difference
from fedjax_sim.client import Task, gradient, local_steps, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check_count, check_not_negative
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class FedPAState(NamedTuple):
    """Server state: the model, the server optimizer's state, and the rounds so far, [] int32.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> server, _ = fs.fedpa(task, optax.sgd(0.1), samples=2, sample_steps=5).init(jnp.ones(2))
        >>> print(server.params, server.rounds)
        [1. 1.] 0
    """

    params: Params
    optimizer: optax.OptState
    rounds: jax.Array


@named("task", "aggregator")
def fedpa(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    samples: int,
    sample_steps: int,
    burn_in_steps: int = 0,
    burn_in_rounds: int = 0,
    rho: Scalar = 0.1,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""FedPA: clients send how their posterior would move the model, from samples that SGD draws.

    A client's samples, less x, are the means of its iterates over runs of `sample_steps` steps, after
    `burn_in_steps`. With their mean :math:`\hat\mu` and covariance S (unbiased), shrunk,

    .. math:: \Delta_k = \hat\Sigma^{-1} (\hat\mu - x), \qquad \hat\Sigma = \rho_n I + (1 - \rho_n) S, \qquad
        \rho_n = \frac{1}{1 + (n - 1) \rho}

    takes the place of FedAvg's delta, so that the mean of deltas is the step of the posteriors' product. The paper
    finds it by a recursion over samples; here it is one solve of n equations: with the rows of C the samples less
    their mean, :math:`\hat\Sigma = \rho_n (I + \rho C^T C)`, and

    .. math:: \hat\Sigma^{-1} r = \frac{1}{\rho_n} \left( r - \rho\, C^T (I + \rho\, C C^T)^{-1} C r \right).

    A client has as many samples as its steps suffice for, `samples` at most; with one, or :math:`\rho = 0`, its delta
    is its samples' mean's; with none it is FedAvg's, and so are all in the first `burn_in_rounds`. Memory is
    `samples` models more a lane. Collections (batch statistics) are averaged plainly.

    Args:
        task: what is learnt.
        client_optimizer: an optax transformation, started anew in each round; SGD in the paper.
        samples, sample_steps, burn_in_steps, burn_in_rounds: as above.
        rho: :math:`\rho`, zero or more; may be traced.
        server_optimizer, aggregator: as in `fs.fedavg`.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedpa(task, optax.sgd(0.01), samples=4, sample_steps=5, burn_in_steps=5, burn_in_rounds=100)
    """
    check_optimizer("client_optimizer", client_optimizer)
    for name, count, least in (
        ("samples", samples, 1),
        ("sample_steps", sample_steps, 1),
        ("burn_in_steps", burn_in_steps, 0),
        ("burn_in_rounds", burn_in_rounds, 0),
    ):
        check_count(name, count, least)
    check_not_negative("rho", rho)
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", server_optimizer)
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)
    gradient_fn = gradient(task)

    def client(key, server, row, batches):
        x, _ = split_params(task, server.params)

        def step(carry, batch, key):
            params, optimizer_state, drawn, s = carry
            grads, metrics, variables = gradient_fn(params, batch, key)
            (y, held), (grads, _) = split_params(task, params), split_params(task, grads)
            updates, optimizer_state = client_optimizer.update(grads, optimizer_state, y)
            y = optax.apply_updates(y, updates)
            sample = jnp.where(s < burn_in_steps, samples, (s - burn_in_steps) // sample_steps)  # past the end: dropped
            moved = jax.tree.map(lambda y, x: (y - x) / sample_steps, y, x)
            drawn = jax.tree.map(lambda d, m: d.at[sample].add(m, mode="drop"), drawn, moved)
            return (replace(y, {**held, **variables}), optimizer_state, drawn, s + 1), metrics

        none = jax.tree.map(lambda leaf: jnp.zeros((samples, *leaf.shape), leaf.dtype), x)
        first = (server.params, client_optimizer.init(x), none, jnp.zeros((), jnp.int32))
        (params, _, drawn, _), metrics = local_steps(step, first, batches, key)
        whole = jnp.clip((batches.num_steps - burn_in_steps) // sample_steps, 0, samples)
        plain, held = split_params(task, difference(params, server.params))
        sampled = posterior_delta(drawn, whole, rho)
        use = (whole > 0) & (server.rounds >= burn_in_rounds)
        delta = jax.tree.map(lambda a, b: jnp.where(use, a, b), sampled, plain)
        return ClientUpdate(replace(delta, held), weight=batches.num_examples, metrics=metrics)

    def server(key, server, aggregate):
        return FedPAState(*update(server, aggregate.value), server.rounds + 1)

    return Algorithm(
        task,
        lambda params: (FedPAState(*start(params), jnp.zeros((), jnp.int32)), None),
        client,
        server,
        aggregator,
        params=lambda server: server.params,
    )


def posterior_delta(drawn: Params, count: jax.Array, rho: Scalar) -> Params:
    """The inverse of the samples' shrunk covariance times their mean, of the first `count` samples, [n, ...] a leaf."""
    leaves, structure = jax.tree.flatten(drawn)
    n = leaves[0].shape[0]
    real = (jnp.arange(n) < count).astype(jnp.float32)
    total = jnp.maximum(count, 1).astype(jnp.float32)
    flat = [leaf.reshape(n, -1).astype(jnp.float32) for leaf in leaves]
    means = [real @ leaf / total for leaf in flat]
    apart = [real[:, None] * (leaf - mean[None]) for leaf, mean in zip(flat, means, strict=True)]
    gram = sum(c @ c.T for c in apart)
    along = sum(c @ mean for c, mean in zip(apart, means, strict=True))
    solved = jnp.linalg.solve(jnp.eye(n) + rho * gram, along)
    scale = 1 + (total - 1) * rho  # 1 / rho_n
    deltas = [scale * (mean - rho * (solved @ c)) for mean, c in zip(means, apart, strict=True)]
    shaped = [d.reshape(leaf.shape[1:]).astype(leaf.dtype) for d, leaf in zip(deltas, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)
