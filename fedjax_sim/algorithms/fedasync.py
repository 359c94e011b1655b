"""FedAsync (Xie, Koyejo and Gupta 2019, Algorithm 1): the server mixes each model that arrives into its own."""

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer, mean
from fedjax_sim.algorithms.base import Algorithm, ServerState
from fedjax_sim.algorithms.local import check_optimizer, train
from fedjax_sim.client import Task, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_not_negative
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate


@named("task", "aggregator")
def fedasync(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    mixing: Scalar = 0.6,
    rho: Scalar = 0.0,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""FedAsync, with `fs.sampler.asynchronous(concurrency, buffer=1, staleness=...)`.

    .. math:: x \leftarrow (1 - \alpha_\tau) x + \alpha_\tau y_k, \qquad \alpha_\tau = \alpha s(\tau)

    where the client trained :math:`y_k` from the model of :math:`\tau` updates ago, and s is the sampler's staleness.
    Of a larger buffer the models' mean is mixed in, each with its own share; with any synchronous sampler s is 1.
    Clients
    send their models and not updates: a clip or a compression in the chain acts on these.

    Args:
        task: what is learnt.
        client_optimizer: an optax transformation.
        mixing: :math:`\alpha` in (0, 1].
        rho: :math:`\rho`, zero or more: clients minimise :math:`f_k(y) + \frac{\rho}{2} \lVert y - x \rVert^2`.
        aggregator: a chain or reducer of the parts `model` and `share`; None for the uniform mean.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> sampler = fs.sampler.asynchronous(concurrency=2, buffer=1, staleness=fs.population.polynomial(0.5))
        >>> sim = fs.Simulation(fs.fedasync(task, optax.sgd(0.1)), data, sampler, fs.Batching(2))
        >>> state, history = sim.run(sim.init(), rounds=4)
        >>> history["population/trained"].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    check_optimizer("client_optimizer", client_optimizer)
    check((mixing > 0) & (mixing <= 1), "mixing", mixing, "must lie in (0, 1].")
    check_not_negative("rho", rho)

    def client(key, server, row, batches):
        x, _ = split_params(task, server.params)
        pull = lambda y: jax.tree.map(lambda a, b: rho * (a - b), y, x)
        done = train(task, client_optimizer, server.params, batches, key, pull=pull)
        payload = {"model": done.params, "share": jnp.ones(())}
        return ClientUpdate(payload, weight=batches.num_examples, metrics=done.metrics)

    def server(key, server, aggregate):
        def mixed(x, y):
            new = x + mixing * (y - aggregate.value["share"] * x)
            return (new if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.round(new)).astype(x.dtype)

        return server._replace(params=jax.tree.map(mixed, server.params, aggregate.value["model"]))

    return Algorithm(
        task,
        init=lambda params: (ServerState(params, optax.EmptyState()), None),
        client=client,
        server=server,
        aggregator=mean("uniform") if aggregator is None else aggregator,
        params=lambda server: server.params,
    )
