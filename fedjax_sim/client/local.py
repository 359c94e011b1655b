"""What a client function sees, and the loop over its local steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core.arrays import Batch, PyTree, Shapes
from fedjax_sim.core.errors import ArgumentError, check_count
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.pytree import pytree, static, strong, where
from fedjax_sim.core.types import Key, Metrics


@pytree
class ClientBatches:
    """A client's batches, gathered on demand from the data that all clients share.

    Attributes:
        num_steps: [] int32, its local steps (0 for a client without examples).
        num_examples: [] float32, its examples, each counted once.
        client_id: [] int32, its number in the federation.
        info: dict of what the client knows of its round: `round`, [] int32, its number; `weight` and `version`, the
            cohort's; and the sampler's own columns by their names, of the shapes and dtypes that it declares.
        bound: [] int32, the steps to run: the longest client of the chunk. Steps past `num_steps` are masked.
        arrays: pytree of [N, ...], everybody's examples.
        order: [M] int32, rows of `arrays`.
        start, stride: [] int32, where the client begins in `order`, and its rows an epoch.
        batch_size: B.
        longest: steps of the population's longest client.
        alone: True when the chunk holds this client alone, so that no step needs a mask.
        frozen: the task's frozen constants, or None. `fs.grad` and `fs.client.evaluation` read them by themselves.
        first: [] int32, batches of the round that come before the first of these; None for none.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> def client(key, server, row, batches):
        ...     first = batches.batch(0)
        ...     mean = jnp.average(first["x"], weights=first["mask"])  # without the padding
        ...     return fs.ClientUpdate(mean - server, weight=batches.num_examples)
    """

    num_steps: jax.Array
    num_examples: jax.Array
    client_id: jax.Array
    info: dict[str, jax.Array]
    bound: jax.Array | int
    arrays: PyTree
    order: jax.Array
    start: jax.Array
    stride: jax.Array
    batch_size: int = static(default=1)
    longest: int = static(default=0)
    alone: bool = static(default=False)
    frozen: PyTree = None
    first: jax.Array | None = None

    def batch(self, step: jax.Array | int) -> Batch:
        """The batch of a step: the arrays' rows, [B, ...] each, and `mask`, [B] float32.

        Padding examples repeat the client's first row, so that they hold nothing special.
        """
        epoch_steps = jnp.maximum(-(-self.stride // self.batch_size), 1)
        nth = step if self.first is None else step + self.first
        epoch, within = nth // epoch_steps, nth % epoch_steps
        place = within * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.int32)
        real = (place < self.stride) & (step < self.num_steps)
        at = self.start + jnp.where(real, epoch * self.stride + place, 0)
        rows = self.order.at[at].get(mode="clip")
        batch = jax.tree.map(lambda array: array.at[rows].get(mode="clip"), self.arrays)
        if not isinstance(batch, dict):
            batch = {"x": batch}
        if "mask" in batch:
            raise ArgumentError('the data have an entry "mask": the name is reserved; rename it.')
        return {**batch, "mask": real.astype(jnp.float32)}


LocalStep = Callable[[PyTree, Batch, Key], tuple[PyTree, Metrics]]
"""`(value, batch, key) -> (value, metrics)`."""


def local_steps(
    step: LocalStep,
    init: PyTree,
    batches: ClientBatches,
    key: Key,
    static_steps: int | None = None,
) -> tuple[PyTree, dict[str, Metric]]:
    """Run a client's local steps: the loop whose bound is traced, so that one program serves all clients.

    Args:
        step: `(value, batch, key) -> (value, metrics)`; `value` is any pytree, whose structure, shapes and
            dtypes stay as they are. Metrics are merged over steps.
        init: the first `value`.
        batches: the client's batches.
        key: the client's key; step s gets `fold_in(key, s)`.
        static_steps: run a loop of that fixed length instead, so that reverse-mode derivatives can be taken
            through it; at least the steps of the longest client.

    Returns:
        (value, metrics) after `batches.num_steps` steps; later steps change nothing.

    Raises:
        ArgumentError: a step that changes the structure, shapes or dtypes of `value`; too few static steps.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> def client(key, server, row, batches):
        ...     def step(total, batch, key):
        ...         return total + (batch["x"] * batch["mask"]).sum(), {}
        ...
        ...     total, metrics = fs.local_steps(step, jnp.zeros(()), batches, key)
        ...     return fs.ClientUpdate(total, weight=batches.num_examples, metrics=metrics)
    """
    init = strong(init)
    zero_step = jnp.zeros((), jnp.int32)
    like, metrics_like = jax.eval_shape(lambda value: _checked(step(value, batches.batch(zero_step), key)), init)
    _check_same("step", init, like)
    no_metrics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics_like)
    no_metrics = metrics_lib.zero(no_metrics)

    def body(s, carry):
        value, totals = carry
        new, metrics = _checked(step(value, batches.batch(s), jax.random.fold_in(key, s)))
        if not batches.alone or static_steps is not None:
            active = s < batches.num_steps
            new = where(active, new, value)
            metrics = where(active, metrics, metrics_lib.zero(metrics))
        return new, metrics_lib.merge(totals, metrics)

    if static_steps is None:
        return jax.lax.fori_loop(0, batches.bound, body, (init, no_metrics))
    check_count("static_steps", static_steps)
    if static_steps < batches.longest:
        raise ArgumentError(
            f"static_steps={static_steps}: the longest client takes {batches.longest} steps; give at least that many."
        )
    steps = jnp.arange(static_steps, dtype=jnp.int32)
    return jax.lax.scan(lambda carry, s: (body(s, carry), None), (init, no_metrics), steps)[0]


def _checked(result: object) -> tuple[PyTree, dict[str, Metric]]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise ArgumentError(f"a local step returned {type(result).__name__}: must be (value, metrics).")
    return result[0], metrics_lib.as_metrics(result[1])


def _check_same(what: str, before: PyTree, after: Shapes) -> None:
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ArgumentError(
            f"the {what} turned {jax.tree.structure(before)} into {jax.tree.structure(after)}: "
            "it must keep the structure."
        )
    old = jax.tree_util.tree_leaves_with_path(before)
    for (path, a), b in zip(old, jax.tree.leaves(after), strict=True):
        if jnp.shape(a) != b.shape or jnp.result_type(a) != b.dtype:
            raise ArgumentError(
                f"the {what} turned value{jax.tree_util.keystr(path)} from "
                f"{jnp.result_type(a)}{jnp.shape(a)} into {b.dtype}{b.shape}: "
                "it must keep shapes and dtypes."
            )
