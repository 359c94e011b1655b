"""Convolutions as matrix products: equal to XLA's, in every wrapper; nothing else is touched."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim.core import products
from fedjax_sim.core.convolution import matmul_convolutions, pays_on


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(0, (2, 7, 6, 3))
K = 0.3 * normal(1, (3, 3, 3, 4))
NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x, kernel, strides=(1, 1), padding="SAME", numbers=NHWC, **kwargs):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, **kwargs)


def compiled(fn):
    """jit for short tests: half their time would be spent optimising code that runs once."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def convolutions(fn, *args):
    """The `conv_general_dilated` equations in the jaxpr of fn(*args), at any depth."""

    def visit(value):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            for eqn in value.eqns:
                if eqn.primitive.name == "conv_general_dilated":
                    yield eqn
                for param in eqn.params.values():
                    yield from visit(param)
        elif isinstance(value, (tuple, list)):
            for v in value:
                yield from visit(v)

    return list(visit(jax.make_jaxpr(fn)(*args)))


def assert_close(actual, expected, tolerance=1e-4):
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(e, np.float64), rtol=tolerance, atol=tolerance)


def gradient(fn, num_args):
    """A function for the gradients of a weighted sum of fn's values, and the values."""

    def loss(*args):
        y = fn(*args)
        weights = np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (weights * y).sum(), y

    return jax.grad(loss, tuple(range(num_args)), has_aux=True)


def check(fn, *args, remaining=0):
    """fn(*args) and its gradients in `args` are unchanged; `remaining` convolutions stay."""
    rewritten = matmul_convolutions(fn)
    actual, expected = gradient(rewritten, len(args)), gradient(fn, len(args))
    assert_close(*compiled(lambda *args: (actual(*args), expected(*args)))(*args))
    assert len(convolutions(rewritten, *args)) == remaining
    if not remaining:
        assert not convolutions(actual, *args)


def check_forward_mode(fn, *args):
    tangents = tuple(jnp.cos(a) for a in args)
    actual = jax.jvp(matmul_convolutions(fn), args, tangents)
    assert_close(actual, jax.jvp(fn, args, tangents))
    assert not convolutions(lambda *a: jax.jvp(matmul_convolutions(fn), a, tangents), *args)


@pytest.mark.parametrize(
    "shape, window, kwargs",
    [
        ((7, 6), (3, 3), {}),
        ((7, 6), (3, 3), {"padding": "VALID"}),
        ((7, 6), (3, 2), {"strides": (2, 3), "padding": [(2, 0), (1, 3)]}),
        ((7, 6), (2, 3), {"padding": [(-1, 2), (0, -2)], "rhs_dilation": (2, 1)}),
        ((7, 6), (1, 1), {}),
        ((7, 6), (1, 1), {"strides": (2, 2)}),
        ((7, 6), (7, 6), {"padding": "VALID"}),
        ((2, 2), (5, 5), {}),  # fewer outputs than window positions
        ((9,), (4,), {"numbers": ("NHC", "HIO", "NHC"), "strides": (2,)}),
        ((5, 3, 4), (2, 2, 1), {"numbers": ("NDHWC", "DHWIO", "NDHWC"), "strides": (1, 2, 1)}),
    ],
)
def test_equals_xla(shape, window, kwargs):
    x = normal(0, (2, *shape, 3))
    kernel = normal(1, (*window, 3, 4))
    check(lambda x, k: conv(x, k, **kwargs), x, kernel)


@st.composite
def configurations(draw):
    """A convolution's shapes and parameters: forward ones, and what derivatives are made of."""
    dims = draw(st.integers(1, 3))
    small = st.integers(1, 3)

    def each(strategy):
        return [draw(strategy) for _ in range(dims)]

    groups, batch_groups = draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (3, 1), (1, 2)]))
    window, dilation = each(st.integers(1, 3 if dims < 3 else 2)), each(st.integers(1, 2))
    holes = each(st.integers(1, 2)) if draw(st.booleans()) else [1] * dims
    strides = each(small) if draw(st.booleans()) else [1] * dims
    padding = [(draw(st.integers(-1, 2)), draw(st.integers(-1, 2))) for _ in range(dims)]
    # Large enough that one window fits.
    reach = [(w - 1) * d + 1 - sum(p) for w, d, p in zip(window, dilation, padding, strict=True)]
    space = [max(2, r) + draw(st.integers(0, 3)) for r in reach]
    lhs, rhs, out = (draw(st.permutations(range(dims + 2))) for _ in range(3))
    channels = draw(small)
    x = dict(zip(lhs, (2, channels * groups, *space), strict=True))
    kernel = dict(zip(rhs, (draw(small) * groups * batch_groups, channels, *window), strict=True))
    parameters = {
        "window_strides": strides,
        "padding": padding,
        "lhs_dilation": holes,
        "rhs_dilation": dilation,
        "dimension_numbers": jax.lax.ConvDimensionNumbers(tuple(lhs), tuple(rhs), tuple(out)),
        "feature_group_count": groups,
        "batch_group_count": batch_groups,
    }
    dtype = draw(st.sampled_from(["float32", "float32", "bfloat16"]))
    return [x[i] for i in range(dims + 2)], [kernel[i] for i in range(dims + 2)], parameters, dtype


