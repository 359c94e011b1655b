"""pFedMe: personalized federated learning with Moreau envelopes (Dinh, Tran and Nguyen 2020, Algorithm 1)."""

import jax

from fedjax_sim.aggregate import Aggregator, Reducer, mean
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import difference, sgd
from fedjax_sim.algorithms.own import current, first_own, trained_once_more
from fedjax_sim.client import Task, gradient, local_steps, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_count, check_positive
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate


@named("task", "aggregator")
def pfedme(
    task: Task,
    client_lr: Scalar,
    inner_lr: Scalar,
    lam: Scalar = 15.0,
    inner_steps: int = 5,
    beta: Scalar = 1.0,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""pFedMe: clients minimise the Moreau envelope of their loss, whose minimiser is their own model.

    .. math::

        \theta \approx \arg\min_\theta f_k(\theta; B) + \frac{\lambda}{2} \lVert \theta - w \rVert^2, \qquad
        w \leftarrow w - \eta \lambda (w - \theta), \qquad x \leftarrow (1 - \beta) x + \beta\, \bar w

    A local step takes one batch B: `inner_steps` gradient steps of :math:`\theta`, from the last local step's one (in a
    round's first from x), then one of w, from x on. So it computes `inner_steps` gradients. The row of a client is its
    last :math:`\theta`. All clients train in the paper and a part is averaged; here those of the cohort do both.

    An unseen client has the server's model. With few inner steps, or :math:`\eta \lambda` near 0, the method stalls.

    Args:
        task: what is learnt. Collections (batch statistics) are those of :math:`\theta`.
        client_lr: :math:`\eta`; may be traced, as all but `inner_steps`.
        inner_lr: the rate of :math:`\theta`.
        lam: :math:`\lambda`.
        inner_steps: the paper's K.
        beta: :math:`\beta` in (0, 1].
        aggregator: a chain or reducer; None for the plain mean, as in the paper.

    Raises:
        ArgumentError: `client_lr * lam` or `inner_lr * lam` of 1 or more, with which w or :math:`\theta` overshoots the
            other.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.pfedme(task, client_lr=0.02, inner_lr=0.02)
    """
    check_positive("client_lr", client_lr)
    check_positive("inner_lr", inner_lr)
    check_positive("lam", lam)
    check_count("inner_steps", inner_steps)
    check_positive("beta", beta)
    check(beta <= 1, "beta", beta, "must lie in (0, 1].")
    for name, rate in (("client_lr", client_lr), ("inner_lr", inner_lr)):
        check(rate * lam < 1, name, rate, f"{name} * lam must be below 1, and lam is {lam}.")
    start, update = server_init(task, sgd(beta)), server_update(task, sgd(beta))
    gradient_fn = gradient(task)

    def client(key, server, row, batches):
        def step(carry, batch, key):
            theta, w = carry

            def inner(theta, number):
                found = gradient_fn(theta, batch, jax.random.fold_in(key, number))
                (own, held), (grads, _) = split_params(task, theta), split_params(task, found.grads)
                own = jax.tree.map(lambda t, g, w: t - inner_lr * (g + lam * (t - w)), own, grads, w)
                return replace(own, {**held, **found.variables}), found.metrics

            theta, metrics = jax.lax.scan(inner, theta, jax.numpy.arange(inner_steps))
            own, _ = split_params(task, theta)
            w = jax.tree.map(lambda w, t: w - client_lr * lam * (w - t), w, own)
            return (theta, w), jax.tree.map(lambda each: each[0], metrics)

        x, _ = split_params(task, server.params)
        (theta, w), metrics = local_steps(step, (server.params, x), batches, key)
        _, held = split_params(task, theta)
        delta = difference(replace(w, held), server.params)
        return ClientUpdate(delta, batches.num_examples, state=trained_once_more(row, theta), metrics=metrics)

    return Algorithm(
        task,
        init=lambda params: (start(params), first_own(params)),
        client=client,
        server=lambda key, server, aggregate: update(server, aggregate.value),
        aggregator=mean("uniform") if aggregator is None else aggregator,
        params=lambda server: server.params,
        personal=lambda server, row: current(row, server.params),
    )
