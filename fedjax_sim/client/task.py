"""Tasks: what is learnt. A pair of functions on any pytree of parameters; masking and weighting are done here."""

import inspect
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.client.bound import keyword
from fedjax_sim.core import html
from fedjax_sim.core.arrays import Array, Batch, Key, PyTree
from fedjax_sim.core.convolution import Convolutions
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.kinds import check_leaves
from fedjax_sim.core.metrics import Mean, Metric
from fedjax_sim.core.pytree import pytree
from fedjax_sim.core.shown import facts, record
from fedjax_sim.core.types import Params

Variables = dict[str, PyTree]
"""A task's collections, by their names."""


@pytree
class Loss:
    """Per-example losses, with a place for token weights and for new model collections.

    Attributes:
        value: [B], each example's loss; with weights, its *mean* over the units that the weight counts.
        weight: [B] or None for 1, how much each example counts (its number of tokens, say).
        metrics: dict of name to [B], or to a pair (value [B], weight [B]).
        variables: dict of the task's `collections`, new values; or None.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> def loss(w, batch, key):
        ...     return fs.Loss((w - batch["x"]) ** 2, weight=batch["tokens"])
        >>> task = fs.Task(lambda key: jnp.zeros(()), loss)
        >>> batch = {"x": jnp.array([1.0, 3.0]), "tokens": jnp.array([3.0, 1.0]), "mask": jnp.ones(2)}
        >>> print(fs.grad(task)(jnp.zeros(()), batch, jax.random.key(0))[1]["loss"].compute())
        3.0
    """

    value: Array
    weight: Array | None = None
    metrics: Mapping[str, Array | tuple[Array, Array | None] | Metric] | None = None
    variables: Variables | None = None


LossResult = Loss | Array | tuple[Array, Mapping[str, Array | tuple[Array, Array | None] | Metric]]
"""What a loss function returns: losses [B]; or `(losses [B], metrics)`; or a `Loss`."""

LossFunction = Callable[..., LossResult]
"""`(params, batch, key) -> LossResult`; with the keyword `frozen` for tasks that have such constants."""

Columns = Mapping[str, Array]
"""Name to examples [n, ...]."""

ColumnsCheck = Callable[[Columns], None]
"""`(columns) -> None`: raises an `ArgumentError` for examples that cannot be right."""


class Task(NamedTuple):
    """What is learnt, as functions.

    With mask m, weights w and per-example losses l, a batch's objective is sum(m w l) / sum(m w) under
    `reduction="mean"` and sum(m w l) under "sum". A batch without any weight has objective and gradient 0.

    Attributes:
        init: `(key) -> params`.
        loss: `(params, batch, key) -> losses [B]`, or `([B], {name: [B]})`, or a `Loss`. The batch has an entry
            `mask`; masking the result is done for you.
        reduction: "mean" or "sum".
        collections: top-level entries of `params` (then a dict) that are not trained by gradients but replaced
            by `Loss.variables`, such as batch statistics. Servers average them plainly.
        evaluate: like `loss`, for evaluation (no dropout); None uses `loss` itself.
        check: `(columns) -> None`, on the host: raises an `fs.ArgumentError` for examples that cannot be right, labels
            without a class say. `columns` maps an entry's name to its examples [n, ...]: of data in memory all that
            clients hold, when a simulation is built and in evaluation; of streamed data each block that is read.
        convolutions: of whatever clients compute in a simulation, and of evaluation: "matmul" as products of matrices,
            "xla" as they are, "auto" as is faster on the platform (see `fs.matmul_convolutions`).
        frozen: a pytree of arrays that `loss` and `evaluate` read and nobody trains, a pretrained model say: they then
            take it as a keyword, `loss(params, batch, key, *, frozen)`. It is an argument of every compiled program,
            one copy on each device, and no part of payloads, norms, bits, rows or a lane's memory. A checkpoint keeps
            a digest of each leaf. Give JAX arrays, which stay where they are; NumPy's travel for each evaluation.
        sample: names, shapes and dtypes of a small batch, or None: by it `fs.lora.adapt` sees how kernels are read.
        name: how it was made, to be shown; None for "as its functions say".

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> def loss(params, batch, key):
        ...     return (batch["x"] @ params["w"] - batch["y"]) ** 2
        >>> task = fs.Task(init=lambda key: {"w": jnp.zeros(3)}, loss=loss)

        A base that only a correction is learnt for:

        >>> def loss(params, batch, key, *, frozen):
        ...     return (batch["x"] @ (frozen["w"] + params["w"]) - batch["y"]) ** 2
        >>> task = task._replace(loss=loss, frozen={"w": jnp.ones(3)})
    """

    init: Callable[[Key], Params]
    loss: LossFunction
    reduction: Literal["mean", "sum"] = "mean"
    collections: tuple[str, ...] = ()
    evaluate: LossFunction | None = None
    check: ColumnsCheck | None = None
    convolutions: Convolutions = "auto"
    frozen: PyTree = None
    sample: tuple[tuple[str, jax.ShapeDtypeStruct], ...] | None = None
    name: str | None = None

    def __repr__(self) -> str:
        if not self.name:
            return record(self)
        return f"Task({', '.join([self.name, *(f'{name}={text}' for name, text in self._changed().items())])})"

    def _repr_html_(self) -> str:
        return html.facts("Task", {"made by": self.name, **self._changed()} if self.name else facts(self))

    def _changed(self) -> dict[str, str]:
        """What a task may have been given since it was made."""
        given = ("reduction", "frozen")
        return {name: text for name, text in facts(self).items() if name in given}