@settings(max_examples=30, deadline=None, derandomize=True)
@given(configurations(), st.booleans())
def test_equals_xla_for_any_configuration(configuration, lanes):
    """Values and both gradients, rewritten before they are taken and after, for one and under vmap."""
    x_shape, kernel_shape, parameters, dtype = configuration
    shapes = [(2, *shape) if lanes else shape for shape in (x_shape, kernel_shape)]
    x, kernel = (normal(i, shape).astype(dtype) for i, shape in enumerate(shapes))

    def fn(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, **parameters)

    vmap = jax.vmap if lanes else lambda fn: fn
    before, after = (vmap(gradient(matmul_convolutions(fn), 2)), vmap(matmul_convolutions(gradient(fn, 2))))
    assert not convolutions(before, x, kernel)
    assert not convolutions(after, x, kernel)
    exact = [a.astype(jnp.float32) for a in (x, kernel)]
    expected = compiled(vmap(gradient(fn, 2)))(*exact)
    found = compiled(lambda *args: (before(*args), after(*args)))(x, kernel)
    for actual in found:
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert a.dtype == dtype
            size = max(1.0, float(jnp.abs(e).max()))
            tolerance = (1e-5 if dtype == "float32" else 2e-2) * size
            np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(e, np.float64), atol=tolerance)


def test_one_by_one_window_is_just_a_product():
    jaxpr = str(jax.make_jaxpr(matmul_convolutions(conv))(X, K[:1, :1]))
    assert "dot_general" in jaxpr
    assert not any(name in jaxpr for name in ("concatenate", "pad", "transpose"))


@pytest.mark.parametrize("dtype, preferred", [("bfloat16", "float32"), ("bfloat16", None), ("int8", "int32")])
def test_dtypes_are_kept(dtype, preferred):
    x, kernel = jnp.round(X * 3).astype(dtype), jnp.round(K * 3).astype(dtype)

    def fn(x, kernel):
        return conv(x, kernel, preferred_element_type=preferred)

    actual = matmul_convolutions(fn)(x, kernel)
    assert actual.dtype == (preferred or dtype)
    assert_close(actual, fn(x, kernel), 1e-2)


def test_precision_is_kept():
    fn = matmul_convolutions(lambda x, k: conv(x, k, precision="highest"))
    assert "Precision.HIGHEST" in str(jax.make_jaxpr(fn)(X, K))


def test_too_many_slices_are_left_to_xla():
    kernel = jnp.ones((17, 17, 3, 1))
    fn = lambda x, k: conv(x, k, padding=[(16, 16), (16, 16)])
    assert str(jax.make_jaxpr(matmul_convolutions(fn))(X, kernel)) == str(jax.make_jaxpr(fn)(X, kernel))
    # Beside an eligible one: only that is rewritten.
    check(lambda x, k, kernel: jnp.tanh(fn(x, kernel)).mean() * conv(x, k), X, K, kernel, remaining=1)


def test_an_empty_output_is_left_to_xla():
    fn = matmul_convolutions(lambda x, k: conv(x, k, padding="VALID"))
    assert fn(X[:, :2], K).shape == (2, 0, 4, 4)


def test_vmapped_kernels_make_no_convolution():
    xs, kernels = jnp.stack([X, 2 * X]), jnp.stack([K, K[::-1]])
    batched = jax.vmap(conv)
    (native,) = convolutions(batched, xs, kernels)
    assert native.params["feature_group_count"] == 2
    rewritten = jax.vmap(matmul_convolutions(conv))
    assert_close(rewritten(xs, kernels), batched(xs, kernels))
    assert not convolutions(jax.vmap(gradient(matmul_convolutions(conv), 2)), xs, kernels)
    jaxpr = "".join(str(jax.make_jaxpr(rewritten)(xs, kernels)).split())
    assert "dot_general[dimension_numbers=(([2],[1]),([0],[0]))" in jaxpr


