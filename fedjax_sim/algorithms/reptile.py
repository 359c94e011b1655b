"""Reptile: first-order meta-learning (Nichol, Achiam and Schulman 2018, Algorithm 2)."""

import optax

from fedjax_sim.aggregate import Aggregator, Reducer, mean
from fedjax_sim.algorithms.base import Algorithm
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.algorithms.local import check_optimizer, sgd
from fedjax_sim.client import Task
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check_positive
from fedjax_sim.core.shown import named


@named("task", "aggregator")
def reptile(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_lr: Scalar = 1.0,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""Reptile, batched: a model from which few local steps go far.

    .. math:: x \leftarrow x + \epsilon \frac{1}{|S|} \sum_S (y_k - x)

    It is `fs.fedavg` with the server's rate :math:`\epsilon` and plain means: FedAvg is a first-order MAML already, and
    `fs.personalise` is what makes use of that.

    Args:
        server_lr: :math:`\epsilon`; may be traced. Others as in `fs.fedavg`.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.reptile(task, optax.sgd(0.05), server_lr=0.5)
    """
    check_optimizer("client_optimizer", client_optimizer)
    check_positive("server_lr", server_lr)
    return fedavg(task, client_optimizer, sgd(server_lr), mean("uniform") if aggregator is None else aggregator)
