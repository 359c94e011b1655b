"""Uniform quantisation on a public grid: whole numbers that can be summed, in the clear or under a mask."""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Facts, Transform
from fedjax_sim.aggregate.compress.messages import check_floats
from fedjax_sim.aggregate.compress.rotate import Rotated, spread
from fedjax_sim.aggregate.numerics.rounding import norm_bound, round_up_or_down, round_within
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.metrics import Mean
from fedjax_sim.core.pytree import size


def quantize(bits: int = 8, conditional: bool = True) -> Transform:
    r"""Round each number, at random and without bias, to one of :math:`2^b - 1` levels around zero.

    .. math:: q_j = \operatorname{round}(x_j / s), \qquad s = C t / L, \qquad L = 2^{b-1} - 1

    C is the L2 bound of what comes in, so that all clients share the grid, zero lies on it, and the server multiplies
    the *sum* of whole numbers by s. No number of a clipped vector is over C, hence t = 1; after `rotate`, t is what
    `fedjax_sim.aggregate.compress.rotate.spread` says, and the grid is that much finer. Numbers beyond the grid, which
    only a rotation in a million has, are cut.

    Rounding lengthens a vector: 8 bits of a *zero-free* grid give a zero update of 209,662 numbers 1.8 times the clip's
    norm. So rounding is conditional (Kairouz, Liu and Steinke 2021): it is repeated while the norm is over

    .. math:: s \cdot \min\left(c + \sqrt d,\ \sqrt{c^2 + d/4 + c + \sqrt d / 2}\right), \qquad c = C / s

    (their bound with :math:`\beta = e^{-1/2}`), which is the chain's bound from there on; d counts padding. Repeating
    biases the mean by a trifle; `conditional=False` is exactly unbiased, under the bound :math:`C + s \sqrt d`.

    Metric: `rounding_tries`, how often a client rounded.

    Args:
        bits: b, 2 to 16.
        conditional: repeat until the norm is within the bound.

    Raises:
        ArgumentError: nothing before it bounds the norm, or it stands after another quantiser.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(
        ...     fs.aggregate.clip_by_l2(1.0), fs.aggregate.rotate(), fs.aggregate.quantize(8)
        ... )
        >>> aggregator.facts.integers, aggregator.facts.largest, aggregator.facts.bits
        (True, 127.0, 8.0)
    """
    check_count("bits", bits, minimum=2, advice="One bit has no level for zero: see fs.aggregate.binary().")
    check(bits <= 16, "bits", bits, "must be 16 at most: float32 updates resolve 24.")
    largest = float(2 ** (bits - 1) - 1)
    name = f"quantize({bits})" if conditional else f"quantize({bits}, conditional=False)"

    def init(payload_shapes):
        part = spread(size(payload_shapes)) if isinstance(payload_shapes, Rotated) else 1.0
        return jnp.asarray(part, jnp.float32), None

    def client(key, part, row, payload, context):
        step = context.bound * part / largest
        inverse = jnp.where(step > 0, 1 / jnp.where(step > 0, step, 1.0), 0.0)
        scaled = jax.tree.map(lambda x: jnp.clip(x.astype(jnp.float32) * inverse, -largest, largest), payload)
        metrics = {}
        if conditional:
            limit = norm_bound(largest / part, size(payload))
            rounded, tries = round_within(key, scaled, limit)
            metrics = {"rounding_tries": Mean(tries.astype(jnp.float32), jnp.ones(()))}
        else:
            rounded = round_up_or_down(key, scaled)
        return jax.tree.map(lambda r: r.astype(jnp.int32), rounded), row, metrics

    def server(key, part, aggregate):
        value = jax.tree.map(lambda total: total.astype(jnp.float32) * aggregate.step, aggregate.value)
        return dataclasses.replace(aggregate, value=value), part, {}

    def facts(facts: Facts) -> Facts:
        check_floats(name, facts)
        if not facts.clipped:
            raise ArgumentError(
                f"{name} needs to know the range of what it rounds: put fs.aggregate.clip_by_l2 before it, or use "
                "fs.aggregate.k_level, which sends each client's own range."
            )
        return facts._replace(integers=True, bits=float(bits), largest=largest, bound=f"{facts.bound}, rounded")

    def bound(part: jax.Array, incoming: Scalar, dim: int) -> Scalar:
        step = incoming * part / largest
        steps = largest / part
        return step * (norm_bound(steps, dim) if conditional else steps + dim**0.5)

    return Transform(
        name,
        init=init,
        client=client,
        server=server,
        facts=facts,
        bound=bound,
        bits=lambda message, incoming: float(bits) * size(message),
        step=lambda part, incoming, bound, dim: bound * part / largest,
    )
