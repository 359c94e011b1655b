"""Correlated noise (DP-FTRL): the sum of all rounds is noised well, and most of a round's noise is undone later.

What is protected is the sum of the aggregates so far; a round adds the difference of two noises. Each client must stay
away for a number of rounds after it took part, which `fs.sampler.min_separation` enforces.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate.base import Facts, Mechanism, State, Transform
from fedjax_sim.core import extras
from fedjax_sim.core.arrays import Key, PyTree, Scalar, Shapes
from fedjax_sim.core.errors import ArgumentError, check, check_count, check_positive
from fedjax_sim.core.metrics import Mean
from fedjax_sim.core.types import Aggregate, Metrics


def tree_noise(multiplier: float, separation: int, efficient: bool = True) -> Transform:
    r"""Noise by a binary tree over the rounds (Kairouz et al. 2021, "Practical and private (deep) learning").

    Each node of a tree over `separation` rounds has noise :math:`N(0, (zC)^2 I)`, and the sum of the first t rounds
    has the noise of the few nodes that cover them: popcount(t) many, each of variance :math:`(zC)^2`. With `efficient`,
    a node of height h is estimated from all nodes under it too (Honaker 2015), at variance
    :math:`(zC)^2 / (2 - 2^{-h})`. A round adds the difference between two such noises. After `separation` rounds a new
    tree begins, so that a client is in one leaf of a tree at most.

    It runs with `fs.sampler.min_separation(..., separation)` or more. The server keeps log2(separation) + 1 models.
    Runs of one seed share their noise, as with `gaussian_noise`.

    Metrics: `noise_std`, of a node.

    Args:
        multiplier: z, standard deviation of a node's noise over the L2 bound C of one client.
        separation: rounds of a tree.
        efficient: Honaker's estimate; the cost in privacy is the same.

    Raises:
        ArgumentError: nothing clips before it.

    Example:
        >>> import fedjax_sim as fs
        >>> noise = fs.aggregate.tree_noise(multiplier=2.0, separation=32)
        >>> aggregator = fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0), noise, reduce=fs.aggregate.mean("uniform"))
    """
    check_positive("multiplier", multiplier)
    check_count("separation", separation)
    name = f"tree_noise({multiplier}, separation={separation})"
    levels = separation.bit_length()
    variance = 1 / (2 - 0.5 ** np.arange(levels))
    # The best mix of a node's own noise with the sum of its two children's estimates.
    own = jnp.asarray([1.0] + [2 * v / (1 + 2 * v) for v in variance[:-1]], jnp.float32)

    def init(payload_shapes: Shapes):
        nodes = jax.tree.map(lambda leaf: jnp.zeros((levels, *leaf.shape), jnp.float32), payload_shapes)
        return {"rounds": jnp.zeros((), jnp.int32), "nodes": nodes}, None

    def server(key, state, aggregate):
        nodes = state["nodes"]
        place = state["rounds"] % separation + 1  # of this round in its tree, from 1
        height = jax.lax.population_count((place & -place) - 1)  # of the largest node that ends here

        def drawn(level):
            return _normal(jax.random.fold_in(key, level), nodes)

        def up(level, below):
            left = jax.tree.map(lambda leaf: leaf[level - 1], nodes)
            mix = lambda mine, a, b: own[level] * mine + (1 - own[level]) * (a + b)
            return jax.tree.map(mix, drawn(level), left, below)

        new = jax.lax.fori_loop(1, height + 1, up, drawn(0)) if efficient else drawn(height)
        undone = (jnp.arange(levels) < height).astype(jnp.float32)  # nodes that the new one covers
        sigma = multiplier * aggregate.bound
        residual = jax.tree.map(lambda n, leaf: sigma * (n - jnp.tensordot(undone, leaf, 1)), new, nodes)
        nodes = jax.tree.map(lambda leaf, n: leaf.at[height].set(n), nodes, new)
        return _noised(aggregate, residual, sigma, {"rounds": state["rounds"] + 1, "nodes": nodes})

    mechanism = Mechanism(
        "tree", multiplier, transform=name, details={"separation": separation, "efficient": efficient}
    )
    return Transform(name=name, init=init, server=server, facts=lambda facts: _facts(facts, name, mechanism))


def banded_noise(
    multiplier: float,
    bands: int,
    rounds: int,
    separation: int | None = None,
    coefficients: Sequence[float] | None = None,
) -> Transform:
    r"""Noise by a banded Toeplitz factorisation (Choquette-Choo et al. 2023), with `jax_privacy`.

    Rounds X are released as :math:`X + C^{-1} Z`, where C has `bands` diagonals and Z is Gaussian. With
    participations of a client at least `separation` rounds apart, and no fewer than bands, the columns of C that it
    touches are orthogonal, and Z has standard deviation `multiplier` times

    .. math:: \mathrm{sens}(C) = \Big(\sum_{i < \lceil n/b \rceil} \lVert c_{:n - ib} \rVert^2\Big)^{1/2}

    times the L2 bound of one client: all n rounds together cost as much as one Gaussian of this multiplier. More rounds
    than n may be run, and cost more.

    It runs with `fs.sampler.min_separation(..., separation)` or more. The server keeps bands - 1 models. Runs of one
    seed share their noise, as with `gaussian_noise`.

    Metrics: `noise_std`, of Z.

    Args:
        multiplier: z, of all n rounds together.
        bands: diagonals of C; 1 is independent noise.
        rounds: n, for which C and the multiplier are meant.
        separation: b; None for as many as bands.
        coefficients: [bands] the first column of C, positive and not increasing; None for the
            least mean squared error of the sums, by `jax_privacy.matrix_factorization.toeplitz`; some seconds.

    Raises:
        ArgumentError: fewer rounds of separation than bands; no package jax-privacy; nothing clips before it.

    Example:
        >>> import fedjax_sim as fs
        >>> noise = fs.aggregate.banded_noise(multiplier=1.0, bands=2, rounds=8, coefficients=[1.0, 0.5])
        >>> aggregator = fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0), noise, reduce=fs.aggregate.mean("uniform"))
    """
    check_positive("multiplier", multiplier)
    check_count("bands", bands)
    check_count("rounds", rounds)
    check(bands <= rounds, "bands", bands, f"must be at most rounds={rounds}.")
    separation = bands if separation is None else separation
    check_count("separation", separation)
    check(
        separation >= bands,
        "separation",
        separation,
        f"must be at least bands={bands}, or a client's parts overlap and the noise does not cover them.",
    )
    name = f"banded_noise({multiplier}, bands={bands}, rounds={rounds})"
    toeplitz = extras.needed("jax_privacy.matrix_factorization.toeplitz", name, extra="privacy")
    if coefficients is None:
        coefficients = _best_coefficients(rounds, bands)
    column = np.asarray(coefficients, np.float64)
    check(
        column.shape == (bands,) and bool(np.all(np.isfinite(column))) and column[0] > 0,
        "coefficients",
        coefficients,
        f"must be {bands} finite numbers, the first of them positive.",
    )
    sensitivity = functools.partial(banded_sensitivity, column, separation)
    inverse = toeplitz.inverse_as_streaming_matrix(jnp.asarray(column, jnp.float32))

    def init(payload_shapes: Shapes):
        if not jax.tree.leaves(payload_shapes):
            raise ArgumentError(f"{name}: the payload {payload_shapes!r} has no leaf that noise could be added to.")
        like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), payload_shapes)
        return inverse.init_multiply(like), None

    def server(key, state, aggregate):
        drawn = _normal(key, aggregate.value, stacked=False)
        correlated, state = inverse.multiply_next(drawn, state)
        sigma = multiplier * sensitivity(rounds) * aggregate.bound
        return _noised(aggregate, jax.tree.map(lambda leaf: sigma * leaf, correlated), sigma, state)

    details = {
        "separation": separation,
        "rounds": rounds,
        "sensitivity": sensitivity,
        "coefficients": [float(c) for c in column],
    }
    mechanism = Mechanism("banded", multiplier, transform=name, details=details)
    return Transform(name=name, init=init, server=server, facts=lambda facts: _facts(facts, name, mechanism))


def banded_sensitivity(coefficients: np.ndarray | Sequence[float], separation: int, rounds: int) -> float:
    """By how much the encoded rounds CX move, in L2, when one client's parts, of norm 1 at most, become zero.

    Args:
        coefficients: [b] first column of a banded Toeplitz matrix.
        separation: least rounds between participations, no less than b.
        rounds: how many.
    """
    column = np.asarray(coefficients, np.float64)
    squares = np.cumsum(column**2)
    left = rounds - separation * np.arange(-(-rounds // separation))  # rounds from each participation to the end
    return math.sqrt(float(squares[np.minimum(left, len(column)) - 1].sum()))


@functools.lru_cache(maxsize=16)
def _best_coefficients(rounds: int, bands: int) -> tuple[float, ...]:
    """The strategy of least mean squared error of the sums; some seconds."""
    from jax_privacy.matrix_factorization import toeplitz

    with jax.ensure_compile_time_eval():  # also where a chain is built under a trace
        return tuple(np.asarray(toeplitz.optimize_banded_toeplitz(rounds, bands), np.float64).tolist())


def _normal(key: Key, like: PyTree, stacked: bool = True) -> PyTree:
    """Standard Gaussians as the leaves, or as each entry of stacked ones."""
    leaves, structure = jax.tree.flatten(like)
    drawn = [
        jax.random.normal(jax.random.fold_in(key, i), leaf.shape[1:] if stacked else leaf.shape, jnp.float32)
        for i, leaf in enumerate(leaves)
    ]
    return structure.unflatten(drawn)


def _noised(aggregate: Aggregate, noise: PyTree, sigma: Scalar, state: State) -> tuple[Aggregate, State, Metrics]:
    """The sum in float32 with its noise, as a server side returns it."""
    value = jax.tree.map(lambda v, n: v.astype(jnp.float32) + n, aggregate.value, noise)
    metrics = {"noise_std": Mean(jnp.asarray(sigma, jnp.float32), jnp.ones((), jnp.float32))}
    return dataclasses.replace(aggregate, value=value), state, metrics


def _facts(facts: Facts, name: str, mechanism: Mechanism) -> Facts:
    if not facts.clipped:
        raise ArgumentError(f"{name} needs a bound on one client's part: put fs.aggregate.clip_by_l2 before it.")
    return facts._replace(noise=(*facts.noise, mechanism))