class Gradient(NamedTuple):
    """A batch's gradient (zero for collections), its metrics, and the collections' new values.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> batch = {"x": jnp.array([1.0, 3.0]), "mask": jnp.ones(2)}
        >>> result = fs.client.gradient(task)(jnp.zeros(()), batch, jax.random.key(0))
        >>> print(result.grads, result.metrics["loss"].compute(), result.variables)
        -4.0 5.0 {}
    """

    grads: Params
    metrics: dict[str, Metric]
    variables: Variables


def grad(task: Task) -> Callable[[Params, Batch, Key], tuple[Params, dict[str, Metric]]]:
    """The gradient of a task's batch objective.

    Args:
        task: the task; one without collections, which this function would leave unchanged in silence.

    Returns:
        `(params, batch, key) -> (grads, metrics)`: the gradient, like `params`, and a dict of metrics with at
        least "loss", for `fs.local_steps` to merge.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> batch = {"x": jnp.array([1.0, 3.0, 9.0]), "mask": jnp.array([1.0, 1.0, 0.0])}
        >>> grads, metrics = fs.grad(task)(jnp.zeros(()), batch, jax.random.key(0))
        >>> print(grads, metrics["loss"].compute())
        -4.0 5.0
    """
    _check_task(task)
    if task.collections:
        raise ArgumentError(
            f"task.collections={task.collections}: fs.grad would leave them unchanged. Use "
            "fs.client.gradient(task), whose result has .variables to merge with fs.client.replace."
        )
    full = gradient(task)

    def grad_fn(params: Params, batch: Batch, key: Key):
        result = full(params, batch, key)
        return result.grads, result.metrics

    return grad_fn


def gradient(task: Task) -> Callable[[Params, Batch, Key], Gradient]:
    """`grad` for tasks with model collections: `(params, batch, key) -> Gradient(grads, metrics, variables)`.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> def loss(params, batch, key):
        ...     new = {"stats": {"seen": params["stats"]["seen"] + 1}}
        ...     return fs.Loss((params["w"] - batch["x"]) ** 2, variables=new)
        >>> task = fs.Task(lambda key: {"w": 0.0, "stats": {"seen": 0.0}}, loss, collections=("stats",))
        >>> batch = {"x": jnp.ones(2), "mask": jnp.ones(2)}
        >>> params = {"w": jnp.zeros(()), "stats": {"seen": jnp.zeros(())}}
        >>> print(fs.client.gradient(task)(params, batch, jax.random.key(0)).variables)
        {'stats': {'seen': Array(1., dtype=float32)}}
    """
    _check_task(task)

    def gradient_fn(params: Params, batch: Batch, key: Key) -> Gradient:
        trained, held = split_params(task, params)
        _check_trained(trained)

        def objective(trained):
            whole = {**trained, **held} if held else trained
            loss = as_loss(task, task.loss(whole, batch, key, **keyword(task.frozen)), batch)
            metrics = batch_metrics(loss, batch)
            mean = metrics["loss"]
            assert isinstance(mean, Mean)
            if task.reduction == "sum":
                return mean.total, (metrics, loss.variables)
            return mean.total / jnp.where(mean.weight == 0, 1.0, mean.weight), (
                metrics,
                loss.variables,
            )

        grads, (metrics, variables) = jax.grad(objective, has_aux=True)(trained)
        if held:
            grads = {**grads, **jax.tree.map(jnp.zeros_like, held)}
        return Gradient(grads, metrics, variables or {})

    return gradient_fn


def replace(params: Params, variables: Variables) -> Params:
    """`params` with the collections' new values.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.client.replace({"w": 0.5, "stats": {"seen": 0}}, {"stats": {"seen": 20}})
        {'w': 0.5, 'stats': {'seen': 20}}
    """
    return {**params, **variables} if variables else params


def split_params(task: Task, params: Params) -> tuple[Params, Variables]:
    """`(trained, collections)`: the entries of `params` that gradients train, and those they do not.

    Example:
        >>> import fedjax_sim as fs
        >>> params = {"w": 0.5, "stats": {"seen": 0}}
        >>> task = fs.Task(lambda key: params, lambda params, batch, key: batch["x"], collections=("stats",))
        >>> fs.client.split_params(task, params)
        ({'w': 0.5}, {'stats': {'seen': 0}})
    """
    if not task.collections:
        return params, {}
    missing = [name for name in task.collections if name not in params]
    if missing:
        raise ArgumentError(f"task.collections name {missing}, which params lack: {list(params)}.")
    trained = {name: value for name, value in params.items() if name not in task.collections}
    return trained, {name: params[name] for name in task.collections}


