"""What is said of predicted tokens: the label among the likeliest few, and perplexity."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array
from fedjax_sim.core.errors import check, check_count, is_traced
from fedjax_sim.core.metrics.base import Mean
from fedjax_sim.core.metrics.numbers import of_classes
from fedjax_sim.core.pytree import pytree

T = TypeVar("T", bound="TopK")
P = TypeVar("P", bound="Perplexity")


@pytree
class TopK(Mean):
    """The share of labels among the k classes of the highest logits; of equal ones the first counts as higher.

    Attributes:
        total, weight: sums of what is right, and of weights.

    Example:
        >>> import functools, jax.numpy as jnp, fedjax_sim as fs
        >>> logits, labels = jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), jnp.array([1, 2])
        >>> print(fs.metrics.TopK.of(logits, labels, k=2).compute())
        0.5
        >>> measures = {"top3": functools.partial(fs.metrics.TopK.of, k=3)}  # of fs.next_token
    """

    @classmethod
    def of(cls: type[T], logits: Array, labels: Array, weight: Array | None = None, k: int = 3) -> T:
        """Of logits [..., C], labels [...] and weights [...]. A negative label does not count; NaN makes it NaN."""
        check_count("k", k)
        check(k <= jnp.shape(logits)[-1], "k", k, f"must be at most the {jnp.shape(logits)[-1]} classes.")
        logits, labels, weight = of_classes(logits, labels, weight)
        own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        first = jnp.arange(logits.shape[-1])[None] < labels[:, None]
        rank = jnp.sum((logits > own) | ((logits == own) & first), axis=-1)
        return cls(jnp.dot((rank < k).astype(jnp.float32), weight), jnp.sum(weight))


@pytree
class Perplexity(Mean):
    r"""The exponential of the mean loss in nats, :math:`\exp(-\sum_n w_n \log p_n(y_n) / \sum_n w_n)`.

    Sums are of losses: over clients it is the perplexity of all their tokens, and no mean of perplexities.

    Attributes:
        total, weight: sums of losses, and of weights.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> print(fs.metrics.Perplexity.of(jnp.zeros((2, 8)), jnp.array([1, 2])).compute().round(4))
        8.0
    """

    @classmethod
    def of(cls: type[P], logits: Array, labels: Array, weight: Array | None = None) -> P:
        """Of logits [..., C], labels [...] and weights [...]. A negative label does not count; NaN makes it NaN."""
        logits, labels, weight = of_classes(logits, labels, weight)
        own = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
        losses = jnp.where(weight == 0, 0.0, jax.nn.logsumexp(logits, axis=-1) - own)
        return cls(jnp.dot(losses, weight), jnp.sum(weight))

    def compute(self) -> Any:
        """The value; NaN where nothing was observed."""
        mean = super().compute()
        return jnp.exp(mean) if is_traced(mean) else np.exp(mean)
