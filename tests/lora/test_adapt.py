"""Low-rank tasks: the same function as merged kernels, one base for all lanes, on whatever module or loss."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.simulation.executor import on_devices
from tests.lora.problems import BATCHING, KEY, base, close, drawn, federation, lora

TOKENS = {"x": np.zeros((1, 6), np.int32), "y": np.zeros((1, 6), np.int32)}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        return h + nn.Dense(8, name="inner")(jnp.tanh(h)), None


class Linen(nn.Module):
    """All by which linen reads kernels: lookups, attention's of three axes, layers that are scanned and recomputed."""

    @nn.compact
    def __call__(self, x):
        h = nn.Embed(11, 8)(x)
        h = h + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(h))
        layers = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        h, _ = layers(name="layers")(h, None)
        return nn.DenseGeneral(11, axis=(-2, -1), name="out")(h.reshape(*h.shape[:2], 2, 4))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.embedding = nnx.Embed(11, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.out = nnx.Linear(8, 11, rngs=rngs)

    def __call__(self, x):
        h = self.embedding(x)
        return self.out(h + self.attention(h))


@jax.custom_vjp
def cubed(w, x):
    return (x @ w) ** 3


def _forward(w, x):
    y = x @ w
    return y**3, (w, x, y)


def _backward(kept, g):
    w, x, y = kept
    g = 3 * y**2 * g
    return x.T @ g, g @ w.T


cubed.defvjp(_forward, _backward)


def by_hand(params, batch, key):
    """Products in loops, branches, `jit` and custom rules, of kernels that are turned, cut in axes and cast."""
    x, w = batch["x"], params
    h = jax.jit(jnp.einsum, static_argnums=0)("bi,oi->bo", x, w["turned"])
    h = jax.lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ w["looped"]), h)
    h = jax.lax.cond(h.sum() > 1e9, lambda w, h: h, lambda w, h: (w.T.reshape(6, 6) @ h.T).T, w["branch"], h)
    h = cubed(w["custom"], h) + w["left"].T.dot(h.T).T
    heads = jnp.einsum("bi,ihd->bhd", h, w["flat"].reshape(6, 2, 3))
    stacked = jnp.einsum("bhd,hde->be", heads, w["stack"])
    limit = jax.lax.while_loop(lambda c: (x[0] @ w["never"]).sum() > 1e9, lambda c: c, jnp.zeros(()))
    return (stacked - batch["y"]).sum(1) ** 2 + limit


SHAPES = {name: (6, 6) for name in ("looped", "branch", "custom", "left", "flat")}
SHAPES |= {"turned": (6, 4), "stack": (2, 3, 1), "never": (4, 2)}


def hand_made() -> Any:
    task = fs.Task(lambda key: drawn({n: jnp.zeros(s) for n, s in SHAPES.items()}, 0.5), by_hand)
    batch = {"x": np.ones((5, 4), np.float32), "y": np.ones((5, 1), np.float32)}
    return task, task.init(KEY), batch, dict(rank=1, targets="^(?!stack)", sample=batch)


def of_module(model) -> Any:
    task = fs.next_token(model, TOKENS)
    draw = np.random.default_rng(0)
    batch = {name: draw.integers(1, 11, (3, 6)) for name in "xy"}
    return task, task.init(KEY), batch, dict(rank=2, targets="kernel|embedding")


@pytest.mark.parametrize("problem", ["linen", "nnx", "by hand"])
def test_it_is_the_function_of_merged_kernels(problem):
    given = {"linen": lambda: of_module(Linen()), "nnx": lambda: of_module(Block), "by hand": hand_made}[problem]()
    task, params, batch, options = given
    made = fs.lora.adapt(task, params, **options)
    first = made.init(KEY)
    close(jax.device_get(fs.lora.merge(made, first)), jax.device_get(params), atol=0)
    factors, batch = drawn(first), {**batch, "mask": jnp.ones(len(batch["x"]))}

    def merged(factors):
        mean: Any = fs.grad(task)(made.frozen.whole(factors), batch, KEY)[1]["loss"]
        return mean.total

    (found, metrics), (total, expected) = jax.jit(
        lambda factors: (fs.grad(made)(factors, batch, KEY), jax.value_and_grad(merged)(factors))
    )(factors)
    np.testing.assert_allclose(metrics["loss"].total, total, rtol=1e-4)
    weight = float(metrics["loss"].weight)  # of a mean
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    close(jax.tree.map(lambda g: weight * g, found), expected, rtol=1e-4, atol=1e-5 * size)


