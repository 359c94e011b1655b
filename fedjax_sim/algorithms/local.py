"""What clients of several methods do alike: train from a received model, and sum a gradient over all batches."""

import contextlib
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.client import ClientBatches, Gradient, Task, gradient, local_steps, replace, split_params
from fedjax_sim.client.local import LocalStep
from fedjax_sim.core.arrays import Batch, PyTree, Scalar
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.metrics import Mean, Metric
from fedjax_sim.core.types import Key, Params

GradientFunction = Callable[[Params, Batch, Key], Gradient]
"""`(params, batch, key) -> Gradient`, as of `fs.client.gradient`."""


Pull = Callable[[Params], Params]
"""`(trained params) ->` an addition to each gradient."""


_told: weakref.WeakSet[Any] = weakref.WeakSet()
"""Updates of optimizers of which it was said that their schedule restarts."""


def discount(batches: ClientBatches) -> Scalar:
    """What an asynchronous sampler multiplies the client's message by for its age; 1 where there is none such.

    A method whose server divides by a part of the message undoes it there, as it would cancel.
    """
    s = batches.info.get("discount", 1.0)
    return jnp.where(s > 0, s, 1.0)


class Trained(NamedTuple):
    """A client's model, its optimizer's state and its metrics after its local steps."""

    params: Params
    optimizer: optax.OptState
    metrics: dict[str, Metric]


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    received: Params,
    batches: ClientBatches,
    key: Key,
    *,
    pull: Pull | None = None,
    gradient_fn: GradientFunction | None = None,
    state: optax.OptState | None = None,
) -> Trained:
    """A client's local steps from the received model, collections and all.

    Args:
        pull, gradient_fn: as of `local_step`.
        state: the optimizer's first one; None for a fresh one.
    """
    step = local_step(task, optimizer, pull=pull, gradient_fn=gradient_fn)
    state = first_state(task, optimizer, received) if state is None else state
    (params, end), metrics = local_steps(step, (received, state), batches, key)
    return Trained(params, end, metrics)


def local_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    pull: Pull | None = None,
    gradient_fn: GradientFunction | None = None,
) -> LocalStep:
    """A step on `(params, optimizer state)`, collections and all.

    Args:
        pull: `(trained params) ->` an addition to each gradient.
        gradient_fn: in place of the task's gradient.
    """
    gradient_fn = gradient(task) if gradient_fn is None else gradient_fn

    def step(carry, batch, key):
        params, optimizer_state = carry
        grads, metrics, variables = gradient_fn(params, batch, key)
        (trained, held), (grads, _) = split_params(task, params), split_params(task, grads)
        if pull is not None:
            grads = jax.tree.map(jnp.add, grads, pull(trained))
        updates, optimizer_state = optimizer.update(grads, optimizer_state, trained)
        trained = optax.apply_updates(trained, updates)
        return (replace(trained, {**held, **variables}), optimizer_state), metrics

    return step


def first_state(task: Task, optimizer: optax.GradientTransformation, received: Params) -> optax.OptState:
    """The optimizer's, of what is trained of a received model."""
    state = optimizer.init(split_params(task, received)[0])
    _warn_of_schedule(optimizer, state)
    return state


def full_gradient(task: Task, params: Params, batches: ClientBatches, key: Key) -> tuple[Params, dict[str, Metric]]:
    """`(gradient, metrics)`: of what is trained, at the parameters, over all of a client's batches of the round.

    Under `reduction="mean"` batches weigh by what they hold, so that it is the gradient of the client's mean loss;
    under "sum" it is the mean of the batches' gradients.
    """
    gradient_fn = gradient(task)

    def step(carry, batch, key):
        total, weight = carry
        grads, metrics, _ = gradient_fn(params, batch, key)
        loss = metrics["loss"]
        assert isinstance(loss, Mean)
        each = loss.weight if task.reduction == "mean" else jnp.ones(())
        grads, _ = split_params(task, grads)
        total = jax.tree.map(lambda t, g: t + each * g, total, grads)
        return (total, weight + each), metrics

    zeros = jax.tree.map(jnp.zeros_like, split_params(task, params)[0])
    (total, weight), metrics = local_steps(step, (zeros, jnp.zeros(())), batches, key)
    return jax.tree.map(lambda t: t / jnp.where(weight > 0, weight, 1.0), total), metrics


def difference(after: PyTree, before: PyTree) -> PyTree:
    """Leaf by leaf `after - before`: a client's delta."""
    return jax.tree.map(jnp.subtract, after, before)


def sgd(learning_rate: Scalar) -> optax.GradientTransformation:
    """Plain SGD at a rate that may be traced."""
    return optax.sgd(learning_rate)  # type: ignore[arg-type]


def _warn_of_schedule(optimizer: optax.GradientTransformation, state: optax.OptState) -> None:
    """Say once that a schedule in a client's optimizer begins anew in each round, by the state that it counts in."""
    of_inject = lambda node: bool(getattr(node, "hyperparams_states", None))  # empty where plain numbers are injected
    counts = lambda node: isinstance(node, optax.ScaleByScheduleState) or of_inject(node)
    if not any(map(counts, jax.tree.leaves(state, is_leaf=counts))):
        return
    with contextlib.suppress(TypeError):  # of what has no weak references nothing is remembered
        if optimizer.update in _told:
            return
        _told.add(optimizer.update)
    warnings.warn(
        "the client optimizer has a schedule, which counts a client's steps of one round and begins anew in the next: "
        "for one over rounds give fs.by_round(lambda round: optax.sgd(schedule(round))). If it is meant to be one over "
        "local steps, silence this warning.",
        stacklevel=2,
    )


def check_optimizer(name: str, optimizer: object) -> None:
    """An optax transformation: a pair of functions."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ArgumentError(f"{name}={optimizer!r}: must be an optax transformation, as optax.sgd(0.1).")
