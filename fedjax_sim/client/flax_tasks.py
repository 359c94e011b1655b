"""Tasks from Flax modules, linen and nnx alike.

A module's parameters are its variables, as Flax itself names them: `{"params": ..., "batch_stats": ...}`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import ScopeParamShapeError

from fedjax_sim.client.batch_norm import all_masked, linen_masked, nnx_masked, padding
from fedjax_sim.client.cross_entropy import Measure, joined, label_loss, label_measures
from fedjax_sim.client.labels import categories_check, example_of, label_check
from fedjax_sim.client.task import Columns, Loss, LossResult, Task, named_loss
from fedjax_sim.core.arrays import Array, Batch, PyTree
from fedjax_sim.core.convolution import Convolutions, check_convolutions
from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.kinds import check_computable, is_computable
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.pytree import where
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import Key, Params

Model = linen.Module | nnx.Module | Callable[[nnx.Rngs], nnx.Module]
Preprocess = Callable[[Batch], Batch]
BatchStats = Literal["average", "frozen"]


class _Module(NamedTuple):
    """A Flax module as pure functions: `apply(params, batch, key, train) -> (outputs, collections)`."""

    init: Callable[[Key], Params]
    apply: Callable[[Params, Batch, Key, bool], tuple[PyTree, Mapping[str, PyTree]]]
    collections: tuple[str, ...]


@named()
def classification(
    model: Model,
    sample: Columns,
    *,
    inputs: str = "x",
    labels: str = "y",
    preprocess: Preprocess | None = None,
    batch_stats: BatchStats | None = None,
    convolutions: Convolutions = "auto",
    measures: Mapping[str, Measure] | None = None,
) -> Task:
    r"""Softmax classification by a Flax module, with the metrics "loss" and "accuracy".

    The loss is :math:`-\log \mathrm{softmax}(f(x))_y`. Labels may have axes of their own, [B, T] for tokens: an
    example's loss is then the mean over its labels, and its weight their number, so that every token counts
    equally; negative ones are left out. Labels are whole numbers, 0 to classes - 1, of any type; others are refused
    where the task meets the data.

    Args:
        model: a `flax.linen.Module`; or a `flax.nnx.Module`, whose present parameters are the initial ones; or a
            function `rngs -> nnx.Module`. `train=` (or `training=`, `deterministic=`) is passed if it takes it.
        sample: a batch such as the clients hold; only shapes and dtypes matter, and one example is enough.
        inputs, labels: the entries that the module and the loss read.
        preprocess: `batch -> batch`, inside the compiled step: scale uint8 there, so that it stays as stored. Labels
            that it changes are not checked; one that it makes negative does not count.
        batch_stats: for modules with batch statistics: "average", they are updated locally and averaged over
            clients, plainly, whatever the server optimizer; or "frozen", the module always runs in evaluation
            mode. Padding examples are kept out of the statistics.
        convolutions: as in `fs.Task`.
        measures: metrics of evaluations alone, name to `(logits [n, C], labels [n], weights [n]) -> Metric`, such as
            `fs.metrics.MacroF1.of`. Padding, and labels that do not count, have weight 0.

    Raises:
        ArgumentError: batch statistics without a policy; entries that the sample lacks; a measure that is no function,
            returns no metric or has a name that is taken.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.LogisticRegression(num_classes=10), digits.train)

        With more metrics, one of them one's own:

        >>> def brier(logits, labels, weight):
        ...     error = jnp.sum((jax.nn.softmax(logits) - jax.nn.one_hot(labels, 10)) ** 2, axis=-1)
        ...     return fs.metrics.Mean(jnp.sum(weight * error), jnp.sum(weight))
        >>> measures = {"macro_f1": fs.metrics.MacroF1.of, "brier": brier}
        >>> task = fs.classification(fs.models.LogisticRegression(num_classes=10), digits.train, measures=measures)
        >>> f"{fs.evaluate(task, task.init(jax.random.key(0)), digits.test)['brier']:.2f}"
        '0.90'
    """
    check(labels in sample, "labels", labels, f"the sample has only the entries {list(sample)}.")
    check_computable({labels: np.asarray(sample[labels][:1])})

    def loss(logits: jax.Array, batch: Batch) -> Loss:
        return label_loss(logits, jnp.asarray(batch[labels]))

    def measured(logits: jax.Array, batch: Batch) -> dict[str, Metric]:
        return label_measures(measures or {}, logits, jnp.asarray(batch[labels]), batch["mask"])

    task = flax_task(
        model,
        sample,
        loss,
        inputs=inputs,
        preprocess=preprocess,
        batch_stats=batch_stats,
        convolutions=convolutions,
        measures=measured if measures else None,
    )
    classes = functools.partial(num_classes, model, example_of(sample), inputs, labels, preprocess, batch_stats)
    return task._replace(check=label_check(labels, classes, before=task.check))


def num_classes(
    model: Model,
    example: dict[str, jax.ShapeDtypeStruct],
    inputs: str,
    labels: str,
    preprocess: Preprocess | None,
    batch_stats: BatchStats | None,
) -> int | None:
    """The last axis of a module's outputs; None where `preprocess` makes other labels than those that are stored."""
    changed = False

    def watched(batch: Batch) -> Batch:
        nonlocal changed
        prepared = preprocess(batch) if preprocess else batch
        changed |= prepared.get(labels) is not batch.get(labels)
        return prepared

    bare = lambda outputs, batch: outputs
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in example.items()}
    task = flax_task(model, zeros, bare, inputs=inputs, preprocess=watched, batch_stats=batch_stats, convolutions="xla")
    evaluate = task.evaluate or task.loss

    def trace(batch: Batch) -> Array:
        key = jax.random.key(0)
        return named_loss(evaluate(task.init(key), batch, key)).value

    outputs = jax.eval_shape(trace, example)
    return None if changed else outputs.shape[-1]


