"""Distributed differential privacy: integer noise, a share by each client, under a secure sum."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate.base import Facts, Mechanism, Transform
from fedjax_sim.aggregate.privacy.noise import _ratio
from fedjax_sim.core import pytree
from fedjax_sim.core.arrays import Key, Scalar
from fedjax_sim.core.errors import ArgumentError, check_positive
from fedjax_sim.core.pytree import squared_norm

Law = Callable[[Key, Scalar, tuple[int, ...]], jax.Array]
"""`(key, sigma, shape) -> draws`, int32."""


def discrete_gaussian_noise(multiplier: Scalar, survivors: float | None = None) -> Transform:
    r"""Discrete Gaussian noise on integers, a share by each client (Kairouz, Liu and Steinke 2021).

    .. math:: u_k + \mathcal N_{\mathbb Z}(0, \sigma^2 / n), \qquad \sigma = z C / s

    where C bounds one client's message, rounded, s is what a unit of its integers is worth, and n the number of
    clients whose shares make up the whole noise. With m senders the sum's noise has multiplier
    :math:`z \sqrt{m / n}`, and a sum of discrete Gaussians is nearly, not quite, one. Goes between a quantiser and
    `secure_sum`: a message by itself has too little noise to be shown. Runs of one seed share their noise, as with
    `gaussian_noise`. Metrics: `signal_to_noise` of the sum, and `noise_multiplier`, of those who sent.

    All clients that are drawn and arrive send their share, also those without examples or whose update is dropped,
    which send zeros with it: the noise must not tell who has data.

    Args:
        multiplier: z, positive; may be traced.
        survivors: n, clients that send at least; None for the sampler's expected cohort.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.discrete_gaussian_noise(0.8).name
        'discrete_gaussian_noise(0.8)'
    """
    return _distributed("discrete_gaussian", discrete_gaussian, multiplier, survivors)


def skellam_noise(multiplier: Scalar, survivors: float | None = None) -> Transform:
    r"""Skellam noise on integers, a share by each client (Agarwal, Kairouz and Liu 2021).

    .. math:: u_k + P - P', \qquad P, P' \sim \mathrm{Poisson}(\sigma^2 / 2 n)

    As `discrete_gaussian_noise`; sums of Skellam variables are Skellam, so that the sum's law is exact.

    Args:
        multiplier: z, positive; may be traced. A share's standard deviation must stay below 4096 units, where the
            Poisson sampler is exact in float32: a simulation checks it.
        survivors: as in `discrete_gaussian_noise`.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.skellam_noise(0.8).name
        'skellam_noise(0.8)'
    """
    return _distributed("skellam", skellam, multiplier, survivors)


def _distributed(kind: str, law: Law, multiplier: Scalar, survivors: float | None) -> Transform:
    check_positive("multiplier", multiplier)
    if survivors is not None:
        check_positive("survivors", survivors)
    name = f"{kind}_noise({multiplier})"

    def sharers(expected: Scalar) -> Scalar:
        return expected if survivors is None else survivors

    def client(key, state, row, payload, context):
        sigma = multiplier * context.bound / (context.step * jnp.sqrt(jnp.float32(sharers(context.expected))))
        leaves, structure = jax.tree.flatten(payload)
        noised = [
            leaf.astype(jnp.int32) + law(jax.random.fold_in(key, i), sigma, leaf.shape) for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, noised), row, {}

    def server(key, state, aggregate):
        shares = aggregate.count if aggregate.shares is None else aggregate.shares
        realised = multiplier * jnp.sqrt(shares / sharers(aggregate.expected))
        variance = jnp.square(realised * aggregate.bound / aggregate.step)
        signal = squared_norm(aggregate.value) - variance * pytree.size(aggregate.value)
        ratio = _ratio(signal, variance, aggregate.value)
        return aggregate, state, {"signal_to_noise": ratio, "noise_multiplier": realised}

    def facts(facts: Facts) -> Facts:
        if facts.modulus is not None:
            raise ArgumentError(f"{name} stands after a secure sum, where messages are masked: put it before.")
        if not facts.integers:
            raise ArgumentError(
                f"{name} adds integers, and gets floats: put a quantiser before it, or take gaussian_noise."
            )
        if not facts.clipped:
            raise ArgumentError(f"{name} stands where no L2 bound holds, so that its scale is not known: clip first.")
        noise = Mechanism(kind, multiplier, "distributed", transform=name, details={"survivors": survivors})
        return facts._replace(noise=(*facts.noise, noise))

    return Transform(name=name, client=client, server=server, facts=facts)


_TABLE = 64
_SMALL = 6.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)


def discrete_gaussian(key: Key, sigma: Scalar, shape: tuple[int, ...]) -> jax.Array:
    r"""Draws of :math:`P(k) \propto e^{-k^2 / 2 \sigma^2}` over the integers, int32, to float32's precision.

    Below :math:`\sigma = 6` by inversion of the tail :math:`P(|K| \ge j)`, from a table; above by rejection: a Gaussian
    number, rounded, has a law whose ratio to this one is at most :math:`e^{1 / 24 \sigma^2}` times the normaliser
    (Jensen), so that all but a few in ten thousand are accepted at once.
    """
    sigma = jnp.asarray(sigma, jnp.float32)
    return jax.lax.cond(sigma < _SMALL, _by_table, _by_rejection, key, sigma, jnp.zeros(shape, jnp.int32))


def _by_table(key: Key, sigma: jax.Array, like: jax.Array) -> jax.Array:
    k = jnp.arange(_TABLE, dtype=jnp.float32)
    return _invert(key, jnp.exp(-0.5 * jnp.square(k / jnp.maximum(sigma, 1e-6))), like)


def _invert(key: Key, mass: jax.Array, like: jax.Array) -> jax.Array:
    """Draws of a symmetric law from its mass at 0, 1, ..., up to a factor: one word gives the size and the sign."""
    mass = mass * jnp.where(jnp.arange(len(mass)) == 0, 1.0, 2.0)
    tail = jnp.cumsum(mass[::-1])[::-1] / jnp.sum(mass)  # P(|K| >= k); small ones are summed first
    words = jax.random.bits(key, like.shape, jnp.uint32)
    uniform = ((words >> 1).astype(jnp.float32) + 0.5) * 2.0**-31
    size = jnp.searchsorted(-tail, -uniform, side="left").astype(jnp.int32) - 1
    return jnp.where(words & 1, size, -size)


def _by_rejection(key: Key, sigma: jax.Array, like: jax.Array) -> jax.Array:
    variance = jnp.square(sigma)

    def propose(key: Key):
        for_number, for_test = jax.random.split(key)
        k = jnp.round(sigma * jax.random.normal(for_number, like.shape))
        nodes = [(0.25 * (1 + x), 0.5 * w) for x, w in zip(_NODES, _WEIGHTS, strict=True)]  # on [0, 1/2], of mean 1
        mean = sum(w * jnp.cosh(k * x / variance) * jnp.exp(-0.5 * x * x / variance) for x, w in nodes)
        accept = jnp.exp(-1 / (24 * variance)) / mean
        return k.astype(jnp.int32), jax.random.uniform(for_test, like.shape) < accept

    def again(carry):
        i, k, done = carry
        new, accepted = propose(jax.random.fold_in(key, i))
        return i + 1, jnp.where(done, k, new), done | accepted

    start = (jnp.zeros((), jnp.int32), like, jnp.zeros(like.shape, bool))
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]) & (carry[0] < 64), again, start)[1]


_LOG_FACTORIALS = np.cumsum(np.log(np.maximum(np.arange(3 * _TABLE), 1.0)))


def skellam(key: Key, sigma: Scalar, shape: tuple[int, ...]) -> jax.Array:
    r"""Draws of the difference of two :math:`\mathrm{Poisson}(\sigma^2 / 2)`, int32.

    Below :math:`\sigma = 6` by inversion, from a table of :math:`P(k) = \sum_j p_j p_{j + k}`; above as it is defined.
    """
    sigma = jnp.asarray(sigma, jnp.float32)
    return jax.lax.cond(sigma < _SMALL, _skellam_by_table, _by_poisson, key, sigma, jnp.zeros(shape, jnp.int32))


def _skellam_by_table(key: Key, sigma: jax.Array, like: jax.Array) -> jax.Array:
    rate = jnp.maximum(jnp.square(sigma) / 2, 1e-12)
    j = jnp.arange(3 * _TABLE, dtype=jnp.float32)
    poisson = jnp.exp(j * jnp.log(rate) - rate - jnp.asarray(_LOG_FACTORIALS, jnp.float32))
    shifted = jnp.arange(_TABLE)[:, None] + jnp.arange(2 * _TABLE)[None]
    return _invert(key, poisson[shifted] @ poisson[: 2 * _TABLE], like)


def _by_poisson(key: Key, sigma: jax.Array, like: jax.Array) -> jax.Array:
    rate = jnp.square(sigma) / 2
    plus, minus = (jax.random.poisson(k, rate, like.shape, jnp.int32) for k in jax.random.split(key))
    return plus - minus
