"""Compressors: errors against closed forms, bits against encoders written here, and vectors that break them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import fedjax_sim as fs
from fedjax_sim.aggregate.compress import low_rank
from fedjax_sim.aggregate.numerics import elias, hadamard, lloyd, rounding

A = fs.aggregate
DRAWS = 4000
SKEWED = np.random.default_rng(0).normal(size=37) ** 3


def context(bound=jnp.inf, round_key=None):
    key = jax.random.key(9) if round_key is None else round_key
    return A.Context(jnp.int32(0), jnp.int32(0), key, jnp.asarray(bound, jnp.float32), weight=jnp.ones(()))


def decoder(*transforms):
    """`(key, x) -> what the server makes of one client's message`, and its bits."""
    aggregator = A.chain(*transforms, reduce=A.mean("uniform"))

    def decode(key, x, round_key=None):
        round_key = jax.random.key(9) if round_key is None else round_key
        states, rows = aggregator.init(x)
        message, _, metrics = aggregator.client(key, states, rows, x, context(round_key=round_key))
        bound, step = aggregator.bound_and_step(states, x)
        message = aggregator.receive(key, states, message)
        if not aggregator.facts.weighted:
            message = jax.tree.map(lambda m: m.astype(jnp.float32), message)
        one = jnp.ones(())
        total = fs.Aggregate(message, one, one, bound=bound, step=step, sums=(None,) * 9, round_key=round_key)
        return aggregator.server(key, states, total, 1.0)[0].value, metrics["uplink_bits"].total

    return decode


def draws(transforms, x, n=DRAWS, rotations=False):
    """[n, d] decoded messages of one vector, with keys of their own, or rotations too."""
    decode, x = decoder(*transforms), jnp.asarray(x, jnp.float32)

    def one(key):
        shared = jax.random.fold_in(key, 1) if rotations else None
        return decode(key, x, shared)[0]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n)), np.float64)


def fraction(x):
    return x - np.floor(x)


# Errors


def k_level_error(x, k):
    step = (x.max() - x.min()) / (k - 1)
    f = fraction((x - x.min()) / step)
    return step**2 * f * (1 - f)


def qsgd_error(x, s):
    norm = np.linalg.norm(x)
    f = fraction(s * np.abs(x) / norm)
    return (norm / s) ** 2 * f * (1 - f)


def quantize_error(x, bits, clip):
    step = clip / (2 ** (bits - 1) - 1)
    f = fraction(x / step)
    return step**2 * f * (1 - f)


UNBIASED = {  # transforms, and each number's variance
    "k_level(5)": ((A.k_level(5),), k_level_error(SKEWED, 5)),
    "k_level(64)": ((A.k_level(64),), k_level_error(SKEWED, 64)),
    "binary": ((A.binary(),), k_level_error(SKEWED, 2)),
    "qsgd(3)": ((A.qsgd(3),), qsgd_error(SKEWED, 3)),
    "qsgd(200)": ((A.qsgd(200),), qsgd_error(SKEWED, 200)),
    "terngrad": ((A.terngrad(),), np.abs(SKEWED).max() * np.abs(SKEWED) - SKEWED**2),
    "random_k": ((A.random_k(10 / 37),), (37 / 10 - 1) * SKEWED**2),
    "quantize": ((A.clip_by_l2(100.0), A.quantize(6, conditional=False)), quantize_error(SKEWED, 6, 100.0)),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_an_unbiased_compressor_has_the_mean_and_the_variance_of_its_paper(name):
    transforms, variance = UNBIASED[name]
    got = draws(transforms, SKEWED)
    gap = np.abs(got.mean(0) - SKEWED)
    assert np.all(gap <= 5 * np.sqrt(variance / DRAWS) + 2e-5 * np.abs(SKEWED).max())
    seen = ((got - SKEWED) ** 2).sum(1)
    assert seen.mean() == pytest.approx(variance.sum(), abs=5 * seen.std() / DRAWS**0.5 + 1e-6)


BIASED = {  # transforms, and the exact squared error
    "sign": ((A.sign(),), lambda x: (x**2).sum() - np.abs(x).sum() ** 2 / len(x)),
    "top_k": ((A.top_k(5 / 37),), lambda x: np.sort(x**2)[:-5].sum()),
    "bfloat16": ((A.bfloat16(),), lambda x: ((x - np.asarray(jnp.asarray(x, jnp.bfloat16), float)) ** 2).sum()),
}


@pytest.mark.parametrize("name", BIASED)
def test_a_deterministic_compressor_has_its_exact_error(name):
    transforms, error = BIASED[name]
    x = SKEWED.astype(np.float32).astype(np.float64)
    got = draws(transforms, x, 2)
    assert np.array_equal(got[0], got[1])
    assert ((got[0] - x) ** 2).sum() == pytest.approx(error(x), rel=1e-4)


# The limits of large dimension: pi / 2 - 1, 1 - 2 / pi, and D / (1 - D) of the Lloyd-Max quantiser
ROTATED = {
    "drive": (A.drive(), math.pi / 2 - 1),
    "drive, biased": (A.drive(biased=True), 1 - 2 / math.pi),
    "eden(1)": (A.eden(1), 0.5708),
    "eden(2)": (A.eden(2), 0.1331),
    "eden(3)": (A.eden(3), 0.0358),
    "eden(4)": (A.eden(4), 0.00959),
    "eden(2), biased": (A.eden(2, biased=True), 0.1175),
}


@pytest.mark.parametrize("name", ROTATED)
def test_drive_and_eden_have_the_error_of_their_papers(name):
    transform, expected = ROTATED[name]
    x = np.random.default_rng(1).lognormal(size=4096)
    got = draws((transform,), x, 60)
    assert ((got - x) ** 2).sum(1).mean() / (x @ x) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("transform", [A.drive(), A.eden(2)], ids=["drive", "eden"])
def test_rotations_of_their_own_average_out_over_clients(transform):
    """The mean of 400 messages has 1 / 400 of one's error and the rotation's trifle; with one rotation, all of it."""
    x = np.random.default_rng(1).lognormal(size=1000)
    got = draws((transform,), x, 400)
    one = ((got - x) ** 2).sum(1).mean()
    assert ((got.mean(0) - x) ** 2).sum() < one / 100


@pytest.mark.parametrize("bits, distortion", [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_lloyd_max_levels_are_the_means_of_their_cells(bits, distortion):
    """By integration on a grid; distortions as in Max (1960)."""
    levels = lloyd.gaussian_levels(bits)
    z = np.linspace(-9, 9, 400_001)
    weight = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    cell = np.searchsorted(levels.thresholds, z)
    mass, first = np.bincount(cell, weight), np.bincount(cell, weight * z)
    np.testing.assert_allclose(levels.centroids, first / mass, atol=1e-3)
    assert (weight * (z - levels.centroids[cell]) ** 2).sum() == pytest.approx(levels.distortion, rel=1e-4)
    assert levels.distortion == pytest.approx(distortion, rel=1e-3)


# Vectors that break compressors

EVERY = {
    "bfloat16": (A.bfloat16(),),
    "binary": (A.binary(),),
    "k_level": (A.k_level(16),),
    "qsgd": (A.qsgd(8),),
    "terngrad": (A.terngrad(),),
    "sign": (A.sign(),),
    "top_k": (A.top_k(0.3),),
    "random_k": (A.random_k(0.3),),
    "drive": (A.drive(),),
    "eden": (A.eden(3),),
    "power_sgd": (A.power_sgd(1, feedback=False),),
    "quantize": (A.clip_by_l2(1.0), A.quantize(8)),
    "rotate": (A.rotate(),),
    "rotated": (A.clip_by_l2(1.0), A.rotate(), A.quantize(8)),
    "error_feedback": (A.error_feedback(A.top_k(0.3)),),
}


@pytest.mark.parametrize("name", EVERY)
def test_zeros_stay_zeros_and_odd_sizes_keep_their_shapes(name):
    """Zero leaves, constant ones, one-element ones, none, 2^k and 2^k + 1 numbers."""
    shapes = {"one": (1,), "scalar": (), "none": (0,), "even": (8,), "odd": (3, 3), "more": (17,)}
    decode = jax.jit(decoder(*EVERY[name]))
    zeros = {leaf: jnp.zeros(shape) for leaf, shape in shapes.items()}
    got, bits = decode(jax.random.key(0), zeros)
    assert jax.tree.map(jnp.shape, got) == shapes
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(got))
    assert 0 < float(bits) <= 32 * 64 + 64 * 6
    flat, _ = decode(jax.random.key(0), {leaf: jnp.full(shape, 0.03) for leaf, shape in shapes.items()})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(flat))


@pytest.mark.parametrize("total", [16, 17])
@pytest.mark.parametrize("name", ["drive", "eden", "rotate", "rotated"])
def test_leaves_of_2_to_the_k_numbers_in_all_are_not_padded_and_one_more_doubles_them(name, total):
    """These concatenate the leaves: what counts is the sum of their sizes."""
    x = {"a": jnp.full((3, 3), 0.01), "b": jnp.full((total - 9,), -0.02)}
    got, bits = jax.jit(decoder(*EVERY[name]))(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    each, scale = {"drive": (1, 64), "eden": (3, 64), "rotate": (32, 0), "rotated": (8, 0)}[name]
    assert float(bits) == each * {16: 16, 17: 32}[total] + scale


@pytest.mark.parametrize("total, place", [(16, 4), (17, 5)])
def test_a_place_counts_through_all_leaves(total, place):
    """The k largest of all numbers, wherever they lie, and places of log2 of all of them."""
    draw = np.random.default_rng(total)
    x = {"a": draw.normal(size=(3, 3)).astype(np.float32), "b": draw.normal(size=total - 9).astype(np.float32)}
    k = math.ceil(0.3 * total)
    numbers = np.concatenate([x["a"].ravel(), x["b"]])
    largest = np.where(np.abs(numbers) >= np.sort(np.abs(numbers))[-k], numbers, 0)
    for name, bits in (("top_k", k * (32 + place)), ("error_feedback", k * (32 + place)), ("random_k", 32 * k + 32)):
        got, sent = jax.jit(decoder(*EVERY[name]))(jax.random.key(0), x)
        assert float(sent) == bits
        back = np.concatenate([np.ravel(got["a"]), np.ravel(got["b"])])
        assert np.count_nonzero(back) == k
        if name != "random_k":
            np.testing.assert_array_equal(back, largest)


def test_a_constant_leaf_comes_back_as_it_was():
    for transform in (A.k_level(4), A.binary()):
        got = draws((transform,), np.full(5, 0.7), 3)
        np.testing.assert_allclose(got, 0.7, rtol=1e-6)


def test_leaves_draw_from_keys_of_their_own():
    """Equal leaves with one key would have equal errors, which add up."""
    tree = {"a": jnp.linspace(0, 1, 500), "b": jnp.linspace(0, 1, 500)}
    for transform in (A.k_level(2), A.qsgd(1), A.terngrad()):
        got, _ = decoder(transform)(jax.random.key(0), tree)
        errors = [np.asarray(got[leaf] - tree[leaf]) for leaf in "ab"]
        assert abs(np.corrcoef(*errors)[0, 1]) < 0.2


# Rounding


def test_uniforms_are_uniform_and_uncorrelated():
    u = np.asarray(jax.jit(jax.vmap(lambda k: rounding.uniforms(k, (7,))))(jax.random.split(jax.random.key(0), 20_000)))
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        counts, _ = np.histogram(column, 64, (0, 1))
        assert ((counts - 312.5) ** 2 / 312.5).sum() < 64 + 5 * math.sqrt(128)
    assert np.abs(np.corrcoef(u.T) - np.eye(7)).max() < 5 / math.sqrt(20_000)


def test_zero_is_on_the_grid():
    """An 8-bit grid without zero gives a zero update of W1's size 1.8 times the clip's norm."""
    got = draws((A.clip_by_l2(1.0), A.quantize(8)), np.zeros(209_662), 1)
    assert np.all(got == 0)


def test_conditional_rounding_never_passes_the_bound():
    d, clip = 3000, 1.0
    x = np.full(d, 0.5 / 127)  # half a step everywhere: the worst case
    x *= 1 / max(1, np.linalg.norm(x))
    chain = A.chain(A.clip_by_l2(clip), A.quantize(8), reduce=A.mean("uniform"))
    states, _ = chain.init(jnp.asarray(x))
    bound = float(chain.bound(states, jnp.asarray(x)))
    c, root = 127.0, math.sqrt(d)
    assert bound == pytest.approx(min(c + root, math.sqrt(c**2 + d / 4 + c + root / 2)) / 127, rel=1e-5)
    norms = np.linalg.norm(draws((A.clip_by_l2(clip), A.quantize(8)), x, 200), axis=1)
    assert norms.max() <= bound
    limit = np.percentile(norms, 20) * 127  # a bound that most tries miss is met all the same
    scaled = {"x": jnp.asarray(x * 127, jnp.float32)}
    run = jax.jit(jax.vmap(lambda key: rounding.round_within(key, scaled, limit)))
    rounded, tries = run(jax.random.split(jax.random.key(5), 200))
    assert np.linalg.norm(np.asarray(rounded["x"]), axis=1).max() <= limit * (1 + 1e-6)
    assert tries.max() > 2


@pytest.mark.parametrize("rotated", [False, True])
def test_noise_is_scaled_by_the_bound_after_rounding(rotated):
    """Wherever the noise stands: sigma from the clip alone would be too little."""
    stages = [A.clip_by_l2(1.0), A.gaussian_noise(0.5)] + [A.rotate()] * rotated + [A.quantize(4), A.secure_sum()]
    chain = A.chain(*stages, reduce=A.mean("uniform"))
    states, _ = chain.init(jnp.zeros(1000))
    bound = float(chain.bound(states, jnp.zeros(1000)))
    assert bound > 1.1
    got = draws(stages, np.zeros(1000), 20)
    assert got.std() == pytest.approx(0.5 * bound, rel=0.03)


# The contract's example: FedAvg, user-level DP, rotation, 8 bits, secure sum


def test_the_contracts_private_chain_trains_and_is_accounted():
    digits = fs.data.load("digits")
    clients = fs.data.federate(digits.train, fs.partition.iid(60), seed=0)
    task = fs.classification(fs.models.LogisticRegression(10), digits.train)

    def sim(*stages, reduce="uniform"):
        chain = A.chain(A.clip_by_l2(1.0), *stages, reduce=A.mean(weight=reduce))
        private = fs.fedavg(task, optax.sgd(0.5), aggregator=chain)
        return fs.Simulation(private, clients, fs.sampler.poisson(0.3), fs.Batching(20), seed=0)

    secure = sim(A.gaussian_noise(multiplier=0.2), A.rotate(), A.quantize(bits=8), A.secure_sum())
    plain = sim(A.gaussian_noise(multiplier=0.2))
    ends = {}
    for name, each in (("secure", secure), ("plain", plain)):
        state, history = each.run(each.init(), rounds=6)
        assert each.compile_count() == 1
        ends[name] = fs.evaluate(task, each.params(state), digits.test)["accuracy"]
    assert ends["secure"] > 0.6
    assert ends["secure"] == pytest.approx(ends["plain"], abs=0.1)
    assert history["aggregate/uplink_bits"][-1] > 0
    epsilon = secure.epsilon(rounds=6, delta=1e-5)
    assert float(epsilon.epsilon) > float(sim(A.gaussian_noise(1.0)).epsilon(rounds=6, delta=1e-5).epsilon) > 0


# Hadamard


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11])
def test_hadamard_is_scipys(k):
    x = np.random.default_rng(k).normal(size=2**k).astype(np.float32)
    expected = scipy.linalg.hadamard(2**k) @ x / 2 ** (k / 2)
    np.testing.assert_allclose(hadamard.hadamard(jnp.asarray(x)), expected, atol=2e-5)


@pytest.mark.parametrize("size", [1, 2, 5, 64, 65])
def test_a_rotation_keeps_norms_and_goes_back(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)
    z = hadamard.rotate_randomly(jax.random.key(3), x)
    assert z.shape == (hadamard.padded_size(size),)
    np.testing.assert_allclose(jnp.linalg.norm(z), jnp.linalg.norm(x), rtol=1e-5)
    np.testing.assert_allclose(hadamard.rotate_back(jax.random.key(3), z, size), x, atol=1e-5)
    with pytest.raises(fs.FedSimError, match=r"x\.shape=\(3,\): must be \[2\^k\]"):
        hadamard.hadamard(jnp.zeros(3))


# Bits


def omega(n):
    """Elias omega, as the paper writes it down."""
    code = "0"
    while n > 1:
        word = f"{n:b}"
        code, n = word + code, len(word) - 1
    return code


def gamma(n):
    return "0" * (n.bit_length() - 1) + f"{n:b}"


def test_elias_lengths_are_those_of_the_codes():
    n = np.array([*range(1, 70), 100, 1000, 65_535, 65_536, 2**20, 2**30])
    assert np.asarray(elias.omega_length(jnp.asarray(n, jnp.int32))).tolist() == [len(omega(int(k))) for k in n]
    assert np.asarray(elias.gamma_length(jnp.asarray(n, jnp.int32))).tolist() == [len(gamma(int(k))) for k in n]


@pytest.mark.parametrize("levels, code", [(1, omega), (6, gamma), (300, omega)])
def test_qsgd_counts_the_bits_of_a_real_encoding(levels, code):
    name = "omega" if code is omega else "gamma"
    x = jnp.asarray(SKEWED, jnp.float32)
    value, bits = decoder(A.qsgd(levels, name))(jax.random.key(2), x)
    q = np.rint(np.asarray(value) / np.linalg.norm(np.float32(SKEWED)) * levels).astype(int)
    places = np.flatnonzero(q)
    few = sum(
        len(code(int(gap))) + 1 + len(code(abs(int(level))))
        for gap, level in zip(np.diff(places, prepend=-1), q[places], strict=True)
    ) + len(code(len(places) + 1))
    many = sum(len(code(abs(int(level)) + 1)) + (level != 0) for level in q)
    assert float(bits) == 32 + 1 + min(few, many)


SIZES = {
    "k_level(16)": ((A.k_level(16),), 4 * 100 + 64),
    "binary": ((A.binary(),), 100 + 64),
    "terngrad": ((A.terngrad(),), 8 * 20 + 32),
    "sign": ((A.sign(),), 100 + 32),
    "drive": ((A.drive(),), 128 + 64),  # padded
    "eden(3)": ((A.eden(3),), 3 * 128 + 64),
    "top_k": ((A.top_k(0.1),), 10 * (32 + 7)),  # an index for each
    "random_k": ((A.random_k(0.1),), 10 * 32 + 32),
    "rotate": ((A.rotate(),), 32 * 128),
    "quantize": ((A.clip_by_l2(1.0), A.rotate(), A.quantize(8)), 8 * 128),
    "secure_sum": ((A.clip_by_l2(1.0), A.rotate(), A.quantize(8), A.secure_sum(16)), 16 * 128),
    "bfloat16": ((A.bfloat16(),), 1600),
}


@pytest.mark.parametrize("name", SIZES)
def test_bits_count_all_that_is_sent(name):
    transforms, bits = SIZES[name]
    assert float(decoder(*transforms)(jax.random.key(0), jnp.linspace(0.1, 1, 100))[1]) == bits


# Error feedback and low rank


def noisy():
    """A channel that adds noise of its own as the server decodes."""
    return A.Transform("noisy", receive=lambda key, state, message: message + jax.random.normal(key, message.shape))


def dithered():
    """Whole numbers after a dither that the server draws again and takes away."""
    dither = lambda key, leaf: jax.random.uniform(key, leaf.shape, minval=-0.5, maxval=0.5)

    def client(key, state, row, payload, context):
        return jnp.round(payload + dither(context.receive_key, payload)), row, {}

    return A.Transform("dithered", client=client, receive=lambda key, state, m: m - dither(key, m))


FED_BACK = {
    "top_k": A.top_k(0.2),
    "sign": A.sign(),
    "drive": A.drive(biased=True),
    "eden": A.eden(2, biased=True),
    "random_k": A.random_k(0.3, scale=False),
    "k_level": A.k_level(16),
    "qsgd": A.qsgd(16),
    "dithered": dithered(),
    "noisy": noisy(),
}


@pytest.mark.parametrize("name", FED_BACK)
def test_error_feedback_loses_nothing(name):
    """What was received and what is left add up to all updates, also where the server draws as it decodes."""
    chain = A.chain(A.error_feedback(FED_BACK[name]))
    updates = jnp.asarray(np.random.default_rng(0).normal(size=(12, 33)), jnp.float32)
    states, rows = chain.init(updates[0])
    step = jax.jit(functools.partial(_sent, chain))
    total = np.zeros(33)
    for t, update in enumerate(updates):
        sent, rows = step(jax.random.fold_in(jax.random.key(4), t), states, rows, update)
        total += np.asarray(sent, np.float64)
    memory = np.asarray(rows[0][1])
    assert np.linalg.norm(memory) > 0.1
    np.testing.assert_allclose(total + memory, np.asarray(updates, np.float64).sum(0), atol=2e-5)


def _sent(chain, key, states, rows, update):
    receive = jax.random.fold_in(key, 1)
    message, rows, _ = chain.client(key, states, rows, update, context()._replace(receive_key=receive))
    return chain.receive(receive, states, message), rows


@pytest.mark.parametrize("rank", [1, 3])
def test_power_sgd_gives_matrices_of_its_rank_back(rank):
    draw = np.random.default_rng(rank)
    tree = {
        "matrix": jnp.asarray(draw.normal(size=(20, rank)) @ draw.normal(size=(rank, 15)), jnp.float32),
        "bias": jnp.asarray(draw.normal(size=15), jnp.float32),
    }
    got, bits = decoder(A.power_sgd(rank, feedback=False))(jax.random.key(0), tree)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, tree)
    assert float(bits) == 32 * (rank * 35 + 15)


def test_power_sgd_finds_the_leading_directions_over_rounds():
    draw = np.random.default_rng(0)
    u, _, v = np.linalg.svd(draw.normal(size=(12, 9)))
    matrix = (u[:, :9] * 0.5 ** np.arange(9)) @ v
    chain = A.chain(A.power_sgd(2, feedback=False))
    states, rows = chain.init(jnp.asarray(matrix))
    errors = []
    for t in range(8):
        sent, rows = _sent(chain, jax.random.key(t), states, rows, jnp.asarray(matrix, jnp.float32))
        errors.append(np.linalg.norm(np.asarray(sent) - matrix))
    best = math.sqrt(sum(0.25**k for k in range(2, 9)))
    assert errors[0] > 1.02 * best
    assert errors[-1] == pytest.approx(best, rel=1e-3)


def test_an_orthonormal_basis_of_any_rank():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
    for m in (matrix, jnp.zeros((9, 4)), matrix.at[:, 2].set(matrix[:, 0])):
        basis = np.asarray(low_rank.orthonormalise(m))
        np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-5)


# Wrong combinations

WRONG = {
    "quantize without a range": (lambda: A.chain(A.quantize(8)), "needs to know the range"),
    "a quantiser twice": (lambda: A.chain(A.clip_by_l2(1.0), A.quantize(8), A.quantize(4)), "stands after a quantiser"),
    "rotate after quantize": (
        lambda: A.chain(A.clip_by_l2(1.0), A.quantize(8), A.rotate()),
        "stands after a quantiser",
    ),
    "decoded one by one under a secure sum": (lambda: A.chain(A.drive(), A.secure_sum()), "secure_sum"),
    "two codes": (lambda: A.chain(A.drive(), A.top_k(0.1)), "decoded one by one"),
    "floats under a secure sum": (lambda: A.chain(A.clip_by_l2(1.0), A.rotate(), A.secure_sum()), "gets floats"),
    "feedback of a sum": (lambda: A.error_feedback(A.rotate()), "decoded on the sum"),
    "noise before feedback": (
        lambda: A.chain(A.clip_by_l2(1.0), A.gaussian_noise(1.0), A.error_feedback(A.sign()), reduce=A.mean("uniform")),
        "has no bound",
    ),
    "noise after feedback": (
        lambda: A.chain(A.clip_by_l2(1.0), A.error_feedback(A.sign()), A.gaussian_noise(1.0), reduce=A.mean("uniform")),
        "gaussian_noise",
    ),
    "bits": (lambda: A.quantize(1), "bits=1: .*at least 2"),
    "levels": (lambda: A.k_level(1), "levels=1: .*at least 2"),
    "fraction": (lambda: A.top_k(0.0), r"fraction=0\.0: must be over 0"),
    "eden's bits": (lambda: A.eden(9), "bits=9: must be a whole number, 1 to 8"),
    "code": (lambda: A.qsgd(4, "huffman"), 'code=.*must be "omega" or "gamma"'),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_combinations_are_refused(case):
    build, reason = WRONG[case]
    with pytest.raises(fs.FedSimError, match=reason):
        build()
