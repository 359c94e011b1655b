"""ResNet-18, the one that was released for federated CIFAR-100 and the standard one."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_sim.core.errors import ArgumentError, check


class ResNet18(nn.Module):
    """Pre-activation residual blocks (He et al. 2016, "Identity mappings"): x [B, H, W, channels] to logits.

    A stem (convolution 7x7 with stride 2, norm, ReLU, max pool 3x3 with stride 2); four stages of two blocks of two 3x3
    convolutions, of 64, 128, 256 and 512 channels; norm, ReLU, the mean over the picture, a dense layer. 11,227,812
    parameters for 100 classes, whatever the strides. A block is norm-ReLU-convolution twice, without the first norm
    and ReLU in the first block; where channels or strides change, the shortcut is a 1x1 convolution of the block's
    input and a norm. Convolutions have no bias and He-normal kernels, the last kernel is normal with deviation 0.01.

    `strides=(1, 2, 2, 2)` is the standard ResNet-18: every stage but the first halves the picture. In the code that was
    released with Reddi et al. (2021) all strides are 1, `strides=(1, 1, 1, 1)`: pictures of 24x24 stay 6x6 through all
    stages, which computes far more. Their loss has 1e-4 times the squares of kernels and of the last bias besides, as
    do gradients with 2e-4 times the weight: `optax.add_decayed_weights(2e-4, mask=...)` before the SGD.

    Batch statistics are of one client's examples. `norm="group"` (Hsieh et al. 2020) has none, and is what federated
    papers use; with `norm="batch"` say what becomes of them: `batch_stats=` of `fs.classification`.

    Args:
        num_classes: of the logits.
        strides: of each stage's first block.
        stem: "large", as above; or "small" for pictures of 32x32: 3x3 with stride 1 and no pool (11,173,962
            parameters for 10 classes).
        norm: "group", or "batch" with a momentum of 0.9.
        groups: of the group norms.
        widths, blocks: channels and blocks of each stage.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> shapes = jax.eval_shape(fs.models.ResNet18(100).init, jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        11227812
    """

    num_classes: int = 100
    strides: Sequence[int] = (1, 2, 2, 2)
    stem: Literal["large", "small"] = "large"
    norm: Literal["group", "batch"] = "group"
    groups: int = 32
    widths: Sequence[int] = (64, 128, 256, 512)
    blocks: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        self._check()
        large = self.stem == "large"
        x = self._conv(x, self.widths[0], 7 if large else 3, 2 if large else 1)
        x = nn.relu(self._norm(x, train))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            for block in range(self.blocks):
                first = block == 0
                x = self._block(x, width, stride if first else 1, train, bare=first and stage == 0)
        x = jnp.mean(nn.relu(self._norm(x, train)), axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01))(x)

    def _block(self, x: jax.Array, width: int, stride: int, train: bool, bare: bool) -> jax.Array:
        """A block; `bare` without its first norm and ReLU, which the stem has just had."""
        h = x if bare else nn.relu(self._norm(x, train))
        h = self._conv(h, width, 3, stride)
        h = self._conv(nn.relu(self._norm(h, train)), width, 3, 1)
        if x.shape != h.shape:
            x = self._norm(self._conv(x, width, 1, stride), train)
        return x + h

    def _conv(self, x: jax.Array, width: int, size: int, stride: int) -> jax.Array:
        made = nn.Conv(width, (size, size), stride, use_bias=False, kernel_init=nn.initializers.he_normal())
        return made(x)

    def _norm(self, x: jax.Array, train: bool) -> jax.Array:
        if self.norm == "group":
            return nn.GroupNorm(self.groups, epsilon=1e-3)(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

    def _check(self) -> None:
        check(self.stem in ("large", "small"), "stem", self.stem, 'must be "large" or "small".')
        check(self.norm in ("group", "batch"), "norm", self.norm, 'must be "group" or "batch".')
        if len(self.strides) != len(self.widths):
            raise ArgumentError(f"strides={self.strides}: must be one for each of {len(self.widths)} stages.")
        narrow = [width for width in self.widths if self.norm == "group" and width % self.groups]
        check(not narrow, "groups", self.groups, f"must divide the channels {narrow}.")
