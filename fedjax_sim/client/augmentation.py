"""Functions of single examples inside the compiled step: augmentation, and skew that is part of the data.

A function takes an example, a dict of arrays without the batch's axis, and a key, and returns the example changed.
Each example of a batch has a key of its own, from the step's key and its place in the batch, so that neither padding
nor the number of examples changes another's draw.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.client.task import LossFunction, LossResult, Task
from fedjax_sim.core.arrays import Array, Batch, PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import Key, Params

Example = dict[str, jax.Array]
"""A row of a batch: arrays without the batch's axis, and without the mask."""

ExampleFunction = Callable[[Example, Key], Example]


@named()
def augment(task: Task, *functions: ExampleFunction) -> Task:
    """The task on examples changed anew each time they are trained on; evaluation sees them as they are.

    Args:
        task: the task. Its `sample` must look as the functions leave an example.
        functions: `(example, key) -> example`, one after another.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> pictures = {"x": np.zeros((4, 32, 32, 3), np.float32), "y": np.zeros(4, np.int32)}
        >>> task = fs.classification(fs.models.MLP(num_classes=10), pictures)
        >>> task = fs.client.augment(task, fs.client.random_crop(padding=4), fs.client.random_flip())
    """
    return task._replace(loss=_on_examples(task.loss, functions), evaluate=task.evaluate or task.loss)


@named()
def transform(task: Task, *functions: ExampleFunction) -> Task:
    """The task on changed examples, in training and in evaluation: feature skew, which is part of the data.

    With `fs.data.numbered`, a function finds the example's client in `example["client"]`, and its row in
    `example["example"]`.

    Args:
        task: the task.
        functions: as in `augment`.

    Example:
        >>> import jax.numpy as jnp, numpy as np, fedjax_sim as fs
        >>> def darker(example, key):  # the further on a client, the darker its pictures
        ...     return {**example, "x": example["x"] * 0.9 ** example["client"]}
        >>> pictures = {"x": np.ones((6, 8, 8, 1), np.float32), "y": np.zeros(6, np.int32)}
        >>> data = fs.data.numbered(fs.data.FederatedData(pictures, offsets=[0, 3, 6]))
        >>> task = fs.classification(fs.models.LogisticRegression(num_classes=2), pictures)
        >>> task = fs.client.transform(task, darker)
    """
    evaluate = _on_examples(task.evaluate or task.loss, functions)
    # What is stored need not be what the task reads, so that there is nothing to check it for.
    return task._replace(loss=_on_examples(task.loss, functions), evaluate=evaluate, check=None)


def _on_examples(loss: LossFunction, functions: Sequence[ExampleFunction]) -> LossFunction:
    def changed(example: Example, key: Key) -> Example:
        for i, function in enumerate(functions):
            example = function(example, jax.random.fold_in(key, i))
        return example

    def wrapped(params: Params, batch: Batch, key: Key, **frozen: PyTree) -> LossResult:
        examples = {name: array for name, array in batch.items() if name != "mask"}
        own = jax.random.fold_in(key, 0x617567)  # apart from the module's own draws, dropout and the like
        keys = jax.vmap(lambda place: jax.random.fold_in(own, place))(jnp.arange(len(batch["mask"])))
        return loss(params, {**jax.vmap(changed)(examples, keys), "mask": batch["mask"]}, key, **frozen)

    return wrapped


def random_crop(
    height: int | None = None, width: int | None = None, *, padding: int = 0, entry: str = "x"
) -> ExampleFunction:
    """A window of a picture [H, W, ...] at a random place, after padding it with zeros on all four sides.

    Args:
        height, width: of the window; None for the picture's own.
        padding: rows and columns of zeros on each side.
        entry: the column of pictures, of any dtype.

    Example:
        >>> import jax, numpy as np, fedjax_sim as fs
        >>> crop = fs.client.random_crop(24, 24)
        >>> crop({"x": np.zeros((32, 32, 3), np.uint8)}, jax.random.key(0))["x"].shape
        (24, 24, 3)
    """
    check_count("padding", padding, minimum=0)

    def crop(example: Example, key: Key) -> Example:
        x = jnp.asarray(example[entry])
        size = _window(x, height, width, padding)
        x = jnp.pad(x, [(padding, padding)] * 2 + [(0, 0)] * (x.ndim - 2))
        top, left = jax.random.randint(key, (2,), 0, jnp.array([x.shape[0] - size[0] + 1, x.shape[1] - size[1] + 1]))
        return {**example, entry: jax.lax.dynamic_slice(x, (top, left) + (0,) * (x.ndim - 2), (*size, *x.shape[2:]))}

    return crop


def centre_crop(height: int, width: int, *, entry: str = "x") -> ExampleFunction:
    """The window in the middle of a picture [H, W, ...]: what evaluation sees where training sees `random_crop`.

    Example:
        >>> import jax, numpy as np, fedjax_sim as fs
        >>> crop = fs.client.centre_crop(2, 2)
        >>> crop({"x": np.arange(16).reshape(4, 4)}, jax.random.key(0))["x"].tolist()
        [[5, 6], [9, 10]]
    """

    def crop(example: Example, key: Key) -> Example:
        x = example[entry]
        height_, width_ = _window(x, height, width, 0)
        top, left = (x.shape[0] - height_) // 2, (x.shape[1] - width_) // 2
        return {**example, entry: x[top : top + height_, left : left + width_]}

    return crop


