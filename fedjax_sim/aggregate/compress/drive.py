"""DRIVE and EDEN: a rotation of each client's own, then one or a few bits a number, and one scale."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Transform
from fedjax_sim.aggregate.compress.messages import decoded_singly
from fedjax_sim.aggregate.numerics.hadamard import padded_size, rotate_back, rotate_randomly
from fedjax_sim.aggregate.numerics.lloyd import gaussian_levels
from fedjax_sim.core.errors import check
from fedjax_sim.core.pytree import Layout


class _Code(NamedTuple):
    """A rotated vector in b bits a number: levels, the scale, and the seed of the rotation."""

    levels: jax.Array
    scale: jax.Array
    seed: jax.Array


Coder = Callable[[jax.Array], jax.Array]
"""Numbers to levels, or levels to numbers, entry by entry."""

Growth = Callable[[int], float]
"""`(dim) -> factor` by which the L2 norm may grow."""


def drive(biased: bool = False) -> Transform:
    r"""DRIVE: one bit a number, the signs of the rotated update (Vargaftik et al. 2021).

    With z the update after a random rotation R that is each client's own, and S its scale,

    .. math:: \hat x = S R^{-1} \operatorname{sgn}(z), \qquad
        S = \frac{\lVert x \rVert_2^2}{\lVert z \rVert_1}, \text{ or } \frac{\lVert z \rVert_1}{d} \text{ when biased}

    The first gives :math:`\langle x, \hat x \rangle = \lVert x \rVert^2` whatever the rotation, and is what to average
    over clients: its relative squared error tends to :math:`\pi/2 - 1 = 0.571`, unbiased. The second minimises one
    message's error, :math:`1 - 2/\pi = 0.363`, and is for error feedback. Both rest on rotations of each client's
    own: a shared one would give all clients the same error, which does not average out.

    Unbiased is exact for rotations drawn uniformly. The randomised Hadamard transform stands in for them as in the
    paper: close for updates of many comparable numbers, not for a vector such as (2, 1).

    A bit for each of the 2^k padded numbers, 32 for the scale, and 32 for the rotation's seed.

    Args:
        biased: the scale of the least error.

    Raises:
        ArgumentError: it stands after a quantiser or what is decoded message by message.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.drive())
    """

    def levels(z: jax.Array) -> jax.Array:
        return z >= 0

    def values(levels: jax.Array) -> jax.Array:
        return jnp.where(levels, 1.0, -1.0)

    name = "drive(biased=True)" if biased else "drive()"
    return _rotated(name, 1, levels, values, biased, lambda dim: dim**0.5)


def eden(bits: int = 2, biased: bool = False) -> Transform:
    r"""EDEN: b bits a number, the rotated update on the levels that lose least (Vargaftik et al. 2022).

    The numbers of z, a random rotation of x that is each client's own, are close to normal: with
    :math:`\eta = \sqrt d / \lVert x \rVert` they are put on the :math:`2^b` levels Q of the Lloyd-Max quantiser of
    N(0, 1),

    .. math:: \hat x = S R^{-1} Q(\eta z), \qquad S = \frac{\lVert x \rVert^2}{\langle z, Q(\eta z) \rangle},
        \text{ or } \frac{\langle z, Q(\eta z) \rangle}{\lVert Q(\eta z) \rVert^2} \text{ when biased}

    The relative squared error of the first tends to D / (1 - D), D being the quantiser's distortion: 0.571, 0.133,
    0.0358, 0.00959 for 1 to 4 bits; of the second to D. With one bit it is `drive`, and what is said there holds here.

    Args:
        bits: b, 1 to 8, for each of the 2^k padded numbers; and 64 in all for the scale and the rotation's seed.
        biased: the scale of the least error, for error feedback.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.chain(fs.aggregate.eden(4)).facts.bits
        4.0
    """
    check(bits in range(1, 9) and not isinstance(bits, bool), "bits", bits, "must be a whole number, 1 to 8.")
    table = gaussian_levels(bits)
    centroids, thresholds = table.centroids.astype("float32"), table.thresholds

    def levels(z: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.vdot(z, z))
        normal = z * (z.size**0.5 / jnp.where(norm > 0, norm, 1.0))
        level = jnp.zeros(z.shape, jnp.uint8)
        for threshold in thresholds:
            level += (normal > float(threshold)).astype(jnp.uint8)
        return level

    def values(levels: jax.Array) -> jax.Array:
        return jnp.asarray(centroids)[levels]

    name = f"eden({bits}, biased=True)" if biased else f"eden({bits})"
    ratio = float(table.centroids.max() / abs(table.centroids).min())
    return _rotated(name, bits, levels, values, biased, lambda dim: ratio * dim**0.5)


def _rotated(name: str, bits: int, levels: Coder, values: Coder, biased: bool, growth: Growth) -> Transform:
    def init(payload_shapes):
        return Layout.of(payload_shapes), None

    def client(key, state, row, payload, context):
        seed = jax.random.bits(key)
        x = state.ravel(payload, padded_size(state.size))
        z = rotate_randomly(jax.random.key(seed), x)
        coded = levels(z)
        q = values(coded)
        along = jnp.vdot(z, q)
        below = jnp.vdot(q, q) if biased else along
        above = along if biased else jnp.vdot(z, z)
        scale = jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)
        return _Code(coded, scale, seed), row, {}

    def receive(key, state, message):
        z = message.scale * values(message.levels)
        return state.unravel(rotate_back(jax.random.key(message.seed), z, state.size))

    return Transform(
        name,
        init=init,
        client=client,
        receive=receive,
        facts=decoded_singly(name, float(bits)),
        bound=lambda state, incoming, dim: incoming if biased else incoming * growth(padded_size(dim)),
        bits=lambda message, incoming: float(bits * message.levels.size + 64),
    )
