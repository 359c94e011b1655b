"""DiLoCo: distributed low-communication training (Douillard et al. 2023, Algorithm 1)."""

import optax

from fedjax_sim.aggregate import Aggregator, Reducer, mean
from fedjax_sim.algorithms.base import Algorithm
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.algorithms.local import check_optimizer
from fedjax_sim.algorithms.private import Private
from fedjax_sim.client import Task
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check_fraction, check_positive
from fedjax_sim.core.shown import named


@named("task", "aggregator")
def diloco(
    task: Task,
    inner: optax.GradientTransformation,
    outer_lr: Scalar = 0.7,
    outer_momentum: Scalar = 0.9,
    aggregator: Aggregator | Reducer | None = None,
    *,
    private: Private | None = None,
) -> Algorithm:
    r"""DiLoCo: few workers, many local steps of AdamW, and Nesterov momentum over rounds.

    .. math::

        v \leftarrow \beta v - \bar \Delta, \qquad x \leftarrow x - \eta (\beta v - \bar \Delta), \qquad
        \bar \Delta = \frac{1}{|S|} \sum_S (y_k - x)

    with :math:`\eta` the outer rate and :math:`\beta` the outer momentum. A worker's inner optimizer goes on from where
    it was: a row a client, of two models for AdamW. It is `fs.fedavg(task, inner, optax.sgd(outer_lr, outer_momentum,
    nesterov=True), fs.aggregate.mean("uniform"), client_optimizer_state="keep")`, and no more than that.

    In the paper all workers take part in each round, from shards of one set. A worker that was not drawn for some
    rounds goes on with moments as old as that.

    Args:
        task: what is learnt.
        inner: the workers' optimizer, as `optax.adamw(4e-4)`.
        outer_lr: :math:`\eta`; may be traced.
        outer_momentum: :math:`\beta` in [0, 1); may be traced.
        aggregator: a chain or reducer; None for the plain mean.
        private: as in `fs.fedavg`.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.diloco(task, optax.adamw(1e-3))
    """
    check_optimizer("inner", inner)
    check_positive("outer_lr", outer_lr)
    check_fraction("outer_momentum", outer_momentum)
    outer = optax.sgd(outer_lr, outer_momentum, nesterov=True)  # type: ignore[arg-type]
    aggregator = mean("uniform") if aggregator is None else aggregator
    return fedavg(task, inner, outer, aggregator, client_optimizer_state="keep", private=private)