def _window(x: Array, height: int | None, width: int | None, padding: int) -> tuple[int, int]:
    if x.ndim < 2:
        raise ArgumentError(f"an example's pictures are {x.shape}: must be [H, W, ...].")
    size = (x.shape[0] if height is None else height, x.shape[1] if width is None else width)
    for name, asked, there in zip(("height", "width"), size, x.shape[:2], strict=True):
        check(0 < asked <= there + 2 * padding, name, asked, f"of a picture of {there} with padding {padding}.")
    return size


def random_flip(*, entry: str = "x") -> ExampleFunction:
    """A picture [H, W, ...], or with probability 1/2 its mirror image, left to right.

    Example:
        >>> import jax, numpy as np, fedjax_sim as fs
        >>> flip = fs.client.random_flip()
        >>> kept = [flip({"x": np.array([[1, 2]])}, jax.random.key(i))["x"].tolist() for i in range(20)]
        >>> sorted(map(str, set(map(str, kept))))
        ['[[1, 2]]', '[[2, 1]]']
    """

    def flip(example: Example, key: Key) -> Example:
        x = jnp.asarray(example[entry])
        return {**example, entry: jnp.where(jax.random.bernoulli(key), x[:, ::-1], x)}

    return flip


def noise(deviations: np.ndarray | Sequence[float], *, seed: int = 0, entry: str = "x") -> ExampleFunction:
    """Gaussian noise, of each client's own deviation, and the same for an example whenever it is seen.

    For `transform`, on data numbered by `fs.data.numbered`. The feature skew of NIID-Bench (Li et al. 2022, IV-B) has
    variance sigma (k + 1) / K for client k: `deviations = np.sqrt(sigma * np.arange(1, K + 1) / K)`.

    Args:
        deviations: [K] standard deviations.
        seed: the noise depends on this and on the example's row alone.
        entry: the column; integers become float32.

    Example:
        >>> import jax, numpy as np, fedjax_sim as fs
        >>> noise = fs.client.noise([0.0, 0.5])
        >>> example = {"x": np.zeros(2, np.float32), "client": 0, "example": 7}
        >>> noise(example, jax.random.key(0))["x"].tolist(), noise({**example, "client": 1}, None)["x"].shape
        ([0.0, 0.0], (2,))
    """
    spread = _per_client("deviations", deviations)
    check(bool(np.all(spread >= 0)), "deviations", deviations, "must not be negative.")

    def add(example: Example, key: Key) -> Example:
        del key
        _check_numbered(example, "client", "example")
        x = jnp.asarray(example[entry])
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
        own = jax.random.fold_in(jax.random.key(seed), example["example"])
        return {**example, entry: x + jnp.asarray(spread, x.dtype)[example["client"]] * jax.random.normal(own, x.shape)}

    return add


def rotation(angles: np.ndarray | Sequence[float], *, entry: str = "x") -> ExampleFunction:
    """Each client's pictures turned counter-clockwise by its own angle; bilinear, zeros from outside.

    For `transform`, on data numbered by `fs.data.numbered`. `angles = [0, 90, 180, 270]` in turn over the clients is
    rotated MNIST as Ghosh et al. (2020) have it.

    Args:
        angles: [K] degrees.
        entry: the column of pictures, [H, W, ...]; integers become float32.

    Example:
        >>> import jax, numpy as np, fedjax_sim as fs
        >>> turn = fs.client.rotation([0, 90])
        >>> example = {"x": np.array([[1.0, 2.0], [3.0, 4.0]]), "client": 1}
        >>> np.rint(turn(example, jax.random.key(0))["x"]).tolist()
        [[2.0, 4.0], [1.0, 3.0]]
    """
    radians = np.deg2rad(_per_client("angles", angles))

    def turn(example: Example, key: Key) -> Example:
        del key
        _check_numbered(example, "client")
        x = jnp.asarray(example[entry])
        if x.ndim < 2:
            raise ArgumentError(f"an example's pictures are {x.shape}: must be [H, W, ...].")
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
        cos = jnp.asarray(np.cos(radians).round(7), jnp.float32)[example["client"]]  # exact at right angles
        sin = jnp.asarray(np.sin(radians).round(7), jnp.float32)[example["client"]]
        H, W = x.shape[:2]
        row, column = jnp.meshgrid(jnp.arange(H) - (H - 1) / 2, jnp.arange(W) - (W - 1) / 2, indexing="ij")
        at = [cos * row + sin * column + (H - 1) / 2, cos * column - sin * row + (W - 1) / 2]
        flat = x.reshape(H, W, -1)
        sample = jax.vmap(lambda plane: jax.scipy.ndimage.map_coordinates(plane, at, order=1), -1, -1)
        return {**example, entry: sample(flat).reshape(x.shape)}

    return turn


def _per_client(name: str, values: np.ndarray | Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    check(array.ndim == 1 and len(array) > 0, name, values, "must be [K], one number a client.")
    check(bool(np.all(np.isfinite(array))), name, values, "must be finite.")
    return array


def _check_numbered(example: Example, *entries: str) -> None:
    for entry in entries:
        if entry not in example:
            raise ArgumentError(
                f"an example has no {entry!r}, only {sorted(example)}: number the data by fs.data.numbered."
            )