def named_loss(result: LossResult) -> Loss:
    """What a loss function returned, in one form."""
    if isinstance(result, Loss):
        return result
    return Loss(result[0], metrics=result[1]) if isinstance(result, tuple) and len(result) == 2 else Loss(result)


def as_loss(task: Task, result: LossResult, batch: Batch) -> Loss:
    """Check what a task's loss function returned and bring it into one form."""
    result = named_loss(result)
    size = batch["mask"].shape
    _check_per_example("losses", result.value, size)
    if result.weight is not None:
        _check_per_example("weights", result.weight, size)
    if set(result.variables or {}) != set(task.collections):
        raise ArgumentError(
            f"Loss.variables hold {sorted(result.variables or {})}, but the task declares "
            f"collections={task.collections}: they must be the same, so that none is lost."
        )
    return result


def batch_metrics(loss: Loss, batch: Batch) -> dict[str, Metric]:
    """A batch's metrics: masked, weighted sums. "loss" is among them."""
    mask = batch["mask"]
    metrics: dict[str, Metric] = {"loss": _masked_mean(loss.value, loss.weight, mask)}
    for name, value in (loss.metrics or {}).items():
        if isinstance(value, Metric):
            metrics[name] = value
            continue
        value, weight = value if isinstance(value, tuple) else (value, None)
        _check_per_example(f"metric {name!r}", value, mask.shape)
        metrics[name] = _masked_mean(value, weight, mask)
    return metrics


def evaluation(task: Task) -> Callable[[Params, Batch, Key], dict[str, Metric]]:
    """`(params, batch, key) -> metrics` of one batch, without training behaviour (dropout and the like).

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: 0.0, lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.array([1.0, 2.0, 6.0])}, offsets=[0, 1, 3])
        >>> def personal(key, server, row, batches):
        ...     measure = fs.client.evaluation(task)
        ...     return fs.local_steps(lambda _, batch, key: ((), measure(row, batch, key)), (), batches, key)[1]
        >>> fs.map_clients(personal, None, data, 2, rows=jnp.array([0.0, 4.0]))["loss"].compute()
        array([1., 4.])
    """
    _check_task(task)

    def evaluate(params: Params, batch: Batch, key: Key):
        result = (task.evaluate or task.loss)(params, batch, key, **keyword(task.frozen))
        if isinstance(result, Loss):
            result = Loss(result.value, result.weight, result.metrics)
        return batch_metrics(as_loss(task._replace(collections=()), result, batch), batch)

    return evaluate


def _masked_mean(value: Array, weight: Array | None, mask: jax.Array) -> Mean:
    value = jnp.where(mask > 0, jnp.asarray(value).astype(jnp.float32), 0.0)
    weight = mask if weight is None else jnp.where(mask > 0, mask * weight, 0.0)
    return Mean(jnp.dot(value, weight), jnp.sum(weight))


def _check_per_example(what: str, value: Array, size: tuple[int, ...]) -> None:
    shape = jnp.shape(value)
    if shape != size:
        kind = "a scalar" if shape == () else f"shape {shape}"
        raise ArgumentError(
            f"the task's {what} are {kind}: must be one number an example, shape {size}. "
            "Return them unreduced; masking and averaging are done for you."
        )


def _check_trained(trained: Params) -> None:
    check_leaves("params", trained)
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ArgumentError(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}: gradients train floats alone. Make it "
                "a float, keep it out of the parameters, or name its top-level entry in fs.Task(collections=...)."
            )


def _check_task(task: object) -> None:
    if not isinstance(task, Task):
        raise ArgumentError(f"task={task!r}: must be a fs.Task.")
    if task.reduction not in ("mean", "sum"):
        raise ArgumentError(f'task.reduction={task.reduction!r}: must be "mean" or "sum".')
    for name, function in (("loss", task.loss), ("evaluate", task.evaluate)):
        if function is not None:
            _check_keyword(name, function, task.frozen is not None)


def _check_keyword(name: str, function: Callable[..., object], given: bool) -> None:
    """A task's functions take its frozen constants: said at once, and not by the first evaluation of a long run."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of some callables nothing is known
        return
    own = next((each for each in parameters if each.name == "frozen" and each.kind is not each.VAR_KEYWORD), None)
    takes = own is not None or any(each.kind is each.VAR_KEYWORD for each in parameters)
    if given and not takes:
        raise ArgumentError(
            f"task.frozen is given, and task.{name} does not take it: must be {name}(params, batch, key, *, frozen)."
        )
    if own is not None and own.default is own.empty and not given:
        raise ArgumentError(f"task.{name} takes frozen, and the task has none: give it, fs.Task(..., frozen=...).")
