"""Tasks that train a part of a model: the rest is frozen, one copy for all clients."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.client.task import LossFunction, LossResult, Task
from fedjax_sim.core.arrays import Batch, PyTree
from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.paths import Pattern, check_pattern, matcher, merge, paths_of, split
from fedjax_sim.core.pytree import pytree
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import Key, Params


@pytree
class Held:
    """The frozen constants of a task that `fs.freeze` made.

    Attributes:
        rest: the leaves that nobody trains; None for those that are trained.
        frozen: the wrapped task's own constants, or None.
    """

    rest: PyTree
    frozen: PyTree = None

    def whole(self, params: Params) -> Params:
        """The wrapped task's parameters."""
        return merge(params, self.rest)


@named("params")
def freeze(task: Task, params: Params, trainable: Pattern) -> Task:
    r"""The task that trains some of a model's leaves, from these values on; the others are frozen constants.

    Its parameters are the tree of the leaves that match, with None in place of the others, and its collections: what
    travels, is clipped, counted and kept for clients. The others are one copy for all clients, in `Task.frozen`.
    `fs.client.whole` gives the whole model back.

    Args:
        task: any task; one that has frozen constants already keeps those too.
        params: the first values of all its parameters, those of a pretrained model say.
        trainable: which leaves are trained: a regular expression that is searched for in their paths, "head|bias$"; or
            a function of a path.

    Raises:
        ArgumentError: a pattern that matches no leaf, or every one; parameters of another structure than the task's.

    Example:
        >>> import jax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> params = task.init(jax.random.key(0))
        >>> biases = fs.freeze(task, params, trainable="bias$")  # BitFit (Zaken et al. 2022)
        >>> sum(leaf.size for leaf in jax.tree.leaves(biases.init(jax.random.key(1))))
        410
    """
    check_pattern("trainable", trainable)
    check_params(task, params)
    matches = matcher(trainable)
    own = {name: params[name] for name in task.collections}
    among = {name: value for name, value in params.items() if name not in own} if own else params
    paths = paths_of(among)
    chosen = [path for path in paths if matches(path)]
    if len(chosen) in (0, len(paths)):
        which = "every leaf, so that nothing is frozen" if chosen else "no leaf"
        raise ArgumentError(f"trainable={trainable!r} matches {which}: must match some of {paths}.")
    rest, trained = split(trainable, among)
    first = {**trained, **own} if own else trained
    rest = {**rest, **jax.tree.map(lambda leaf: None, own)} if own else rest

    def wrapped(loss: LossFunction) -> LossFunction:
        def frozen_loss(params: Params, batch: Batch, key: Key, *, frozen: Held) -> LossResult:
            return loss(frozen.whole(params), batch, key, **own_constants(frozen))

        return frozen_loss

    held = Held(jax.tree.map(jnp.asarray, rest), task.frozen)
    return task._replace(
        init=lambda key: jax.tree.map(jnp.asarray, first),
        loss=wrapped(task.loss),
        evaluate=task.evaluate and wrapped(task.evaluate),
        frozen=held,
    )


def whole(task: Task, params: Params) -> Params:
    """The parameters of the model that a task trains a part of.

    Args:
        task: one that `fs.freeze` or `fs.lora.adapt` made, perhaps of another such; or any other task.
        params: its parameters.

    Returns:
        The parameters of the task that it was first made of: of a low-rank adaptation, kernels with what was learnt.

    Example:
        >>> import jax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> head = fs.freeze(task, task.init(jax.random.key(0)), trainable="Dense_2")
        >>> head.init(jax.random.key(1))["params"]["Dense_0"]
        {'bias': None, 'kernel': None}
        >>> fs.client.whole(head, head.init(jax.random.key(1)))["params"]["Dense_0"]["kernel"].shape
        (64, 200)
    """
    constants: Any = task.frozen
    while hasattr(constants, "whole"):
        params, constants = constants.whole(params), constants.frozen
    return params


def own_constants(constants: Any) -> dict[str, PyTree]:
    """What the wrapped task's loss takes: its own frozen constants, where it has some."""
    return {} if constants.frozen is None else {"frozen": constants.frozen}


def check_params(task: Task, params: Params) -> None:
    """Parameters are of the task's structure and shapes."""
    like = jax.eval_shape(task.init, jax.random.key(0))
    same = jax.tree.structure(like) == jax.tree.structure(params)
    pairs = zip(jax.tree.leaves(like), jax.tree.leaves(params), strict=True) if same else ()
    same = same and all(jnp.shape(a) == jnp.shape(b) for a, b in pairs)
    check(same, "params", paths_of(params), f"must have the task's leaves, {paths_of(like)}, of the same shapes.")
