"""Low-rank adaptation (Hu et al. 2022): a task whose parameters are thin factors beside frozen kernels."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.client import Task
from fedjax_sim.client.freezing import check_params, own_constants, whole
from fedjax_sim.client.labels import example_of
from fedjax_sim.client.task import LossFunction, LossResult
from fedjax_sim.core.arrays import Array, Batch, PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count, check_positive
from fedjax_sim.core.paths import Pattern, check_pattern, matcher, text
from fedjax_sim.core.pytree import pytree, static
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import Key, Params
from fedjax_sim.lora.rewrite import run
from fedjax_sim.lora.views import Reading, View

Scaling = Literal["lora", "rslora"]
"""What B A is multiplied by: alpha / r, or alpha / sqrt(r) (Kalajdzievski 2023)."""

A, B = "lora_a", "lora_b"
"""The names of a kernel's factors."""


class Kernel(NamedTuple):
    """A leaf that is adapted, and how it is read: as a matrix [out, in] for each place on its shared axes.

    Attributes:
        path: of the leaf.
        shape: its shape.
        inputs: the axes that products sum over, in the leaf's order; `in` is the product of their lengths.
        shared: the axes of a stack of matrices, as a scan over layers has.
        lookup: a table whose rows are looked up, as an embedding.
    """

    path: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    shared: tuple[int, ...] = ()
    lookup: bool = False

    @property
    def outputs(self) -> tuple[int, ...]:
        """The axes of what comes out."""
        return tuple(i for i in range(len(self.shape)) if i not in (*self.inputs, *self.shared))

    def lengths(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Of axes."""
        return tuple(self.shape[i] for i in axes)

    @property
    def stack(self) -> tuple[int, ...]:
        """Lengths of the shared axes."""
        return self.lengths(self.shared)

    @property
    def fan_in(self) -> int:
        """Inputs."""
        return math.prod(self.lengths(self.inputs))

    @property
    def fan_out(self) -> int:
        """Outputs."""
        return math.prod(self.lengths(self.outputs))

    def laid(self, matrix: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        """[stack, n, r], n the product of some axes, as the leaf lies: [..., r], of length 1 on the other axes."""
        order = (*self.shared, *axes)
        apart = matrix.reshape(*self.lengths(order), matrix.shape[-1])
        turned = jnp.transpose(apart, (*sorted(range(len(order)), key=order.__getitem__), len(order)))
        return jnp.expand_dims(turned, [i for i in range(len(self.shape)) if i not in order])

    def matrix(self, leaf: jax.Array) -> jax.Array:
        """The leaf as [stack, out, in]."""
        turned = jnp.transpose(leaf, (*self.shared, *self.outputs, *self.inputs))
        return turned.reshape(*self.stack, self.fan_out, self.fan_in)

    def leaf(self, matrix: jax.Array) -> jax.Array:
        """A matrix [stack, out, in] as the leaf lies."""
        order = (*self.shared, *self.outputs, *self.inputs)
        return jnp.transpose(matrix.reshape(self.lengths(order)), sorted(range(len(order)), key=order.__getitem__))


@pytree
class Base:
    """The frozen constants of a task that `fs.lora.adapt` made.

    Attributes:
        params: the model that is adapted, without its collections.
        frozen: the wrapped task's own constants, or None.
        kernels: what is adapted.
        rank, alpha, scaling: as of `adapt`.
    """

    params: PyTree
    frozen: PyTree
    kernels: tuple[Kernel, ...] = static()
    rank: int = static()
    alpha: float = static()
    scaling: Scaling = static(default="lora")

    def scale(self, rank: Any) -> Any:
        """What B A of a rank is multiplied by."""
        return self.alpha / rank if self.scaling == "lora" else self.alpha / rank**0.5

    def delta(self, kernel: Kernel, factors: Mapping[str, jax.Array]) -> jax.Array:
        """What is added to a kernel, as the leaf lies, float32."""
        product = factors[B].astype(jnp.float32) @ factors[A].astype(jnp.float32)
        return kernel.leaf(self.scale(self.rank) * product)

    def plus(self, added: Mapping[str, jax.Array]) -> "Base":
        """With kernels to which something, as the leaf lies, is added in float32."""
        both = lambda leaf, delta: (leaf.astype(jnp.float32) + delta).astype(leaf.dtype)
        place = lambda path, leaf: both(leaf, added[text(path)]) if text(path) in added else leaf
        return dataclasses.replace(self, params=jax.tree_util.tree_map_with_path(place, self.params))

    def whole(self, params: Params) -> Params:
        """The wrapped task's parameters, with what was learnt."""
        added = {kernel.path: self.delta(kernel, params[kernel.path]) for kernel in self.kernels}
        rest = {name: value for name, value in params.items() if name not in added}
        made = self.plus(added).params
        return {**made, **rest} if rest else made

    def views(self, params: Params) -> Params:
        """The wrapped task's parameters, with views in the places of the kernels."""
        by_path = {kernel.path: kernel for kernel in self.kernels}

        def place(path: tuple, leaf: jax.Array) -> Any:
            kernel = by_path.get(text(path))
            if kernel is None:
                return leaf
            down = kernel.laid(jnp.swapaxes(params[kernel.path][A], -1, -2), kernel.inputs)
            up = self.scale(self.rank) * kernel.laid(params[kernel.path][B], kernel.outputs)
            return View(leaf, down, up, kernel.path, tuple((i,) for i in range(leaf.ndim)))

        made = jax.tree_util.tree_map_with_path(place, self.params)
        rest = {name: value for name, value in params.items() if name not in by_path}
        return {**made, **rest} if rest else made

    def reading(self) -> Reading:
        """How products must read the kernels."""
        reading = Reading()
        for kernel in self.kernels:
            reading.read(kernel.path, kernel.inputs, kernel.shared)
        return reading


@named("params")
def adapt(
    task: Task,
    params: Params,
    rank: int = 8,
    alpha: float = 16,
    targets: Pattern = r"(q|v)_proj|query|value",
    *,
    init: Literal["gaussian", "uniform"] = "gaussian",
    scaling: Scaling = "lora",
    sample: Mapping[str, Array] | None = None,
) -> Task:
    r"""The task that trains thin factors beside a model's frozen kernels (LoRA, Hu et al. 2022, eq. 3).

    .. math:: y = W x + \frac{\alpha}{r} B A x

    B, [out, r], is 0 at first; A, [r, in], is not. The loss is rewritten where a product of matrices, or an
    embedding's lookup, reads a kernel: :math:`W x` is one product for all clients that are trained side by side, and no
    client has a kernel of its own. So it works on any module, and on any loss. The kernels, and all else of the model,
    are the new task's `frozen` constants; its parameters are `{path: {"lora_a": [r, in], "lora_b": [out, r]}}`, and the
    collections. They are what algorithms, chains, server optimizers and privacy see. A kernel of several axes counts as
    [out, in], each side the product of its axes in the leaf's order; one that a scan over layers reads has a stack of
    factors.

    Args:
        task: any task, whose loss reads `params`; `fs.client.remat` and others may wrap it before or after.
        params: the pretrained model. bfloat16 is fine: factors and their gradients are float32.
        rank: r, at most the smaller side of each kernel.
        alpha: :math:`\alpha`.
        targets: which kernels: a regular expression that is searched for in paths ("params/layers_0/q_proj/kernel"),
            or a function of a path. Leaves of less than two axes, biases say, are left out.
        init: of A; "gaussian", of deviation 1 / r; or "uniform", within 1 / sqrt(in), as PEFT's default.
        scaling: "lora" for alpha / r, or "rslora" for alpha / sqrt(r).
        sample: a small batch, by which it is seen how the loss reads kernels; None for the task's own (tasks from Flax
            modules have one). Without any, kernels have two axes, [in, out].

    Raises:
        ArgumentError: a pattern that matches no kernel, or every leaf, biases and all; a rank above a kernel's size; a
            kernel that is read by something else than products and lookups, a convolution say, or in two ways, as tied
            embeddings are; parameters of another structure than the task's.

    Example:
        >>> import jax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> lora = fs.lora.adapt(task, task.init(jax.random.key(0)), rank=4, targets="Dense_[01]/kernel")
        >>> jax.tree.map(lambda leaf: leaf.shape, lora.init(jax.random.key(1)))["params/Dense_0/kernel"]
        {'lora_a': (4, 64), 'lora_b': (200, 4)}
    """
    check_count("rank", rank)
    check_positive("alpha", alpha)
    check_pattern("targets", targets)
    check(init in ("gaussian", "uniform"), "init", init, 'must be "gaussian" or "uniform".')
    check(scaling in ("lora", "rslora"), "scaling", scaling, 'must be "lora" or "rslora".')
    check_params(task, params)
    own = {name: params[name] for name in task.collections}
    rest = {name: value for name, value in params.items() if name not in own} if own else params
    like = task.sample if sample is None else tuple(example_of(sample).items())
    kernels = _kernels(task, params, _chosen(rest, targets), like)
    for kernel in kernels:
        small = min(kernel.fan_in, kernel.fan_out)
        advice = f"must be at most {small}: {kernel.path!r} is [out={kernel.fan_out}, in={kernel.fan_in}]."
        check(rank <= small, "rank", rank, advice)

    def first(key: Key) -> Params:
        factors = {k.path: _first(jax.random.fold_in(key, i), k, rank, init) for i, k in enumerate(kernels)}
        return {**factors, **jax.tree.map(jnp.asarray, own)}

    return task._replace(
        init=first,
        loss=_adapted(task.loss),
        evaluate=task.evaluate and _adapted(task.evaluate),
        frozen=Base(jax.tree.map(jnp.asarray, rest), task.frozen, kernels, rank, float(alpha), scaling),
    )


def merge(task: Task, params: Params) -> Params:
    r"""The model with what was learnt: each kernel is :math:`W + \frac{\alpha}{r} B A`, in its own type.

    Args:
        task: one that `fs.lora.adapt` made, or a rule's (`algorithm.task`).
        params: its parameters, `sim.params(state)` say.

    Returns:
        Parameters of the task that was adapted.

    Raises:
        ArgumentError: a task without factors.

    Example:
        >>> import jax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> params = task.init(jax.random.key(0))
        >>> lora = fs.lora.adapt(task, params, targets="Dense_0/kernel")
        >>> merged = fs.lora.merge(lora, lora.init(jax.random.key(1)))
        >>> bool((merged["params"]["Dense_0"]["kernel"] == params["params"]["Dense_0"]["kernel"]).all())
        True
    """
    base_of(task)
    return whole(task, params)


def base_of(task: Task) -> Base:
    """What a task adapts."""
    constants: Any = task.frozen
    while constants is not None and not isinstance(constants, Base):
        constants = getattr(constants, "base", getattr(constants, "frozen", None))
    if constants is None:
        raise ArgumentError(f"task={task!r}: has no low-rank factors; make it by fs.lora.adapt(task, params).")
    return constants


def _adapted(loss: LossFunction) -> LossFunction:
    def adapted_loss(params: Params, batch: Batch, key: Key, *, frozen: Base) -> LossResult:
        return _traced(loss, frozen.views(params), batch, key, own_constants(frozen), frozen.reading())

    return adapted_loss


def _traced(
    loss: LossFunction, params: Params, batch: Batch, key: Key, own: Mapping[str, PyTree], reading: Reading
) -> LossResult:
    """The loss, run with views among its parameters."""
    is_view = lambda leaf: isinstance(leaf, View)
    plain = jax.tree.map(lambda leaf: leaf.value if is_view(leaf) else leaf, params, is_leaf=is_view)
    whole = lambda params, batch, key, own: loss(params, batch, key, **own)
    closed, shapes = jax.make_jaxpr(whole, return_shape=True)(plain, batch, key, own)
    values = jax.tree.leaves((params, batch, key, own), is_leaf=is_view)
    return jax.tree.unflatten(jax.tree.structure(shapes), run(closed, values, reading))


def _chosen(params: Params, targets: Pattern) -> dict[str, tuple[int, ...]]:
    """Path to shape of the leaves that are adapted."""
    matches = matcher(targets)
    leaves = {text(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    able = {path: shape for path, shape in leaves.items() if len(shape) > 1}
    found = {path: shape for path, shape in able.items() if matches(path)}
    if not found:
        raise ArgumentError(f"targets={targets!r} matches no kernel: must match some of {list(able)}.")
    if len(found) < len(leaves) and all(map(matches, leaves)):
        raise ArgumentError(f"targets={targets!r} matches every leaf: say which kernels, of {list(able)}.")
    return found


def _kernels(
    task: Task,
    params: Params,
    chosen: Mapping[str, tuple[int, ...]],
    sample: tuple[tuple[str, jax.ShapeDtypeStruct], ...] | None,
) -> tuple[Kernel, ...]:
    """How the loss reads the leaves that are adapted."""
    if sample is None:
        for path, shape in chosen.items():
            check(
                len(shape) == 2, "sample", sample, f"which axes of {path!r}, {shape}, are inputs, a small batch shows."
            )
        return tuple(Kernel(path, shape, (0,)) for path, shape in chosen.items())
    reading = Reading()

    def watched(params: Params, batch: Batch, key: Key, own: Mapping[str, PyTree]) -> LossResult:
        def place(path: tuple, leaf: jax.Array) -> Any:
            axes = tuple((i,) for i in range(leaf.ndim))
            return View(leaf, None, None, text(path), axes) if text(path) in chosen else leaf

        views = jax.tree_util.tree_map_with_path(place, params)
        return _traced(task.loss, views, batch, key, own, reading)

    constants = {} if task.frozen is None else {"frozen": task.frozen}
    jax.eval_shape(watched, params, dict(sample), jax.random.key(0), constants)
    unread = [path for path in chosen if path not in reading.inputs]
    if unread:
        raise ArgumentError(f"targets {unread} are read by no product of the task's loss: leave them out of targets=.")
    kernel = lambda path: Kernel(
        path, chosen[path], reading.inputs[path], reading.shared[path], path in reading.lookups
    )
    return tuple(map(kernel, chosen))


def _first(key: Key, kernel: Kernel, rank: int, init: str) -> dict[str, jax.Array]:
    shape = (*kernel.stack, rank, kernel.fan_in)
    if init == "gaussian":
        a = jax.random.normal(key, shape) / rank
    else:
        a = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / kernel.fan_in**0.5
    return {A: a, B: jnp.zeros((*kernel.stack, kernel.fan_out, rank))}