def test_kernels_flatten_to_outputs_and_inputs():
    task, params, _, options = of_module(Linen())
    made = fs.lora.adapt(task, params, **options)
    shapes = {name: tuple(leaf.shape for leaf in pair.values()) for name, pair in made.init(KEY).items()}
    assert shapes == {
        "params/Embed_0/embedding": ((2, 11), (8, 2)),
        **{f"params/attention/{name}/kernel": ((2, 8), (8, 2)) for name in ("key", "out", "query", "value")},
        "params/layers/inner/kernel": ((3, 2, 8), (3, 8, 2)),
        "params/out/kernel": ((2, 8), (11, 2)),
    }
    (kernel,) = (each for each in made.frozen.kernels if "attention/out" in each.path)
    leaf = params["params"]["attention"]["out"]["kernel"]
    np.testing.assert_array_equal(kernel.matrix(leaf), leaf.reshape(8, 8).T)
    np.testing.assert_array_equal(kernel.leaf(kernel.matrix(leaf)), leaf)


def simulation(made, lanes=3, **options):
    execution = fs.Execution(lanes=lanes, **options)
    return fs.Simulation(
        fs.fedavg(made, optax.adam(0.05)), federation(), fs.sampler.uniform(4), BATCHING, execution=execution
    )


@pytest.fixture(scope="module")
def trained():
    sim = simulation(lora())
    return sim, *sim.run(sim.init(), 2)


def test_a_program_has_no_kernel_of_its_own_for_a_lane(trained):
    """Neither as it is written nor as it is compiled: one base is read by all lanes."""
    sim, state, _ = trained
    plans = sim.executor.plan(state, 1, 1)
    given = (state.seeds, on_devices(state), plans.words, np.int32(1), sim.executor.read(plans))
    lowered = sim.executor.program(plans.shape, 1).lower(*given)
    text, compiled = lowered.as_text(), lowered.compile().as_text()
    assert "tensor<4x5xf32>" in text
    assert "f32[4,5]" in compiled
    for a, b in [(4, 5), (5, 4)]:
        assert f"tensor<3x{a}x{b}x" not in text
        assert f"[3,{a},{b}]" not in compiled


def test_what_travels_is_the_factors(trained):
    sim, state, history = trained
    numbers = sum(leaf.size for leaf in jax.tree.leaves(lora().init(KEY)))
    assert numbers == 2 * (4 + 5) + 2 * (5 + 3)
    np.testing.assert_array_equal(history["aggregate/uplink_bits"] % (32 * numbers), 0)
    assert history["client/loss"][1] < history["client/loss"][0]
    merged = fs.lora.merge(sim.parts.algorithm.task, sim.params(state))
    found = fs.evaluate(sim.parts.algorithm.task, sim.params(state), federation().arrays)
    expected = fs.evaluate(base()[0], merged, federation().arrays)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_lanes_change_nothing(trained):
    sim = simulation(lora(), lanes=1)
    state, _ = sim.run(sim.init(), 2)
    close(sim.params(state), trained[0].params(trained[1]), rtol=1e-4, atol=1e-5)


def test_first_gradients_are_those_of_the_paper():
    """At B = 0 those of A are zero, and those of B are alpha / r times the kernel's gradient times A'."""
    (task, params), made = base(), lora()
    batch = {**{name: leaf[:6] for name, leaf in federation().arrays.items()}, "mask": np.ones(6, np.float32)}
    factors = made.init(KEY)
    plain, found = fs.grad(task)(params, batch, KEY)[0], fs.grad(made)(factors, batch, KEY)[0]
    for layer in ("Dense_0", "Dense_1"):
        pair, before = found[f"params/{layer}/kernel"], factors[f"params/{layer}/kernel"]
        g = np.asarray(plain["params"][layer]["kernel"]).T  # [out, in]
        np.testing.assert_array_equal(pair["lora_a"], 0)
        np.testing.assert_allclose(pair["lora_b"], 4 / 2 * g @ np.asarray(before["lora_a"]).T, rtol=1e-5, atol=1e-7)