def test_forward_mode():
    check_forward_mode(conv, X, K)


def test_a_gradient_can_be_rewritten():
    fn = jax.grad(lambda x, k: jnp.sin(conv(x, k)).sum(), (0, 1))
    assert_close(matmul_convolutions(fn)(X, K), fn(X, K))
    assert not convolutions(matmul_convolutions(fn), X, K)


def scanned(x, kernel):
    return jax.lax.scan(lambda c, k: (jnp.sin(conv(c, k)), None), x, kernel[None, ..., :3])[0]


def branched(x, kernel):
    return jax.lax.switch(jnp.int32(x.size % 2), [conv, lambda x, k: conv(jnp.cos(x), k)], x, kernel)


def layered(x, kernel):
    """jit within remat within scan within cond."""
    layer = jax.checkpoint(jax.jit(lambda x, k: jnp.sin(conv(x, k))))
    body = lambda x, _: (layer(x, kernel[..., :3]), None)
    return jax.lax.cond(x[0, 0, 0, 0] > 0, lambda x: jax.lax.scan(body, x, None, 3)[0], lambda x: x, x)


@pytest.mark.parametrize("fn", [jax.jit(conv), jax.checkpoint(conv), scanned, branched, layered])
def test_wrappers(fn):
    check(fn, X, K)
    check_forward_mode(fn, X, K)


def test_while_loops():
    def fn(x, k, n):
        keep = lambda c: (c[0] < n) & (conv(c[1], k).sum() < 1e9)
        body = lambda c: (c[0] + 1, jnp.sin(conv(c[1], k[..., :3])))
        return jax.lax.while_loop(keep, body, (0, x))

    rewritten = matmul_convolutions(fn)
    assert_close(compiled(rewritten)(X, K, 3), compiled(fn)(X, K, 3))
    assert len(convolutions(fn, X, K, 3)) == 2
    assert not convolutions(rewritten, X, K, 3)


def test_remat_stays():
    fn = jax.checkpoint(lambda x, k: jnp.sin(conv(jnp.sin(x), k)).sum())
    jaxpr = jax.make_jaxpr(matmul_convolutions(fn))(X, K).jaxpr
    assert [e.primitive.name for e in jaxpr.eqns] == [e.primitive.name for e in jax.make_jaxpr(fn)(X, K).jaxpr.eqns]
    saved = jax.tree.leaves(jax.vjp(matmul_convolutions(fn), X, K)[1])
    assert max(leaf.size for leaf in saved) <= max(X.size, K.size)


def wrong_jvp(x, kernel, scale=7.0):
    @jax.custom_jvp
    def fn(x, kernel):
        return conv(x, kernel)

    @fn.defjvp
    def rule(primals, tangents):
        (x, kernel), (dx, dk) = primals, tangents
        return fn(x, kernel), scale * conv(dx, kernel) + conv(x, dk)

    return fn(x, kernel)


def wrong_vjp(x, kernel):
    @jax.custom_vjp
    def fn(x, kernel, flag, key):
        return jnp.sin(conv(x, kernel)), flag

    def forward(x, kernel, flag, key):
        y, pullback = jax.vjp(conv, x, kernel)
        return (jnp.sin(y), flag), pullback

    def backward(pullback, cotangent):
        dx, dk = pullback(cotangent[0])
        return 3 * dx, 5 * dk, None, None

    fn.defvjp(forward, backward)
    return fn(x, kernel, jnp.arange(3), jax.random.key(0))[0]


@pytest.mark.parametrize("fn", [wrong_jvp, wrong_vjp])
def test_custom_rules_stay_in_force(fn):
    """Their gradients are wrong on purpose, and must be just as wrong after rewriting."""
    check(fn, X, K)
    ordinary = conv if fn is wrong_jvp else lambda x, k: jnp.sin(conv(x, k))
    (dx, _), _ = gradient(matmul_convolutions(fn), 2)(X, K)
    (truth, _), _ = gradient(ordinary, 2)(X, K)
    assert np.abs(dx - truth).max() > 1
    xs, kernels = jnp.stack([X, 2 * X]), jnp.stack([K, K[::-1]])
    actual = jax.vmap(gradient(matmul_convolutions(fn), 2))
    assert_close(compiled(actual)(xs, kernels), compiled(jax.vmap(gradient(fn, 2)))(xs, kernels))
    assert not convolutions(actual, xs, kernels)


