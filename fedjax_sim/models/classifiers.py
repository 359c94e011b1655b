"""Classifiers: logistic regression, a multilayer perceptron, and the CNNs of EMNIST and CIFAR-10."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from flax.typing import Initializer


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


class LogisticRegression(nn.Module):
    """One dense layer on the flattened input, started at zero: x [B, ...] to logits [B, num_classes].

    With 500 classes and bags of 10,000 words it is the tag prediction model of Reddi et al. (2021) for Stack Overflow,
    5,000,500 parameters; its sigmoids are the loss's.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> model = fs.models.LogisticRegression(num_classes=10)
        >>> model.init(jax.random.key(0), jnp.zeros((1, 60)))["params"]["Dense_0"]["kernel"].shape
        (60, 10)
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(_flat(x))


class MLP(nn.Module):
    """Dense layers with ReLU between: x [B, ...] to logits [B, num_classes]. The default is McMahan et al.'s "2NN".

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> params = fs.models.MLP(num_classes=10).init(jax.random.key(0), jnp.zeros((1, 784)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        199210
    """

    num_classes: int
    widths: Sequence[int] = (200, 200)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _flat(x)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class CNN(nn.Module):
    """The EMNIST CNN of Reddi et al. (2021): x [B, H, W, channels] to logits [B, num_classes].

    conv 3x3x32, ReLU, conv 3x3x64, ReLU (both valid), max pool 2, dropout, dense 128, ReLU, dropout, dense.
    1,206,590 parameters for 28x28x1 pictures of 62 classes. The paper's dropout is 0.25 after the pool and 0.5
    before the last layer; `dropout=d` gives d after the pool and 2d before the last layer, 0 for none.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> params = fs.models.CNN(num_classes=62).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        1206590
    """

    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return _two_convolutions(x, self.num_classes, self.dropout, train, nn.initializers.lecun_normal())


class CIFARCNN(nn.Module):
    """The CIFAR-10 CNN of pfl-research's benchmarks: x [B, 32, 32, 3] to logits [B, num_classes].

    The layers of `CNN` with Glorot's uniform starting values, and a dropout of 0.25 after the pool and 0.5 before the
    last layer. 1,626,442 parameters for 10 classes.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> shapes = jax.eval_shape(fs.models.CIFARCNN().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        1626442
    """

    num_classes: int = 10
    dropout: float = 0.25

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return _two_convolutions(x, self.num_classes, self.dropout, train, nn.initializers.xavier_uniform())


def _two_convolutions(x: jax.Array, num_classes: int, dropout: float, train: bool, kernel: Initializer) -> jax.Array:
    """In a compact method: layers are named in the order they are made."""
    conv = lambda width: nn.Conv(width, (3, 3), padding="VALID", kernel_init=kernel)
    x = nn.relu(conv(32)(x))
    x = nn.relu(conv(64)(x))
    x = _flat(nn.max_pool(x, (2, 2), (2, 2)))
    x = nn.Dropout(dropout, deterministic=not train)(x)
    x = nn.relu(nn.Dense(128, kernel_init=kernel)(x))
    x = nn.Dropout(min(2 * dropout, 1.0), deterministic=not train)(x)
    return nn.Dense(num_classes, kernel_init=kernel)(x)
