"""Next-token prediction."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.client.cross_entropy import Measure, label_loss, label_measures
from fedjax_sim.client.flax_tasks import Model, Preprocess, flax_task, num_classes
from fedjax_sim.client.labels import example_of, label_check
from fedjax_sim.client.task import Columns, ColumnsCheck, Loss, Task
from fedjax_sim.core.arrays import Batch
from fedjax_sim.core.errors import ArgumentError, check, is_traced
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.shown import named


@named()
def next_token(
    model: Model,
    sample: Columns,
    *,
    inputs: str = "x",
    labels: str = "y",
    pad: int = 0,
    special: Sequence[int] = (),
    segments: str | None = None,
    preprocess: Preprocess | None = None,
    measures: Mapping[str, Measure] | None = None,
) -> Task:
    r"""Next-token prediction by a Flax module: x [B, T] to logits [B, T, vocabulary], labels y [B, T].

    The loss is :math:`-\log \mathrm{softmax}(f(x)_t)_{y_t}` over the tokens that are no pads, each counting equally,
    however they lie in windows and clients. Metrics: "loss", "accuracy", and with `special` "accuracy_no_special",
    over the labels that are neither pads nor special: what papers report as accuracy without oov and eos. Measures may
    be `fs.metrics.TopK.of` and `fs.metrics.Perplexity.of`.

    Args:
        model: as in `fs.classification`.
        sample: windows such as `fs.data.next_token_windows` makes; one is enough.
        inputs, labels: the entries.
        pad: the label that does not count; nor does a negative one.
        special: labels left out of "accuracy_no_special", such as `(vocabulary.oov, vocabulary.eos)`.
        segments: the entry that says which text of its row a token belongs to, [B, T], of packed windows. The model
            gets the pair (x, segments), as `fs.models.LSTM` and `fs.models.Transformer` take it.
        preprocess, measures: as in `fs.classification`.

    Raises:
        ArgumentError: entries that the sample lacks. Where the task meets the data: labels that the model has not,
            tokens that are none of a model's `vocab_size`, or nothing but padding.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"snippets": np.array([b"To be,", b"or not"], object)}, offsets=[0, 1, 2])
        >>> letters = fs.data.character_vocabulary()
        >>> windows = fs.data.next_token_windows(data, letters, length=20)
        >>> model = fs.models.LSTM(letters.size, width=16)
        >>> task = fs.next_token(model, windows.arrays, special=(letters.oov, letters.eos))
    """
    check(labels in sample, "labels", labels, f"the sample has only the entries {list(sample)}.")
    if segments is not None:
        check(segments in sample, "segments", segments, f"the sample has only the entries {list(sample)}.")
        preprocess = _with_segments(preprocess, inputs, segments)
    ignored = jnp.asarray([*special], jnp.int32)

    def loss(logits: jax.Array, batch: Batch) -> Loss:
        y = jnp.asarray(batch[labels])
        y = jnp.where(y == pad, -1, y)
        made = label_loss(logits, y)
        if not special:
            return made
        plain = label_loss(logits, jnp.where(jnp.isin(y, ignored), -1, y))  # the compiler drops its unused loss
        return Loss(
            made.value, made.weight, {**(made.metrics or {}), "accuracy_no_special": (plain.metrics or {})["accuracy"]}
        )

    def measured(logits: jax.Array, batch: Batch) -> dict[str, Metric]:
        y = jnp.asarray(batch[labels])
        return label_measures(measures or {}, logits, jnp.where(y == pad, -1, y), batch["mask"])

    given = measured if measures else None
    task = flax_task(model, sample, loss, inputs=inputs, preprocess=preprocess, measures=given)
    classes = functools.partial(num_classes, model, example_of(sample), inputs, labels, preprocess, None)
    tokens = _token_check(inputs, labels, pad, getattr(model, "vocab_size", None), task.check)
    return task._replace(check=label_check(labels, classes, pad, tokens))


def _with_segments(preprocess: Preprocess | None, inputs: str, segments: str) -> Preprocess:
    def prepared(batch: Batch) -> Batch:
        batch = preprocess(batch) if preprocess else batch
        pair: Any = (batch[inputs], batch[segments])
        return {**batch, inputs: pair}

    return prepared


def _token_check(inputs: str, labels: str, pad: int, size: object, before: ColumnsCheck | None) -> ColumnsCheck:
    """A task's `check` that there is something to learn, and that the embedding has the tokens."""

    def check(columns: Columns) -> None:
        if before is not None:
            before(columns)
        x, y = columns.get(inputs), columns.get(labels)
        if y is not None and not is_traced(y) and np.size(y) and not _counts(np.asarray(y), pad):
            raise ArgumentError(
                f"labels {labels!r} hold nothing but padding, {pad} or negative: nothing to learn from."
            )
        if x is None or is_traced(x) or not isinstance(size, int) or not np.size(x):
            return
        low, high = int(np.min(x)), int(np.max(x))
        if low < 0 or high >= size:
            raise ArgumentError(
                f"tokens {inputs!r} run from {low} to {high}, but the model's vocab_size is {size}: 0 to {size - 1}. "
                "The tokenizer does not fit the embedding: give the model its size, or encode with another."
            )

    return check


def _counts(y: np.ndarray, pad: int) -> bool:
    return bool(np.any((y != pad) & (y >= 0)))
