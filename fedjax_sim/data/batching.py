"""How a client's examples become batches."""

import dataclasses

import numpy as np

from fedjax_sim.core.errors import check, check_count


@dataclasses.dataclass(frozen=True)
class Batching:
    """How a client's examples become batches.

    A client of n examples takes ceil(n / batch_size) steps an epoch, the last batch being short and masked. Batches
    never straddle epochs. Its weight in a mean by examples is n, each example counted once whatever `epochs`.

    Args:
        batch_size: B.
        epochs: passes over the client's examples.
        steps: a fixed number of local steps instead of `epochs`, for every client with at least one batch.
        shuffle: draw a new order each round and epoch; else the stored order.
        drop_remainder: leave the short last batch out of every epoch.
        max_examples: use only a client's first so many stored examples.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.Batching(batch_size=20, epochs=5).count_steps([0, 20, 21]).tolist()
        [0, 5, 10]
    """

    batch_size: int
    epochs: int = 1
    steps: int | None = None
    shuffle: bool = True
    drop_remainder: bool = False
    max_examples: int | None = None

    def __post_init__(self):
        check_count("batch_size", self.batch_size)
        check_count("epochs", self.epochs)
        if self.steps is not None:
            check_count("steps", self.steps)
            check(self.epochs == 1, "epochs", self.epochs, "give epochs or steps, not both.")
        if self.max_examples is not None:
            check_count("max_examples", self.max_examples)

    def times(self, count: int) -> "Batching":
        """So many times the work, one after another, each going on where the last one ended."""
        more = {"epochs": self.epochs * count} if self.steps is None else {"steps": self.steps * count}
        return dataclasses.replace(self, **more)

    def count_examples(self, sizes) -> np.ndarray:
        """[K] examples a client uses, each counted once."""
        sizes = np.asarray(sizes)
        return sizes if self.max_examples is None else np.minimum(sizes, self.max_examples)

    def count_epoch_steps(self, sizes) -> np.ndarray:
        """[K] batches in one epoch."""
        used = self.count_examples(sizes)
        return used // self.batch_size if self.drop_remainder else -(-used // self.batch_size)

    def count_steps(self, sizes) -> np.ndarray:
        """[K] local steps of a round."""
        each = self.count_epoch_steps(sizes)
        return each * self.epochs if self.steps is None else np.where(each > 0, self.steps, 0)

    def most_steps(self, sizes) -> int:
        """Local steps of the client that has most; 0 of none."""
        return int(self.count_steps(sizes).max(initial=0))

    def count_rows(self, sizes, steps=None) -> np.ndarray:
        """[K] entries a client takes in a plan's `order`: one for each example of each step, so at most steps x B."""
        each = np.maximum(self.count_epoch_steps(sizes), 1)
        steps = self.count_steps(sizes) if steps is None else steps
        stride = np.minimum(self.count_examples(sizes), each * self.batch_size)
        return steps // each * stride + np.minimum(stride, steps % each * self.batch_size)