@named()
def flax_task(
    model: Model,
    sample: Columns,
    loss: Callable[[PyTree, Batch], LossResult],
    *,
    inputs: str = "x",
    preprocess: Preprocess | None = None,
    batch_stats: BatchStats | None = None,
    convolutions: Convolutions = "auto",
    measures: Callable[[PyTree, Batch], Mapping[str, Metric]] | None = None,
) -> Task:
    """A task from a Flax module and a loss of its outputs; arguments as in `fs.classification`.

    Args:
        loss: `(outputs, batch) ->` per-example losses, or with metrics, or a `fs.Loss`, as in `fs.Task`.
        measures: `(outputs, batch) -> {name: Metric}`, metrics of evaluations alone. They are sums over the examples
            whose `batch["mask"]` is 1, which is for them to see to.

    Example:
        >>> import flax.linen as nn, numpy as np, fedjax_sim as fs
        >>> def squared_error(outputs, batch):
        ...     return (outputs[:, 0] - batch["y"]) ** 2
        >>> task = fs.flax_task(nn.Dense(1), {"x": np.zeros((1, 3)), "y": np.zeros(1)}, squared_error)
    """
    check(inputs in sample, "inputs", inputs, f"the sample has only the entries {list(sample)}.")
    check_convolutions(convolutions)
    check_computable({inputs: np.asarray(sample[inputs][:1])})
    first = {name: np.array(array[:1]) for name, array in sample.items()}
    first = {name: array for name, array in first.items() if is_computable(array)}
    prepare = preprocess or (lambda batch: batch)

    def example() -> jax.Array:
        batch = {name: jnp.asarray(array) for name, array in first.items()}
        return prepare({**batch, "mask": jnp.ones(1, jnp.float32)})[inputs]

    module = _module(model, example, inputs, batch_stats)

    def run(params: Params, batch: Batch, key: Key, train: bool, measured: bool = False) -> Loss:
        mask = batch["mask"]
        _check_input(inputs, batch, first)
        batch = {**prepare(batch), "mask": mask}
        # In a batch of nothing but padding the module sees plain examples, so that no statistic is 0/0.
        some = jnp.sum(mask) > 0
        try:
            outputs, variables = module.apply(params, {**batch, "mask": jnp.where(some, mask, 1.0)}, key, train)
        except ScopeParamShapeError as error:
            raise ArgumentError(
                f"input {inputs!r}, [B, ...] = {jnp.shape(batch[inputs])}: {error} The parameters are those of one "
                f"example of the sample, {np.shape(first[inputs])}; a module reads [B, features] at least."
            ) from error
        variables = {name: where(some, value, params[name]) for name, value in variables.items()}
        told = named_loss(loss(outputs, batch))
        metrics = told.metrics
        if measured and measures is not None:
            metrics = joined(metrics or {}, measures(outputs, batch))
        return Loss(told.value, told.weight, metrics, variables or None)

    def train_loss(params: Params, batch: Batch, key: Key) -> Loss:
        return run(params, batch, key, batch_stats != "frozen")

    def evaluate(params: Params, batch: Batch, key: Key) -> Loss:
        return run(params, batch, key, False, measured=True)

    return Task(
        module.init,
        train_loss,
        collections=module.collections,
        evaluate=evaluate,
        check=categories_check(sample),
        convolutions=convolutions,
        sample=tuple(example_of(sample).items()),
    )


