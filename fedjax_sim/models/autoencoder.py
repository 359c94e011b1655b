"""The bottleneck autoencoder of federated EMNIST."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class Autoencoder(nn.Module):
    """Dense layers to a small code and back: x [B, ...] in [0, 1] to the same shape.

    The defaults are those of Reddi et al. (2021) for EMNIST: 784, 1000, 500, 250, 30, 250, 500, 1000, 784, all sigmoid
    but the code, which is linear; 2,837,314 parameters. The loss is the squared error's mean over the pixels, and the
    input 1 - x, so that paper is 0.

    Args:
        widths: of the layers before the code, and in reverse after it.
        code: numbers in the middle.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> shapes = jax.eval_shape(fs.models.Autoencoder().init, jax.random.key(0), jnp.zeros((1, 28, 28)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        2837314
    """

    widths: Sequence[int] = (1000, 500, 250)
    code: int = 30

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.reshape(x.shape[0], -1)
        pixels = h.shape[1]
        for width in self.widths:
            h = nn.sigmoid(nn.Dense(width)(h))
        h = nn.Dense(self.code)(h)
        for width in (*reversed(self.widths), pixels):
            h = nn.sigmoid(nn.Dense(width)(h))
        return h.reshape(x.shape)
