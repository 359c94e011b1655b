"""FedSAM and FedASAM: sharpness-aware local training (Caldarola, Caputo and Ciccone 2022; Qu et al. 2022)."""

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm
from fedjax_sim.algorithms.fedavg import averaging
from fedjax_sim.algorithms.local import GradientFunction, sgd
from fedjax_sim.algorithms.private import Private
from fedjax_sim.client import Gradient, Task, gradient, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_not_negative, check_positive
from fedjax_sim.core.pytree import squared_norm
from fedjax_sim.core.shown import named

FLOOR = 0.01
"""ASAM's eta: what is added to each parameter's size, so that parameters at 0 are moved too (Kwon et al. 2021)."""


@named("task", "aggregator")
def fedsam(
    task: Task,
    client_lr: Scalar,
    rho: Scalar = 0.05,
    adaptive: bool = False,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
    *,
    private: Private | None = None,
) -> Algorithm:
    r"""FedSAM: FedAvg whose clients look for flat minima.

    A local step takes the gradient where the loss rises most nearby,

    .. math:: y \leftarrow y - \eta\, g \left( y + \rho \frac{g(y)}{\lVert g(y) \rVert} \right)

    with the norm over all of the model. `adaptive` is FedASAM, in which a parameter's neighbourhood has the size of
    the parameter, :math:`T = |y| + 0.01`: the ascent is :math:`\rho\, T^2 g / \lVert T g \rVert`. A gradient of zero
    ascends nowhere. Both gradients are of one batch with the same draws; metrics and collections (batch statistics) are
    of the first alone.

    Choose it where FedAvg generalises badly on clients that differ; it computes two gradients for each local step.

    Args:
        task: what is learnt.
        client_lr: :math:`\eta`; may be traced.
        rho: :math:`\rho`, zero or more; may be traced. 0 is FedAvg.
        adaptive: FedASAM, whose authors take a larger rho, as 0.5.
        server_optimizer, aggregator, private: as in `fs.fedavg`.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedsam(task, client_lr=0.05, rho=0.05)
    """
    check_positive("client_lr", client_lr)
    check_not_negative("rho", rho)
    check(isinstance(adaptive, bool), "adaptive", adaptive, "must be True or False.")
    sharpest = _sharpest(task, rho, adaptive)
    return averaging(task, sgd(client_lr), server_optimizer, aggregator, gradient_fn=sharpest, private=private)


def _sharpest(task: Task, rho: Scalar, adaptive: bool) -> GradientFunction:
    """The gradient where the loss rises most within rho."""
    gradient_fn = gradient(task)

    def sharpest(params, batch, key):
        here = gradient_fn(params, batch, key)
        (y, held), (up, _) = split_params(task, params), split_params(task, here.grads)
        size = jax.tree.map(lambda y: jnp.abs(y) + FLOOR if adaptive else jnp.ones((), y.dtype), y)
        up = jax.tree.map(jnp.multiply, size, up)
        norm = jnp.sqrt(squared_norm(up))
        scale = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1.0), 0.0)
        above = jax.tree.map(lambda y, t, u: y + (scale * t * u).astype(y.dtype), y, size, up)
        return Gradient(gradient_fn(replace(above, held), batch, key).grads, here.metrics, here.variables)

    return sharpest
