"""Next-token prediction."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from fedjax_sim.client.cross_entropy import Measure, label_loss, label_measures
from fedjax_sim.client.flax_tasks import Model, Preprocess, flax_task, num_classes
from fedjax_sim.client.labels import example_of, label_check
from fedjax_sim.client.task import Columns, Loss, Task
from fedjax_sim.core.arrays import Batch
from fedjax_sim.core.errors import check
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
    preprocess: Preprocess | None = None,
    measures: Mapping[str, Measure] | None = None,
) -> Task:
    r"""Next-token prediction by a Flax module: x [B, T] to logits [B, T, vocabulary], labels y [B, T].

    The loss is :math:`-\log \mathrm{softmax}(f(x)_t)_{y_t}` over the tokens that are no pads, each counting equally,
    however they lie in windows and clients. Metrics: "loss", "accuracy", and with `special` "accuracy_no_special",
    over the labels that are neither pads nor special: what papers report as accuracy without oov and eos.

    Args:
        model: as in `fs.classification`.
        sample: windows such as `fs.data.next_token_windows` makes; one is enough.
        inputs, labels: the entries.
        pad: the label that does not count.
        special: labels left out of "accuracy_no_special", such as `(vocabulary.oov, vocabulary.eos)`.
        preprocess, measures: as in `fs.classification`.

    Raises:
        ArgumentError: entries that the sample lacks.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"snippets": np.array([b"To be,", b"or not"], object)}, offsets=[0, 1, 2])
        >>> letters = fs.data.character_vocabulary()
        >>> windows = fs.data.next_token_windows(data, letters, length=20)
        >>> model = fs.models.LSTM(letters.size, width=16)
        >>> task = fs.next_token(model, windows.arrays, special=(letters.oov, letters.eos))
    """
    check(labels in sample, "labels", labels, f"the sample has only the entries {list(sample)}.")
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
    return task._replace(check=label_check(labels, classes, pad, task.check))
