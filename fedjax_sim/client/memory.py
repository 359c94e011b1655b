"""Tasks that compute in short numbers, or keep less for the gradient: transforms of a task's loss, which compose."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fedjax_sim.client.task import Loss, LossFunction, LossResult, Task, as_loss
from fedjax_sim.core.arrays import Array, Batch, PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import Key, Params


@named()
def compute_in(task: Task, dtype: DTypeLike = jnp.bfloat16) -> Task:
    """The task with its loss computed in a short floating-point type: mixed precision.

    Parameters and a batch's floating-point arrays are cast at the start of each step, losses, metrics and collections
    back at its end. What is kept stays as it was, in float32 as a rule: the model, gradients, optimizers' states,
    updates and sums. `fs.classification` computes its softmax in float32 all the same.

    Args:
        task: any task.
        dtype: bfloat16, or float16, whose small range asks for scaled losses, which are the task's to scale.

    Raises:
        ArgumentError: a type that is not floating-point.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> batch = {"x": jnp.array([1.01]), "mask": jnp.ones(1)}
        >>> grads, _ = fs.grad(fs.client.compute_in(task))(jnp.ones(()), batch, jax.random.key(0))
        >>> grads.dtype  # of a difference of bfloat16 numbers
        dtype('float32')
    """
    check(jnp.issubdtype(dtype, jnp.floating), "dtype", dtype, "must be a floating-point type.")

    def cast(tree: PyTree) -> PyTree:
        short = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        return jax.tree.map(lambda leaf: short(jnp.asarray(leaf)), tree)

    def wrapped(loss: LossFunction) -> LossFunction:
        def computed(params: Params, batch: Batch, key: Key, **frozen: PyTree) -> LossResult:
            mask = {"mask": batch["mask"]} if "mask" in batch else {}
            result = loss(cast(params), {**cast(batch), **mask}, key, **cast(frozen))
            if isinstance(result, Loss) and result.variables:
                kept = {name: params[name] for name in result.variables}
                like = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), result.variables, kept)
                return Loss(_long(result.value), _long(result.weight), _long(result.metrics), like)
            return _long(result)

        return computed

    return task._replace(loss=wrapped(task.loss), evaluate=task.evaluate and wrapped(task.evaluate))


def _long(tree: PyTree) -> PyTree:
    """Short floating-point numbers as float32."""

    def leaf(value: Array) -> jax.Array:
        value = jnp.asarray(value)
        return value.astype(jnp.promote_types(value.dtype, jnp.float32)) if _is_float(value) else value

    return jax.tree.map(leaf, tree)


def _is_float(value: jax.Array) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)


@named()
def remat(task: Task) -> Task:
    """The task whose gradient computes its activations once more instead of keeping them (`jax.checkpoint`).

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.client.remat(fs.classification(fs.models.CNN(10), digits.train))
    """
    return task._replace(loss=jax.checkpoint(task.loss))


@named()
def micro_batches(task: Task, count: int) -> Task:
    """The task whose batches are computed in parts, one after the other; memory is that of one part.

    The gradient is the batch's own, up to rounding: a batch is cut after its losses are defined example by example, and
    before they are averaged. Parts draw from keys of their own, so that dropout draws otherwise than without them.

    Args:
        task: one without collections, whose loss has no metrics but numbers an example.
        count: parts; it must divide the batch size.

    Raises:
        ArgumentError: a task with collections; when traced, a batch that does not divide, or a metric of another kind.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.client.micro_batches(fs.classification(fs.models.MLP(10), digits.train), count=4)
    """
    check_count("count", count)
    if task.collections:
        raise ArgumentError(
            f"task.collections={task.collections}: parts of a batch would each make their own; use remat."
        )

    def loss(params: Params, batch: Batch, key: Key, **frozen: PyTree) -> Loss:
        size = batch["mask"].shape[0]
        if size % count:
            raise ArgumentError(f"count={count}: must divide the batch size, which is {size}.")
        parts = jax.tree.map(lambda leaf: leaf.reshape(count, size // count, *leaf.shape[1:]), batch)

        @jax.checkpoint
        def one(part: tuple[Batch, jax.Array]) -> Loss:
            batch, i = part
            found = as_loss(task, task.loss(params, batch, jax.random.fold_in(key, i), **frozen), batch)
            other = [name for name, value in (found.metrics or {}).items() if isinstance(value, Metric)]
            if other:
                raise ArgumentError(
                    f"metrics {other}: micro-batches join numbers an example; give those, or use remat."
                )
            return found

        joined = jax.lax.map(one, (parts, jnp.arange(count)))
        return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), joined)

    many = lambda like: jax.ShapeDtypeStruct((count * like.shape[0], *like.shape[1:]), like.dtype)
    return task._replace(loss=loss, sample=task.sample and tuple((name, many(like)) for name, like in task.sample))