def _module(model: Model, example: Callable[[], jax.Array], inputs: str, batch_stats: BatchStats | None) -> _Module:
    if isinstance(model, linen.Module):
        module = _linen(model, example, inputs)
    elif isinstance(model, nnx.Module) or callable(model):
        module = _nnx(model, inputs, batch_stats == "frozen")
    else:
        raise ArgumentError(f"model={model!r}: must be a Flax module, linen or nnx.")
    if module.collections and batch_stats not in ("average", "frozen"):
        raise ArgumentError(
            f"batch_stats={batch_stats!r}: the module keeps {list(module.collections)} besides its parameters, and "
            'clients must agree on them. Say batch_stats="average" (updated locally, averaged over clients, or kept by '
            'each where a private= pattern matches them) or "frozen" (never updated).'
        )
    return module


def _check_input(inputs: str, batch: Batch, sample: Columns) -> None:
    """A module is made for examples like the sample's: of as many axes, if the data hold that entry."""
    if inputs in batch and inputs in sample and jnp.ndim(batch[inputs]) != sample[inputs].ndim:
        raise ArgumentError(
            f"input {inputs!r} has examples of shape {jnp.shape(batch[inputs])[1:]}: the task's sample has "
            f"{sample[inputs].shape[1:]}. Make the task with a sample of these data, or reshape in preprocess=."
        )


def _linen(model: linen.Module, example: Callable[[], jax.Array], inputs: str) -> _Module:
    takes = _parameters(type(model).__call__)

    def init(key: Key) -> Params:
        names = ("params", "dropout")
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(names)}
        kwargs = _mode(takes, train=False)
        if "mask" in takes:
            kwargs["mask"] = jnp.ones(1, jnp.float32)
        with linen.intercept_methods(_check_convolution):
            return model.init(keys, example(), **kwargs)

    shapes = jax.eval_shape(init, jax.random.key(0))
    collections = tuple(sorted(name for name in shapes if name != "params"))

    def apply(params: Params, batch: Batch, key: Key, train: bool) -> tuple[PyTree, Mapping[str, PyTree]]:
        kwargs = _mode(takes, train)
        if "mask" in takes:
            kwargs["mask"] = batch["mask"]
        with linen.intercept_methods(linen_masked(batch["mask"])):
            if not collections or not train:
                outputs = model.apply(params, batch[inputs], rngs={"dropout": key}, **kwargs)
                return outputs, {name: params[name] for name in collections}
            return model.apply(params, batch[inputs], rngs={"dropout": key}, mutable=list(collections), **kwargs)

    return _Module(init, apply, collections)


