"""Bad clients that train on other data: flipped labels, backdoors, noise."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.attacks.base import Attack
from fedjax_sim.client import Task
from fedjax_sim.core.arrays import Array, Batch, Key, Scalar
from fedjax_sim.core.errors import ArgumentError, check, check_count, check_fraction, check_not_negative

Trigger = Callable[[Array], Array]
"""`(x [B, ...]) -> [B, ...]`: examples with the trigger."""


def label_flip(
    flip: str | Mapping[int, int] | Sequence[int] = "reverse", classes: int = 10, labels: str = "y"
) -> Attack:
    """Labels that are others: c becomes C - 1 - c, or another one at random, or what a map says (Fang et al. 2020).

    Args:
        flip: "reverse"; "random", any other class with equal chances, anew for each example of each step; or a map,
            `{7: 1}`, or all classes' new labels in a sequence.
        classes: C.
        labels: the data's entry. Negative labels, which do not count, stay.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> batch = {"y": jnp.array([0, 7, 9]), "mask": jnp.ones(3)}
        >>> for flip in ("reverse", {7: 1}):
        ...     print(fs.attacks.label_flip(flip).batch(jax.random.key(0), batch)["y"])
        [9 2 0]
        [0 1 9]
    """
    check_count("classes", classes, minimum=2)
    table = None if isinstance(flip, str) and flip == "random" else _table(flip, classes)

    def poison(key: Key, batch: Batch) -> Batch:
        y = batch[labels]
        if table is None:
            other = (y + jax.random.randint(key, y.shape, 1, classes, y.dtype)) % classes
        else:
            other = jnp.asarray(table, y.dtype).at[y].get(mode="clip")
        return {**batch, labels: jnp.where(y >= 0, other, y)}

    name = flip if isinstance(flip, str) else dict(flip) if isinstance(flip, Mapping) else list(flip)
    largest = classes - 1 if table is None else int(table.max())
    return Attack(f"label_flip({name})", batch=poison, check=lambda task: _check_label(task, labels, largest))


def backdoor(trigger: Trigger, target: int, share: float = 0.5, inputs: str = "x", labels: str = "y") -> Attack:
    """A share of the examples gets a trigger and the target's label (Gu et al. 2017), to be obeyed later.

    How well it works, `fs.evaluate` of `backdoor_test(...)` says. Bagdasaryan et al. (2020) also scale what is sent:
    see `replacement`.

    Args:
        trigger: `(x [B, ...]) -> [B, ...]`, as `patch(...)`.
        target: the class.
        share: of the examples of a batch, each with that chance, anew in each step.
        inputs, labels: the data's entries.

    Raises:
        ArgumentError: a share beyond 0 to 1; a target that is no class of the task, when it infects an algorithm.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> attack = fs.attacks.backdoor(fs.attacks.patch(1), target=3, share=1.0)
        >>> batch = {"x": jnp.zeros((2, 2, 2)), "y": jnp.array([0, 1]), "mask": jnp.ones(2)}
        >>> poisoned = attack.batch(jax.random.key(0), batch)
        >>> print(poisoned["x"][0, 0], poisoned["y"])
        [1. 0.] [3 3]
    """
    check(callable(trigger), "trigger", trigger, "must be a function of examples, as fs.attacks.patch(3).")
    check_count("target", target, minimum=0)
    check_fraction("share", share, closed=True)

    def poison(key: Key, batch: Batch) -> Batch:
        x, y = batch[inputs], batch[labels]
        chosen = jax.random.uniform(key, (len(x),)) < share
        pick = lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (b.ndim - 1)), a, b)
        return {**batch, inputs: pick(trigger(x), x), labels: pick(jnp.full_like(y, target), y)}

    check_task = lambda task: _check_label(task, labels, target)
    return Attack(f"backdoor({target}, {share})", batch=poison, check=check_task)


def backdoor_test(
    examples: Mapping[str, Any], trigger: Trigger, target: int, inputs: str = "x", labels: str = "y"
) -> dict[str, np.ndarray]:
    """Test examples with the trigger and the target as label, without those of the target's class.

    The accuracy of `fs.evaluate` on them is the backdoor's success: the share predicted as the target among examples
    whose label it is not. To count the target's own class, as some do, calls a good model a success.

    Args:
        examples: the test data, name to [n, ...].
        trigger, target, inputs, labels: as of `backdoor`.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> test = {"x": np.zeros((3, 2, 2)), "y": np.array([0, 3, 1])}
        >>> triggered = fs.attacks.backdoor_test(test, fs.attacks.patch(1), target=3)
        >>> triggered["y"], triggered["x"].shape
        (array([3, 3]), (2, 2, 2))
    """
    others = np.asarray(examples[labels]) != target
    if not others.any():
        raise ArgumentError(f"target={target}: all test examples are of that class; there is nothing to measure.")
    kept = {name: np.asarray(column)[others] for name, column in examples.items()}
    with jax.ensure_compile_time_eval():  # a sweep builds its simulations while it traces
        x = np.asarray(trigger(jnp.asarray(kept[inputs]))).astype(kept[inputs].dtype)
    return {**kept, inputs: x, labels: np.full_like(kept[labels], target)}


def patch(size: int = 3, value: Scalar = 1.0, at: tuple[int, int] = (0, 0)) -> Trigger:
    """A trigger: a square of pixels of one value.

    Args:
        size: pixels a side.
        value: in units of the examples as clients have them.
        at: row and column of its first pixel.

    Returns:
        `(x) -> x` of pictures [B, H, W] or [B, H, W, C]. It raises an `ArgumentError` where the square is not within
        the picture.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> print(fs.attacks.patch(1, 9.0, at=(0, 1))(jnp.zeros((1, 2, 2))))
        [[[0. 9.]
          [0. 0.]]]
    """
    check_count("size", size)
    row, column = at

    def trigger(x: Array) -> Array:
        fits = x.ndim in (3, 4) and min(at) >= 0 and row + size <= x.shape[1] and column + size <= x.shape[2]
        check(fits, "patch", (size, *at), f"is not within examples of shape {x.shape[1:]}, which must be pictures.")
        return jnp.asarray(x).at[:, row : row + size, column : column + size].set(jnp.asarray(value, x.dtype))

    return trigger


def feature_noise(sigma: Scalar, inputs: str = "x") -> Attack:
    """Normal noise on what a client trains on, anew in each step; its labels stay.

    Args:
        sigma: standard deviation, in units of the examples.
        inputs: the data's entry.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.attacks.feature_noise(0.3).name
        'feature_noise(0.3)'
    """
    check_not_negative("sigma", sigma)

    def poison(key: Key, batch: Batch) -> Batch:
        x = batch[inputs]
        check(jnp.issubdtype(x.dtype, jnp.inexact), "inputs", inputs, f"holds {x.dtype}: noise needs floats.")
        return {**batch, inputs: x + jnp.asarray(sigma, x.dtype) * jax.random.normal(key, x.shape, x.dtype)}

    return Attack(f"feature_noise({sigma})", batch=poison)


def _table(flip: Any, classes: int) -> np.ndarray:
    """[C] new labels."""
    table = np.arange(classes)
    advice = f'must be "reverse", "random", or a map of classes below {classes}.'
    if isinstance(flip, str):
        check(flip == "reverse", "flip", flip, advice)
        return table[::-1].copy()
    whole = isinstance(flip, Mapping) or len(flip) == classes
    pairs = dict(flip) if isinstance(flip, Mapping) else dict(enumerate(flip))
    fits = whole and all(isinstance(c, int | np.integer) and 0 <= c < classes for pair in pairs.items() for c in pair)
    check(fits, "flip", flip, advice)
    for old, new in pairs.items():
        table[old] = new
    return table


def _check_label(task: Task, labels: str, label: int) -> None:
    """Raise what the task says of a label without a class."""
    if task.check is not None:
        task.check({labels: np.array([label], np.int32)})