def test_a_short_base_has_long_factors():
    task, params = base()
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    batch = {**{name: leaf[:6] for name, leaf in federation().arrays.items()}, "mask": np.ones(6, np.float32)}
    results = []
    for first in (params, short):
        made = fs.lora.adapt(task, first, 2, alpha=4, targets="kernel")
        results.append(fs.grad(made)(drawn(made.init(KEY)), batch, KEY))
    assert made.frozen.params["params"]["Dense_0"]["kernel"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(results[1])} == {np.dtype(np.float32)}
    np.testing.assert_allclose(results[1][1]["loss"].compute(), results[0][1]["loss"].compute(), rtol=0.02)
    merged = fs.lora.merge(made, made.init(KEY))
    assert merged["params"]["Dense_0"]["kernel"].dtype == jnp.bfloat16


def test_recomputing_and_parts_of_batches_give_the_same_gradient():
    """Before the rewrite or after it, with parts of a batch that hold unlike numbers of examples."""
    task, params = base()
    mask = np.ones(6, np.float32)
    mask[-2:] = 0
    batch = {**{name: leaf[:6] for name, leaf in federation().arrays.items()}, "mask": mask}
    factors, short = drawn(lora().init(KEY)), fs.client.micro_batches
    expected = fs.grad(lora())(factors, batch, KEY)
    adapt = lambda task: fs.lora.adapt(task, params, 2, alpha=4, targets="kernel")
    for made in (fs.client.remat(short(lora(), 3)), adapt(short(fs.client.remat(task), 2))):
        close(jax.device_get(fs.grad(made)(factors, batch, KEY)), jax.device_get(expected))


def test_bad_input_is_refused():
    (task, params), adapt = base(), fs.lora.adapt
    with pytest.raises(ArgumentError, match=r"targets='nothing' matches no kernel: .*'params/Dense_0/kernel'"):
        adapt(task, params, targets="nothing")
    with pytest.raises(ArgumentError, match=r"targets='.\*' matches every leaf"):
        adapt(task, params, targets=".*")
    with pytest.raises(ArgumentError, match=r"targets='\(' *: is no regular expression"):
        adapt(task, params, targets="(")
    with pytest.raises(ArgumentError, match=r"rank=4: must be at most 3: 'params/Dense_0/kernel' is \[out=3, in=5\]"):
        adapt(task, params, 4, targets="kernel")
    with pytest.raises(ArgumentError, match=r"params=.*must have the task's leaves"):
        adapt(task, params["params"], targets="kernel")
    with pytest.raises(ArgumentError, match="has no low-rank factors"):
        fs.lora.merge(task, params)
    odd = lambda read, w=(2, 2): fs.Task(lambda key: {"w": jnp.ones(w), "v": jnp.ones(1)}, read)
    batch = {"x": np.ones((3, 2), np.float32)}
    refused = {
        "is read by 'tanh'": lambda p, batch, key: (batch["x"] @ jnp.tanh(p["w"])).sum(1),
        "in two ways": lambda p, batch, key: (batch["x"] @ p["w"] @ p["w"].T).sum(1),
        "are read by no product": lambda p, batch, key: batch["x"].sum(1) + p["v"],
        "carried through a loop": lambda p, batch, key: jax.lax.fori_loop(0, 2, lambda i, w: 2 * w, p["w"])[0, :1],
    }
    for message, read in refused.items():
        with pytest.raises(ArgumentError, match=message):
            adapt(odd(read), odd(read).init(KEY), 1, targets="w", sample=batch)
    cube = odd(lambda p, batch, key: jnp.einsum("bi,ijk->b", batch["x"], p["w"]), (2, 2, 2))
    with pytest.raises(ArgumentError, match=r"sample=None: which axes of 'w', \(2, 2, 2\), are inputs"):
        adapt(cube, cube.init(KEY), 1, targets="w")
    turned = odd(lambda p, batch, key: (batch["x"] @ p["w"].T).sum(1))
    made = adapt(turned, turned.init(KEY), 1, targets="w")
    with pytest.raises(ArgumentError, match="in two ways"):
        fs.grad(made)(made.init(KEY), {"x": jnp.ones((3, 2)), "mask": jnp.ones(3)}, KEY)