def _check_convolution(next_function: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """A linen convolution takes inputs without the batch's axis too, and would mix the examples of a batch."""
    module = context.module
    if isinstance(module, linen.Conv | linen.ConvTranspose) and context.method_name == "__call__":
        x = args[0] if args else kwargs["inputs"]
        _check_axes(module.name or type(module).__name__, module.kernel_size, x)
    return next_function(*args, **kwargs)


def _check_axes(name: str, kernel_size: int | Sequence[int], x: Array) -> None:
    """Refuse a convolution's inputs without channels, whose batch it would take for an axis of a picture."""
    axes = (1 if isinstance(kernel_size, int) else len(kernel_size)) + 2
    if jnp.ndim(x) < axes and type(x).__name__ != "BatchTracer":  # the module's own vmap holds the batch's axis
        raise ArgumentError(
            f"{name} with kernel_size={kernel_size} gets inputs {jnp.shape(x)}: must have {axes} axes, "
            "[B, ..., channels]. Add the missing one, as x[..., None] for one channel."
        )


def _nnx(model: Model, inputs: str, frozen: bool) -> _Module:
    make = None if isinstance(model, nnx.Module) else model
    template = model if make is None else make(nnx.Rngs(0))
    if not isinstance(template, nnx.Module):
        raise ArgumentError(f"model: {make!r} must return a flax.nnx.Module for its rngs.")
    takes = _parameters(type(template).__call__)
    training, testing = nnx.clone(template), nnx.clone(template)
    training.train()
    testing.eval()
    for module in (training, testing):
        _check_convolutions(module)
        nnx_masked(module)
    graphs = {
        train: nnx.split(module, nnx.Param, nnx.BatchStat, ...)
        for train, module in ((True, training), (False, testing))
    }
    stats = bool(jax.tree.leaves(graphs[True][2]))
    if stats and "mask" not in takes and not frozen and not all_masked(training):
        raise ArgumentError(
            "the nnx module keeps batch statistics of its own, which padding examples would enter: give its __call__ "
            'an argument `mask` ([B], 0 for padding) and leave those out; or say batch_stats="frozen".'
        )

    def init(key: Key) -> Params:
        module = model if make is None else make(nnx.Rngs(key))
        _, params, batch_stats, _ = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
        copy = lambda state: jax.tree.map(jnp.array, nnx.to_pure_dict(state))
        return {"params": copy(params)} | ({"batch_stats": copy(batch_stats)} if stats else {})

    def apply(params: Params, batch: Batch, key: Key, train: bool) -> tuple[PyTree, Mapping[str, PyTree]]:
        graph, param_state, stat_state, rest = graphs[train]
        module = nnx.merge(
            graph,
            _filled(param_state, params["params"]),
            _filled(stat_state, params["batch_stats"]) if stats else stat_state,
            _reseeded(rest, key),
        )
        kwargs = _mode(takes, train)
        if "mask" in takes:
            kwargs["mask"] = batch["mask"]
        with padding(batch["mask"]):
            outputs = module(batch[inputs], **kwargs)  # type: ignore[operator]
        if not stats:
            return outputs, {}
        return outputs, {"batch_stats": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))}

    return _Module(init, apply, ("batch_stats",) if stats else ())


def _check_convolutions(module: nnx.Module) -> None:
    """Have a module's convolutions look at their inputs: as linen's, they take such without the batch's axis."""
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.Conv | nnx.ConvTranspose):
            part.__class__ = _checking(type(part))


@functools.cache
def _checking(kind: type[Any]) -> type[Any]:
    """That class of convolutions, which looks at its inputs before it is called."""

    def call(self: Any, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        _check_axes(kind.__name__, self.kernel_size, inputs)
        return kind.__call__(self, inputs, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__})


def _filled(state: Any, values: PyTree) -> Any:
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def _reseeded(state: nnx.State, key: Key) -> nnx.State:
    """The module's random streams, started anew from the step's key."""
    leaves, structure = jax.tree.flatten(state)
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaves[i] = jax.random.fold_in(key, i)
    return jax.tree.unflatten(structure, leaves)


def _parameters(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _mode(takes: frozenset[str], train: bool) -> dict[str, Any]:
    """The argument by which a module is told that it trains, under the name that it uses."""
    for name in ("train", "training", "is_training"):
        if name in takes:
            return {name: train}
    return {"deterministic": not train} if "deterministic" in takes else {}