def test_custom_rules_in_other_modes():
    check_forward_mode(wrong_jvp, X, K)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(matmul_convolutions(wrong_vjp), (X, K), (X, K))
    # A rule with unused outputs and one argument twice.
    twice = jax.custom_jvp(lambda x, y: (conv(x, K), y.sum()))
    twice.defjvp(lambda p, t: (twice(*p), (conv(2 * t[0] + 3 * t[1], K), t[1].sum())))
    check(lambda x: twice(x, x)[0], X)
    # Second derivatives, through a closed-over tracer.
    second = lambda f: jax.jvp(jax.grad(lambda k: (f(X, k) ** 2).sum()), (K,), (jnp.cos(K),))
    assert_close(second(matmul_convolutions(wrong_jvp)), second(wrong_jvp), 1e-3)


def test_inside_shard_map():
    mesh = jax.make_mesh((1,), ("device",))
    spec = jax.sharding.PartitionSpec()

    def sharded(fn):
        return jax.shard_map(fn, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)

    assert_close(sharded(matmul_convolutions(wrong_jvp))(X, K), conv(X, K))
    outside = matmul_convolutions(sharded(conv))
    assert not convolutions(outside, X, K)
    assert_close(compiled(outside)(X, K), conv(X, K))


def test_any_pytrees():
    def fn(inputs, *, key, scale, train=False, name=None):
        assert isinstance(train, bool)  # flags are not traced
        noise = jax.random.normal(key, inputs["x"].shape) if train else jnp.zeros(())
        y = {"y": conv(inputs["x"], inputs["k"]) + noise.mean(), "key": key, "name": name}
        return y, None, 3, np.arange(2), scale * 2

    inputs = {"x": X, "k": K, "none": None}
    kwargs = {"key": jax.random.key(3), "scale": 1.5, "train": True, "name": "a"}
    actual = matmul_convolutions(fn)(inputs, **kwargs)
    expected = fn(inputs, **kwargs)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert_close(actual[0]["y"], expected[0]["y"])
    assert actual[0]["name"] == "a"
    assert type(actual[2]) is int
    assert actual[4] == 3.0
    assert isinstance(actual[3], np.ndarray)
    assert (actual[0]["key"] == kwargs["key"]).all()


def test_without_convolutions_fn_itself_is_called():
    seen = []

    def fn(x):
        seen.append(x)
        return jnp.sin(x), "unchanged"

    result = matmul_convolutions(fn)(X)
    assert seen[-1] is X
    assert result[1] == "unchanged"
    assert str(jax.make_jaxpr(matmul_convolutions(jnp.tanh))(X)) == str(jax.make_jaxpr(jnp.tanh)(X))


def test_errors_of_fn_surface():
    with pytest.raises(ValueError, match="feature dimension"):
        matmul_convolutions(conv)(X, K[:, :, :2])


