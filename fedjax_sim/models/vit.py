"""A small vision transformer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_sim.core.errors import check


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021): x [B, H, W, channels] to logits [B, num_classes].

    Patches and a class token with learnt positions; blocks of LayerNorm, attention, LayerNorm, and two dense layers
    with GELU between; LayerNorm and a dense layer of the class token. The defaults are ViT-Ti (Touvron et al. 2021):
    with 16x16 patches of 224x224x3 pictures and 1000 classes, 5,717,416 parameters; with `patch=4` for pictures of
    32x32 and 10 classes, 5,362,762. It has no batch statistics. Kernels start truncated normal with deviation 0.02.

    Args:
        num_classes: of the logits.
        patch: pixels of a patch's side, which divides the picture's.
        width, depth, heads: of the blocks; the dense layers in them are four times as wide.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> model = fs.models.ViT(1000)
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        5717416
    """

    num_classes: int
    patch: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, side, start = x.shape[1:3], self.patch, nn.initializers.truncated_normal(0.02)
        check(size[0] % side == 0 and size[1] % side == 0, "patch", side, f"must divide the pictures' sides {size}.")
        check(self.width % self.heads == 0, "heads", self.heads, f"must divide the width, {self.width}.")
        dense = lambda width: nn.Dense(width, kernel_init=start)
        norm = lambda: nn.LayerNorm(epsilon=1e-6)
        h = nn.Conv(self.width, (side, side), (side, side), "VALID", kernel_init=start, name="patches")(x)
        h = h.reshape(h.shape[0], -1, self.width)
        token = self.param("token", start, (1, 1, self.width))
        h = jnp.concatenate([jnp.broadcast_to(token, (h.shape[0], 1, self.width)), h], axis=1)
        h = h + self.param("positions", start, (1, *h.shape[1:]))
        for _ in range(self.depth):
            h = h + nn.MultiHeadDotProductAttention(self.heads, kernel_init=start)(norm()(h))
            wide = nn.gelu(dense(4 * self.width)(norm()(h)), approximate=False)
            h = h + dense(self.width)(wide)
        return dense(self.num_classes)(norm()(h)[:, 0])
