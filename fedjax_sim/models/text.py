"""Language models: the LSTMs of the federated benchmarks."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_sim.models.recurrent import lstm


class LSTM(nn.Module):
    """Embedding, LSTM layers, and logits of the next token: x [B, T] int32 to [B, T, vocab_size].

    The defaults are the next-character model of Reddi et al. (2021, Table 9) for Shakespeare, 820,522 parameters.
    `LSTM(10_004, embedding=96, width=670, layers=1, projection=96)` is their next-word model for Stack Overflow,
    4,050,748 parameters. Starting values are theirs too: uniform embeddings, He-normal input and orthogonal recurrent
    kernels, forget gates' biases 1. Pads stand at the end of a window, where they change no other token's logits. With
    the pair (x, segments) for x, segments [B, T] int32, each segment begins as a text of its own.

    On a CPU a training step takes about as long as PyTorch's: a layer's gradient is written out, with one product for
    its recurrent kernel. Forward mode, `jax.jvp` of the model itself, is not defined for it.

    Args:
        vocab_size: numbers of the vocabulary, special ones included.
        embedding: width of the embedding.
        width: units of each layer.
        layers: LSTM layers.
        projection: width of a linear layer before the logits, or None for none.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> params = fs.models.LSTM().init(jax.random.key(0), jnp.zeros((1, 80), jnp.int32))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        820522
    """

    vocab_size: int = 90
    embedding: int = 8
    width: int = 256
    layers: int = 2
    projection: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array | tuple[jax.Array, jax.Array]) -> jax.Array:
        x, segments = x if isinstance(x, tuple) else (x, None)
        uniform = nn.initializers.uniform(0.1)
        h = nn.Embed(self.vocab_size, self.embedding, embedding_init=lambda *a: uniform(*a) - 0.05)(x)
        for i in range(self.layers):
            h = _Layer(self.width, name=f"LSTM_{i}")(h, segments)
        if self.projection is not None:
            h = nn.Dense(self.projection, kernel_init=nn.initializers.glorot_normal())(h)
        return nn.Dense(self.vocab_size, kernel_init=nn.initializers.glorot_normal())(h)


class _Layer(nn.Module):
    """One LSTM layer, [B, T, in] to [B, T, width]. All tokens' input products are one, which the scan adds to."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array | None) -> jax.Array:
        H = self.width

        def bias(key, shape, dtype=jnp.float32):
            del key
            return jnp.zeros(shape, dtype).at[H : 2 * H].set(1)

        kept = None if segments is None else (segments == jnp.roll(segments, 1, axis=1))[..., None].astype(x.dtype)
        x, kept = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (x, kept))
        inputs = nn.Dense(4 * H, kernel_init=nn.initializers.he_normal(), bias_init=bias, name="input")(x)
        recurrent = self.param("recurrent", nn.initializers.orthogonal(), (H, 4 * H))
        return jnp.swapaxes(lstm(inputs, recurrent, kept), 0, 1)
