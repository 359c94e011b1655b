"""The decoder transformer against plain NumPy: rotary positions, grouped queries, norms, masks; and what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs

Transformer = fs.models.Transformer
LLAMA = Transformer(11, width=16, depth=2, heads=4, kv_heads=2, mlp=24, max_length=8, rope_base=100.0)
POST = Transformer(
    11,
    width=8,
    depth=2,
    heads=2,
    mlp=12,
    max_length=8,
    norm="layer",
    norm_first=False,
    positions="sinusoidal",
    activation="relu",
    bias=True,
    scale_embedding=True,
)
GPT = Transformer(
    11,
    width=8,
    depth=1,
    heads=2,
    max_length=8,
    norm="layer",
    positions="learned",
    activation="gelu",
    bias=True,
    tied=False,
)
X = np.random.default_rng(0).integers(1, 11, (2, 6)).astype(np.int32)


def params_of(model):
    """Random ones, scales and biases too."""
    generator = np.random.default_rng(1)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    return jax.tree.map(lambda leaf: (0.4 * generator.standard_normal(leaf.shape)).astype(np.float32), like)


def twin(model, params, tokens):
    """One sequence [T], a token, a head and a pair of places at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    W, H, G, T = model.width, model.heads, model.kv_heads or model.heads, len(tokens)
    D = W // H

    def dense(x, layer):
        return x @ layer["kernel"] + layer.get("bias", 0)

    def norm(x, layer):
        x = x - x.mean(-1, keepdims=True) if model.norm == "layer" else x
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * layer["scale"] + layer.get("bias", 0)

    def turned(x, t):
        out = x.copy()
        for i in range(D // 2):
            angle = t * model.rope_base ** (-2 * i / D)
            z = complex(x[i], x[i + D // 2]) * complex(math.cos(angle), math.sin(angle))
            out[i], out[i + D // 2] = z.real, z.imag
        return out

    def attention(x, layer):
        q, k, v = (dense(x, layer[f"{name}_proj"]).reshape(T, -1, D) for name in "qkv")
        out = np.zeros((T, H, D))
        for h in range(H):
            g = h // (H // G)
            for t in range(T):
                rotate = turned if model.positions == "rope" else lambda x, t: x
                scores = np.array([rotate(q[t, h], t) @ rotate(k[s, g], s) / math.sqrt(D) for s in range(t + 1)])
                shares = np.exp(scores - scores.max())
                out[t, h] = shares / shares.sum() @ v[: t + 1, g]
        return dense(out.reshape(T, W), layer["o_proj"])

    def mlp(x, layer):
        up = dense(x, layer["up_proj"])
        if model.activation == "swiglu":
            gate = dense(x, layer["gate_proj"])
            up = gate / (1 + np.exp(-gate)) * up
        elif model.activation == "gelu":
            up = up * (1 + np.vectorize(math.erf)(up / math.sqrt(2))) / 2
        else:
            up = np.maximum(up, 0)
        return dense(up, layer["down_proj"])

    h = p["embed"]["embedding"][tokens] * (math.sqrt(W) if model.scale_embedding else 1)
    if model.positions == "learned":
        h = h + p["positions"][:T]
    if model.positions == "sinusoidal":
        wave = [[t / 1e4 ** (2 * (i // 2) / W) for i in range(W)] for t in range(T)]
        h = h + np.where(np.arange(W) % 2, np.cos(wave), np.sin(wave))
    for i in range(model.depth):
        layer = p[f"layers_{i}"]
        if model.norm_first:
            h = h + attention(norm(h, layer["attention_norm"]), layer["attention"])
            h = h + mlp(norm(h, layer["mlp_norm"]), layer["mlp"])
        else:
            h = norm(h + attention(h, layer["attention"]), layer["attention_norm"])
            h = norm(h + mlp(h, layer["mlp"]), layer["mlp_norm"])
    h = norm(h, p["final_norm"]) if model.norm_first else h
    return h @ p["embed"]["embedding"].T if model.tied else dense(h, p["lm_head"])


@pytest.mark.parametrize("model", [LLAMA, POST, GPT], ids=["llama", "post-norm", "gpt"])
def test_logits_are_the_twins(model):
    params = params_of(model)
    got = jax.jit(model.apply)(params, X)
    for row, tokens in zip(got, X, strict=True):
        np.testing.assert_allclose(row, twin(model, params, tokens), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("model", [LLAMA, GPT], ids=["llama", "gpt"])
def test_segments_are_texts_of_their_own_and_pads_at_either_end_change_nothing(model):
    params = params_of(model)
    row = np.array([[0, 3, 1, 4, 5, 2, 7, 0], [3, 3, 3, 8, 9, 1, 1, 1]], np.int32)
    segments = np.array([[0, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 2, 3, 3, 3, 3]], np.int32)
    got = jax.jit(model.apply)(params, (row, segments))
    for i, (a, b) in [(0, (1, 4)), (0, (4, 7)), (1, (0, 3)), (1, (3, 4)), (1, (4, 8))]:
        np.testing.assert_allclose(got[i, a:b], twin(model, params, row[i, a:b]), rtol=2e-4, atol=2e-5)


def test_remat_and_the_types_of_parameters_and_of_what_is_computed():
    model = LLAMA.clone(depth=1)
    params = params_of(model)

    def run(model):
        loss = lambda params: (jnp.mean((logits := model.apply(params, X)) ** 2), logits)
        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    plain, again = run(model)(params), run(model.clone(remat=True))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, again)
    short = model.clone(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    like = jax.eval_shape(short.init, jax.random.key(0), X)
    assert {leaf.dtype for leaf in jax.tree.leaves(like)} == {jnp.dtype(jnp.bfloat16)}
    logits = jax.jit(short.apply)(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), X)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, plain[0][1], atol=0.1)


def size(model):
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return sum(leaf.size for leaf in jax.tree.leaves(like))


def test_published_numbers_of_parameters():
    """SmolLM2's 30 blocks are alike; pfl's are PyTorch's encoder layers, without an embedding of positions."""
    smol = Transformer(49_152, width=576, depth=1, heads=9, kv_heads=3, mlp=1536, max_length=8192, rope_base=1e5)
    one = size(smol)
    assert one + 29 * (size(smol.clone(depth=2)) - one) == 134_515_008
    attention, dense, norms = 4 * (96 * 96 + 96), 2 * 96 * 1536 + 1536 + 96, 4 * 96
    pfl = POST.clone(vocab_size=10_004, width=96, depth=3, heads=8, mlp=1536)
    assert size(pfl) == 10_004 * 96 + 3 * (attention + dense + norms) == 1_962_912


def test_dropout_draws_in_training_alone():
    plain = LLAMA.clone(depth=1)
    model, params = plain.clone(dropout=0.5), params_of(plain)

    @jax.jit
    def run(params):
        train, test = (model.apply(params, X, train=t, rngs={"dropout": jax.random.key(0)}) for t in (True, False))
        return train, test, plain.apply(params, X)

    train, test, expected = run(params)
    np.testing.assert_array_equal(test, expected)
    assert not np.allclose(train, test)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"max_length": 5}, "max_length=5: x has sequences of 6 tokens. Cut them into shorter windows"),
        ({"heads": 3}, "heads=3: must divide the width, 16"),
        ({"kv_heads": 3}, "kv_heads=3: must divide heads=4"),
        ({"heads": 16, "kv_heads": 16}, "heads=16: of width 16 have 1 places: must be even"),
        ({"norm": "batch"}, "norm='batch': must be one of"),
        ({"positions": "none"}, "positions='none': must be one of"),
        ({"activation": "tanh"}, "activation='tanh': must be one of"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_is_refused(change, problem):
    with pytest.raises(fs.FedSimError, match=problem):
        jax.eval_shape(LLAMA.clone(**change).init, jax.random.key(0), X)
