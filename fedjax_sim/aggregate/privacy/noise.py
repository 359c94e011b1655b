"""Noise for differential privacy of floats: central, added once to the sum; and local, added by each client.

It is drawn from a run's noise seed, its seed unless `fs.Simulation(noise_seed=)` says otherwise.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Facts, Mechanism, Transform
from fedjax_sim.core import pytree
from fedjax_sim.core.arrays import Key, PyTree, Scalar
from fedjax_sim.core.errors import ArgumentError, check_positive
from fedjax_sim.core.metrics import Mean
from fedjax_sim.core.pytree import squared_norm


def gaussian_noise(multiplier: Scalar) -> Transform:
    r"""Gaussian noise of standard deviation z C on the sum, where C bounds one client's part (McMahan et al. 2018).

    .. math:: \Big(\sum_k u_k + \mathcal N(0, z^2 C^2 I)\Big) / m

    C is the L2 bound of what is summed, at the chain's end: after rounding, wherever the noise stands in the chain.
    The mean divides by the sampler's expected cohort m, which is no secret; also the noise of an empty cohort is
    released. Noise is drawn in float32, before any cast to the model's type. Runs of one seed share their noise, which
    cancels between two that are released: give each its own `fs.Simulation(noise_seed=)`.

    Metric: `signal_to_noise`, the norm of the sum over that of its noise, before the noise. It is for research: it is
    no part of what is private.

    Args:
        multiplier: z, positive; may be traced.

    Example:
        >>> import fedjax_sim as fs
        >>> private = fs.aggregate.chain(
        ...     fs.aggregate.clip_by_l2(1.0), fs.aggregate.gaussian_noise(0.8), reduce=fs.aggregate.mean("uniform")
        ... )
        >>> print(private)
        chain(clip_by_l2(1.0) > gaussian_noise(0.8) > mean(uniform))
          clip_by_l2(1.0)      sends floats, 32 bits a number, L2 bound: 1.0
          gaussian_noise(0.8)  sends floats, 32 bits a number, L2 bound: 1.0, noise: central gaussian 0.8 on the value
          mean(uniform)        divided by the expected cohort
    """
    check_positive("multiplier", multiplier)
    name = f"gaussian_noise({multiplier})"

    def server(key, state, aggregate):
        sigma = jnp.asarray(multiplier * aggregate.bound, jnp.float32)
        metrics = {"signal_to_noise": _ratio(squared_norm(aggregate.value), jnp.square(sigma), aggregate.value)}
        noise = _draw(jax.random.normal, key, aggregate.value)
        value = jax.tree.map(lambda total, n: total.astype(jnp.float32) + sigma * n, aggregate.value, noise)
        return dataclasses.replace(aggregate, value=value), state, metrics

    def facts(facts: Facts) -> Facts:
        _check_floats(name, facts)
        _check_clipped(name, facts)
        return facts._replace(noise=(*facts.noise, Mechanism("gaussian", multiplier, transform=name)))

    return Transform(name=name, server=server, facts=facts)


def local_gaussian_noise(multiplier: Scalar) -> Transform:
    r"""Gaussian noise of standard deviation z C by each client on its own payload: the server need not be trusted.

    C is the payload's L2 bound. Any two payloads are at most 2 C apart, so that a client's message is a Gaussian
    mechanism of multiplier z / 2 for local differential privacy. Runs of one seed share their noise, as with
    `gaussian_noise`. Metric: `signal_to_noise` of the sum.

    Args:
        multiplier: z, positive; may be traced.

    Example:
        >>> import fedjax_sim as fs
        >>> private = fs.aggregate.chain(
        ...     fs.aggregate.clip_by_l2(1.0),
        ...     fs.aggregate.local_gaussian_noise(4.0),
        ...     reduce=fs.aggregate.mean("uniform"),
        ... )
        >>> private.facts.noise[0].where
        'local'
    """
    check_positive("multiplier", multiplier)
    name = f"local_gaussian_noise({multiplier})"

    def client(key, state, row, payload, context):
        noise = _draw(jax.random.normal, key, payload)
        sigma = multiplier * context.bound
        return jax.tree.map(lambda p, n: p.astype(jnp.float32) + sigma * n, payload, noise), row, {}

    def sums(key, state, payload, context):
        return jnp.asarray(jnp.square(multiplier * context.bound), jnp.float32)

    def facts(facts: Facts) -> Facts:
        _check_floats(name, facts)
        _check_clipped(name, facts)
        noise = Mechanism("gaussian", multiplier, "local", transform=name)
        return facts._replace(noise=(*facts.noise, noise), clipped=False, bound="none")

    return Transform(
        name=name, client=client, server=_measured, facts=facts, bound=lambda *_: jnp.asarray(jnp.inf), sums=sums
    )


def local_laplace_noise(clip_norm: Scalar, multiplier: Scalar) -> Transform:
    r"""Clip to an L1 norm of at most C, then add Laplace noise of scale z C, on each client (Dwork et al. 2006).

    Any two payloads are at most 2 C apart in L1, so that a message is :math:`2 / z`-differentially private locally.
    Runs of one seed share their noise, as with `gaussian_noise`. Metric: `signal_to_noise` of the sum.

    Args:
        clip_norm: C, of the L1 norm, positive; may be traced.
        multiplier: z, positive; may be traced.

    Example:
        >>> import fedjax_sim as fs
        >>> noise = fs.aggregate.local_laplace_noise(clip_norm=1.0, multiplier=2.0)
        >>> fs.aggregate.chain(noise, reduce=fs.aggregate.mean("uniform")).facts.noise[0].kind
        'laplace'
    """
    check_positive("clip_norm", clip_norm)
    check_positive("multiplier", multiplier)
    name = f"local_laplace_noise({clip_norm}, {multiplier})"
    scale = clip_norm * multiplier

    def client(key, state, row, payload, context):
        norm = sum(jnp.sum(jnp.abs(p.astype(jnp.float32))) for p in jax.tree.leaves(payload))
        factor = jnp.where(norm > clip_norm, clip_norm / jnp.where(norm > clip_norm, norm, 1.0), 1.0)
        noise = _draw(jax.random.laplace, key, payload)
        return jax.tree.map(lambda p, n: p.astype(jnp.float32) * factor + scale * n, payload, noise), row, {}

    def facts(facts: Facts) -> Facts:
        _check_floats(name, facts)
        noise = Mechanism("laplace", multiplier, "local", transform=name)
        return facts._replace(noise=(*facts.noise, noise), clipped=False, bound="none")

    return Transform(
        name=name,
        client=client,
        server=_measured,
        facts=facts,
        bound=lambda *_: jnp.asarray(jnp.inf),
        sums=lambda key, state, payload, context: jnp.asarray(2 * jnp.square(scale), jnp.float32),
    )


def _measured(key, state, aggregate):
    """A sum of noised messages; `sums` holds the noise's variance."""
    variance = aggregate.sums
    signal = squared_norm(aggregate.value) - variance * pytree.size(aggregate.value)
    return aggregate, state, {"signal_to_noise": _ratio(signal, variance, aggregate.value)}


def _ratio(signal: jax.Array, variance: jax.Array, value: PyTree) -> Mean:
    """Norm of a signal over the norm of its noise; 0 without either."""
    noise = variance * pytree.size(value)
    ratio = jnp.sqrt(jnp.maximum(signal, 0) / jnp.where(noise > 0, noise, 1))
    return Mean(jnp.where(noise > 0, ratio, 0.0), jnp.ones(()))


def _draw(law: Callable[..., jax.Array], key: Key, like: PyTree) -> PyTree:
    """Independent float32 draws of a law in the shapes of a pytree."""
    leaves, structure = jax.tree.flatten(like)
    drawn = [law(jax.random.fold_in(key, i), jnp.shape(leaf), jnp.float32) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def _check_floats(name: str, facts: Facts) -> None:
    if facts.integers or facts.modulus is not None:
        raise ArgumentError(
            f"{name} stands after a quantiser, where the sum is of integers. Put it before: it is scaled by the bound "
            "at the chain's end all the same. Or take discrete_gaussian_noise or skellam_noise."
        )


def _check_clipped(name: str, facts: Facts) -> None:
    if not facts.clipped:
        raise ArgumentError(f"{name} stands where no L2 bound holds, so that its scale is not known: clip first.")