def test_name_and_scopes_are_kept():
    def network(x, k):
        """Doc."""
        with jax.named_scope("first_layer"):
            return conv(x, k)

    rewritten = matmul_convolutions(network)
    assert (rewritten.__name__, rewritten.__doc__) == ("network", "Doc.")
    assert "first_layer" in jax.jit(rewritten).lower(X, K).as_text(debug_info=True)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.remat(nn.Conv)(5, (1, 1))(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_linen_network_with_dropout():
    with jax.numpy_rank_promotion("allow"):
        model = CNN()
        params = compiled(model.init)(jax.random.key(0), X)

        def loss(params, key):
            y = model.apply(params, X, train=True, rngs={"dropout": key})
            return jnp.square(jnp.asarray(y)).mean()

        rewritten = matmul_convolutions(loss)
        actual = compiled(jax.value_and_grad(rewritten))
        expected = compiled(jax.value_and_grad(loss))
        key = jax.random.key(1)
        assert_close(actual(params, key), expected(params, key))
        assert len(convolutions(loss, params, key)) == 2
        assert not convolutions(jax.grad(rewritten), params, key)


class NNXCNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        return self.dropout(nnx.relu(self.conv(x)), rngs=rngs)


def test_nnx_network_with_dropout():
    with jax.numpy_rank_promotion("allow"):
        graph, params = nnx.split(NNXCNN(nnx.Rngs(0)), nnx.Param)

        def loss(params, key):
            y = nnx.merge(graph, params)(X, rngs=nnx.Rngs(dropout=key))
            return (y**2).mean()

        rewritten, key = matmul_convolutions(loss), jax.random.key(1)
        assert_close(
            compiled(jax.value_and_grad(rewritten))(params, key),
            compiled(jax.value_and_grad(loss))(params, key),
        )
        assert not convolutions(jax.grad(rewritten), params, key)


def test_pays_on():
    assert pays_on("cpu")
    assert not any(pays_on(platform) for platform in ("gpu", "cuda", "rocm", "tpu"))


# Blocks of images, and maxima


def primitives(fn, *args):
    return str(jax.make_jaxpr(fn)(*args))


@pytest.mark.parametrize(
    ("images", "room", "steps"), [(6, 2, 3), (6, 4, 2), (7, 3, 7), (5, 0.1, 5), (4, 4, 0), (4, 9, 0)]
)
def test_patches_are_made_a_block_of_images_at_a_time(monkeypatch, images, room, steps):
    one = 7 * 6 * 9 * 3 * 4  # bytes of an image's patches
    monkeypatch.setattr(products, "_BLOCK", int(room * one))
    products._as_product.cache_clear()
    x = normal(3, (images, 7, 6, 3))
    rewritten = matmul_convolutions(conv)
    assert (f"length={steps}" in primitives(rewritten, x, K)) == (steps > 0)
    assert_close(compiled(rewritten)(x, K), conv(x, K))
    assert_close(compiled(gradient(rewritten, 2))(x, K), gradient(conv, 2)(x, K))
    tangents = (normal(4, x.shape), normal(5, K.shape))
    assert_close(compiled(lambda: jax.jvp(rewritten, (x, K), tangents))(), jax.jvp(conv, (x, K), tangents))
    after = matmul_convolutions(gradient(conv, 2))  # other forms
    assert_close(compiled(after)(x, K), gradient(conv, 2)(x, K))
    products._as_product.cache_clear()


def pool(x, window=(1, 2, 2, 1), strides=None, padding="VALID"):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides or window, padding)


@pytest.mark.parametrize("window", [(1, 2, 2, 1), (1, 3, 2, 1), (2, 2, 1, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize("ties", [False, True])
def test_maxima_of_windows_side_by_side(window, ties):
    x = normal(6, (2, 7, 6, 3))
    x = jnp.round(x).at[0, :2].set(0.0) if ties else x  # the first of equals takes the whole derivative
    fn = lambda x: pool(x, window)
    rewritten = matmul_convolutions(fn)
    assert "reduce_window" not in primitives(rewritten, x)
    assert "select_and" not in primitives(gradient(rewritten, 1), x)
    np.testing.assert_array_equal(rewritten(x), fn(x))
    (actual,), _ = gradient(rewritten, 1)(x)
    (expected,), _ = gradient(fn, 1)(x)
    np.testing.assert_array_equal(actual, expected)
    tangent = normal(7, x.shape)
    assert_close(jax.jvp(rewritten, (x,), (tangent,)), jax.jvp(fn, (x,), (tangent,)), 1e-6)
    after = matmul_convolutions(gradient(fn, 1))
    assert "select_and" not in primitives(after, x)
    np.testing.assert_array_equal(after(x)[0][0], expected)
    pushed = matmul_convolutions(lambda x, t: jax.jvp(fn, (x,), (t,)))
    assert "select_and" not in primitives(pushed, x, tangent)
    assert_close(pushed(x, tangent), jax.jvp(fn, (x,), (tangent,)), 1e-6)
    both = jnp.stack([x, -x])
    np.testing.assert_array_equal(
        jax.vmap(lambda x: gradient(rewritten, 1)(x)[0][0])(both), jnp.stack([gradient(fn, 1)(v)[0][0] for v in both])
    )


@pytest.mark.parametrize(
    "other",
    [
        lambda x: pool(x, strides=(1, 1, 1, 1)),
        lambda x: pool(x, padding="SAME"),
        lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        lambda x: pool(jnp.round(x).astype(jnp.int32).astype(jnp.float32), padding=((0, 0), (1, 0), (0, 0), (0, 0))),
    ],
)
def test_other_windows_are_left_to_xla(other):
    assert primitives(matmul_convolutions(other), X) == primitives(other, X)
