"""A decoder transformer: small next-word models and Llama-like ones in one module."""

from types import SimpleNamespace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fedjax_sim.core.errors import check

Positions = Literal["rope", "learned", "sinusoidal"]
Activation = Literal["swiglu", "gelu", "relu"]


class Transformer(nn.Module):
    r"""A decoder of the next token: x [B, T] int32 to logits [B, T, vocab_size].

    A block adds attention over the tokens so far, and then two or three dense layers, to what it is given. The
    defaults are Llama's: RMSNorm before each, rotary positions, SwiGLU, no biases, and the embedding as the last layer
    too. A head's scores are :math:`q_t \cdot k_s / \sqrt{d}` for :math:`s \le t`; `heads / kv_heads` queries share a
    key and a value (grouped-query attention). Rotary positions turn the pairs :math:`(i, i + d/2)` of q and k by the
    angle :math:`t\,\theta^{-2i/d}`: the halves, not neighbours.

    Published models are arguments:

    - SmolLM2-135M (134,515,008 parameters): `Transformer(49_152, width=576, depth=30, heads=9, kv_heads=3, mlp=1536,
      max_length=8192, rope_base=1e5)`;
    - pfl's for Stack Overflow (1,962,912): `Transformer(10_004, width=96, depth=3, heads=8, mlp=1536, max_length=20,
      norm="layer", norm_first=False, positions="sinusoidal", activation="relu", bias=True, scale_embedding=True,
      dropout=0.1)`, three blocks of "Attention is all you need" (Vaswani et al. 2017).

    Parameters, all of them under "params", W the width and D the width of a head:

    - `embed/embedding` [vocab_size, W]; `positions` [max_length, W] if they are learned;
    - in `layers_0`, `layers_1`, ...: `attention_norm/scale` and `mlp_norm/scale` [W]; `attention/q_proj/kernel`
      [W, heads D], `k_proj` and `v_proj` [W, kv_heads D], `o_proj` [heads D, W]; `mlp/up_proj/kernel` [W, mlp],
      `down_proj` [mlp, W], and with SwiGLU `gate_proj` [W, mlp]: a kernel times x is `x @ kernel`;
    - `final_norm/scale` [W], with `norm_first`; `lm_head/kernel` [W, vocab_size], without `tied`;
    - and a `bias` beside each kernel with `bias`, beside each scale with `norm="layer"`.

    With the pair (x, segments) for x, segments [B, T] int32, a token attends to those of its own segment alone, and its
    position counts from the segment's first token: several texts in a row, or padding at either end, change nothing.
    Without, padding stands at the end, where nothing before it can see it.

    Args:
        vocab_size: numbers of the vocabulary.
        width, depth: of the blocks, and how many.
        heads, kv_heads: heads of queries, and of keys and values, which divide them; None for as many.
        mlp: width inside the dense layers; None for four times the width.
        max_length: the most tokens of a sequence; longer ones are refused.
        norm, norm_first: "rms" or "layer"; before attention and dense layers, and at the end; or after each sum.
        positions, rope_base: how positions are told; θ.
        activation: between the dense layers; "swiglu" is silu(gate) up.
        bias, tied, scale_embedding: biases in dense layers; logits by the embedding; embeddings times √W.
        epsilon: of the norms.
        dropout: rate in training, of embeddings and of what is added.
        dtype, param_dtype: what is computed in, and what parameters are kept in. Norms, softmax and logits are float32.
        remat: compute each block once more for the gradient instead of keeping its activations.

    Raises:
        ArgumentError: a sequence longer than max_length; heads that do not divide.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> model = fs.models.Transformer(90, width=32, depth=2, heads=4, kv_heads=2)
        >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
        >>> params["layers_1"]["attention"]["k_proj"]["kernel"].shape
        (32, 16)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        33760
    """

    vocab_size: int
    width: int = 256
    depth: int = 4
    heads: int = 4
    kv_heads: int | None = None
    mlp: int | None = None
    max_length: int = 2048
    norm: Literal["rms", "layer"] = "rms"
    norm_first: bool = True
    positions: Positions = "rope"
    rope_base: float = 1e4
    activation: Activation = "swiglu"
    bias: bool = False
    tied: bool = True
    scale_embedding: bool = False
    epsilon: float = 1e-5
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array | tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        x, segments = x if isinstance(x, tuple) else (x, None)
        self._check(x.shape[-1])
        embed = nn.Embed(
            self.vocab_size,
            self.width,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embed",
        )
        h = embed(x)
        at = _places(x, segments)
        if self.scale_embedding:
            h = h * jnp.asarray(self.width**0.5, h.dtype)
        if self.positions == "learned":
            start = nn.initializers.normal(0.02)
            table = self.param("positions", start, (self.max_length, self.width), self.param_dtype)
            h = h + table[at].astype(h.dtype)
        elif self.positions == "sinusoidal":
            h = h + _sinusoids(at, self.width).astype(h.dtype)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        # Modules inside would take this one, given whole, for a part of theirs.
        model = SimpleNamespace(**{name: getattr(self, name) for name in _ARGUMENTS})
        block = nn.remat(_Block, static_argnums=(4,)) if self.remat else _Block
        for i in range(self.depth):
            h = block(model, name=f"layers_{i}")(h, at, segments, train)
        h = _norm(model, "final_norm")(h) if self.norm_first else h
        if self.tied:
            return jnp.dot(h, embed.embedding.T.astype(self.dtype), preferred_element_type=jnp.float32)
        return _dense(model, self.vocab_size, "lm_head", bias=False)(h).astype(jnp.float32)

    def _check(self, length: int) -> None:
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        check(self.width % self.heads == 0, "heads", self.heads, f"must divide the width, {self.width}.")
        check(kv_heads > 0 and self.heads % kv_heads == 0, "kv_heads", kv_heads, f"must divide heads={self.heads}.")
        even = self.positions == "learned" or self.width // self.heads % 2 == 0
        check(even, "heads", self.heads, f"of width {self.width} have {self.width // self.heads} places: must be even.")
        remedy = f"x has sequences of {length} tokens. Cut them into shorter windows, or raise max_length."
        check(length <= self.max_length, "max_length", self.max_length, remedy)
        for name, kinds in _CHOICES.items():
            check(getattr(self, name) in kinds, name, getattr(self, name), f"must be one of {kinds}.")


_ARGUMENTS = tuple(name for name in Transformer.__dataclass_fields__ if name not in ("parent", "name"))
_CHOICES = {
    "norm": ("rms", "layer"),
    "positions": ("rope", "learned", "sinusoidal"),
    "activation": ("swiglu", "gelu", "relu"),
}


class _Block(nn.Module):
    """Attention and dense layers, each added to h [B, T, W]."""

    model: Any

    @nn.compact
    def __call__(self, h: jax.Array, at: jax.Array, segments: jax.Array | None, train: bool) -> jax.Array:
        model = self.model
        drop = lambda y: nn.Dropout(model.dropout, deterministic=not train)(y)
        attention, mlp = _Attention(model, name="attention"), _MLP(model, name="mlp")
        attention_norm, mlp_norm = _norm(model, "attention_norm"), _norm(model, "mlp_norm")
        if model.norm_first:
            h = h + drop(attention(attention_norm(h), at, segments))
            return h + drop(mlp(mlp_norm(h)))
        h = attention_norm(h + drop(attention(h, at, segments)))
        return mlp_norm(h + drop(mlp(h)))


class _Attention(nn.Module):
    """Causal attention of groups of queries to shared keys and values, [B, T, W] to the same."""

    model: Any

    @nn.compact
    def __call__(self, x: jax.Array, at: jax.Array, segments: jax.Array | None) -> jax.Array:
        model, (B, T, W) = self.model, x.shape
        groups = model.kv_heads or model.heads
        D = W // model.heads
        split = lambda name, heads: _dense(model, heads * D, name)(x).reshape(B, T, heads, D)
        q, k, v = split("q_proj", model.heads), split("k_proj", groups), split("v_proj", groups)
        if model.positions == "rope":
            q, k = _turned(q, at, model.rope_base), _turned(k, at, model.rope_base)
        q = q.reshape(B, T, groups, model.heads // groups, D)
        scores = jnp.einsum("btgqd,bsgd->bgqts", q, k, preferred_element_type=jnp.float32) * D**-0.5
        seen = jnp.tril(jnp.ones((T, T), bool))[None]
        if segments is not None:
            seen = seen & (segments[:, :, None] == segments[:, None, :])
        scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bgqts,bsgd->btgqd", shares, v).reshape(B, T, W)
        return _dense(model, W, "o_proj")(mixed)


class _MLP(nn.Module):
    """The dense layers, [B, T, W] to the same."""

    model: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        model = self.model
        width = 4 * model.width if model.mlp is None else model.mlp
        up = _dense(model, width, "up_proj")(x)
        if model.activation == "swiglu":
            up = nn.silu(_dense(model, width, "gate_proj")(x)) * up
        else:
            up = nn.gelu(up, approximate=False) if model.activation == "gelu" else nn.relu(up)
        return _dense(model, model.width, "down_proj")(up)


def _dense(model: Any, width: int, name: str, bias: bool | None = None) -> nn.Dense:
    return nn.Dense(
        width,
        use_bias=model.bias if bias is None else bias,
        dtype=model.dtype,
        param_dtype=model.param_dtype,
        kernel_init=nn.initializers.normal(0.02),
        name=name,
    )


def _norm(model: Any, name: str) -> nn.Module:
    """Its statistics are float32's whatever the dtype, which Flax sees to."""
    kind = nn.RMSNorm if model.norm == "rms" else nn.LayerNorm
    return kind(epsilon=model.epsilon, dtype=model.dtype, param_dtype=model.param_dtype, name=name)


def _places(x: jax.Array, segments: jax.Array | None) -> jax.Array:
    """[B, T] or [1, T]: each token's position, from the first of its segment on."""
    count = jnp.arange(x.shape[-1])[None]
    if segments is None:
        return count
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    first = jnp.where(segments != before, count, 0)
    return count - jax.lax.cummax(first, axis=1)


def _angles(at: jax.Array, width: int, base: float) -> jax.Array:
    """[.., T, width / 2]: position times base^(-2i / width)."""
    rates = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    return at[..., None].astype(jnp.float32) * rates[None, None]


def _turned(x: jax.Array, at: jax.Array, base: float) -> jax.Array:
    """Rotary positions of x [B, T, heads, D]."""
    angles = _angles(at, x.shape[-1], base)[:, :, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _sinusoids(at: jax.Array, width: int) -> jax.Array:
    """[.., T, width]: sines at even places, cosines at odd ones."""
    angles = _angles(at, width, 1e4)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*at.shape, width)
