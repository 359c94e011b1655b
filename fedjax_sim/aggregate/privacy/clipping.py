"""Clipping: bounds on one client's influence, over all leaves, leaf by leaf, or at a quantile that is followed."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Context, Facts, FactsRule, Mechanism, Transform
from fedjax_sim.core.arrays import PyTree, Scalar
from fedjax_sim.core.errors import ArgumentError, check, check_not_negative, check_positive
from fedjax_sim.core.metrics import Mean
from fedjax_sim.core.pytree import squared_norm


def clip_by_l2(clip_norm: Scalar) -> Transform:
    r"""Scale a payload down to an L2 norm of at most C, over all leaves together.

    .. math:: u \leftarrow u \cdot \min(1, C / \lVert u \rVert_2)

    Metrics: `clip_fraction`, the part of the clients that were scaled, and `update_norm`, their mean norm before.

    Args:
        clip_norm: C, positive; may be traced.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.clip_by_l2(0.5))
    """
    check_positive("clip_norm", clip_norm)
    name = f"clip_by_l2({clip_norm})"

    def client(key, state, row, payload, context):
        norm = jnp.sqrt(squared_norm(payload))
        return _scaled(payload, norm, clip_norm), row, _seen(norm, norm > clip_norm)

    return Transform(
        name=name,
        client=client,
        facts=_clipping(name, str(clip_norm)),
        bound=lambda state, incoming, dim: jnp.minimum(incoming, clip_norm),
    )


def clip_by_layer(clip_norms: Scalar | PyTree) -> Transform:
    r"""Scale each leaf of a payload down to an L2 norm of its own (McMahan et al. 2018).

    .. math:: u_l \leftarrow u_l \cdot \min(1, C_l / \lVert u_l \rVert_2), \qquad C = \sqrt{\sum_l C_l^2}

    C bounds the whole payload. A single number is C, shared out evenly: :math:`C_l = C / \sqrt{m}` for m leaves.
    Metrics as for `clip_by_l2`; a client counts as clipped when one of its leaves is.

    Args:
        clip_norms: C, positive; or a pytree of positive numbers in the payload's structure.

    Raises:
        ArgumentError: a norm that is not positive; in a simulation, a structure that is not the payload's.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.clip_by_layer({"w": 3.0, "b": 4.0}).bound(None, float("inf"), 10)
        Array(5., dtype=float32)
    """
    given = jax.tree.leaves(clip_norms)
    check(bool(given), "clip_norms", clip_norms, "must hold at least one norm.")
    for norm in given:
        check_positive("clip_norms", norm)
    single = jax.tree.structure(clip_norms) == jax.tree.structure(0)
    name = f"clip_by_layer({clip_norms})"

    def bound(state, incoming, dim):
        total = jnp.sqrt(sum(jnp.square(jnp.asarray(norm, jnp.float32)) for norm in given))
        return jnp.minimum(incoming, total)

    def limits(payload: PyTree) -> PyTree:
        if single:
            each = clip_norms / max(len(jax.tree.leaves(payload)), 1) ** 0.5
            return jax.tree.map(lambda leaf: each, payload)
        if jax.tree.structure(clip_norms) != jax.tree.structure(payload):
            raise ArgumentError(
                f"{name}: clip_norms have structure {jax.tree.structure(clip_norms)}: must be one number, or the "
                f"payload's structure, {jax.tree.structure(payload)}."
            )
        return clip_norms

    def client(key, state, row, payload, context):
        norms = jax.tree.map(lambda leaf: jnp.sqrt(squared_norm(leaf)), payload)
        most = limits(payload)
        over = [norm > limit for norm, limit in zip(jax.tree.leaves(norms), jax.tree.leaves(most), strict=True)]
        whole = jnp.sqrt(squared_norm(payload))
        clipped = jnp.any(jnp.stack(over)) if over else jnp.zeros((), bool)
        return jax.tree.map(_scaled, payload, norms, most), row, _seen(whole, clipped)

    return Transform(
        name=name,
        client=client,
        facts=_clipping(name, f"{clip_norms} by layer"),
        bound=bound,
    )


def adaptive_clip(
    initial: float = 0.1, quantile: float = 0.5, learning_rate: float = 0.2, bit_noise: float = 0.05
) -> Transform:
    r"""Clip at a quantile of the clients' norms, which is followed round by round (Andrew et al. 2021).

    .. math::

        b_k = \mathbb 1[\lVert u_k \rVert \le C] - \tfrac12, \qquad
        \bar b = \tfrac12 + \Big(\sum_k b_k + \mathcal N(0, \sigma_b^2)\Big) / m, \qquad
        C \leftarrow C \exp(-\eta (\bar b - \gamma))

    where m is the expected cohort and :math:`\sigma_b` is `bit_noise` times m. Noise on the value is scaled by the C
    that clipped, not by the next one. The bit travels beside the value, past quantisers and sparsifiers. It costs
    privacy: its noise is a Gaussian mechanism of multiplier :math:`z_b = 2 \sigma_b` (one client moves the sum by 1/2),
    which is accounted together with the value's z: :math:`(z^{-2} + z_b^{-2})^{-1/2}` in all. So that this holds for a
    client that sends zeros, too, the bit of a zero payload is :math:`b_k = 0`, as if the client were not there.
    Runs of one seed share the bit's noise, as with `gaussian_noise`.
    Metrics: as for `clip_by_l2`, and `clip_norm`, the C of the round.

    Args:
        initial: the first C, positive.
        quantile: :math:`\gamma` in (0, 1), the part of the clients that is not to be clipped.
        learning_rate: :math:`\eta`, positive.
        bit_noise: :math:`\sigma_b / m`. 0 for no noise on the bit: then :math:`\bar b` is the plain mean over those
            who came, zeros count as any norm below C, and the chain may not claim privacy.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(
        ...     fs.aggregate.adaptive_clip(),
        ...     fs.aggregate.gaussian_noise(1.0),
        ...     reduce=fs.aggregate.mean("uniform"),
        ... )
        >>> [round(m.multiplier, 2) for m in aggregator.mechanisms(expected=50)]
        [5.0, 1.0]
    """
    check_positive("initial", initial)
    check(0 < quantile < 1, "quantile", quantile, "must lie in (0, 1).")
    check_positive("learning_rate", learning_rate)
    check_not_negative("bit_noise", bit_noise)
    name = f"adaptive_clip({quantile})"

    def client(key, clip_norm, row, payload, context):
        norm = jnp.sqrt(squared_norm(payload))
        return _scaled(payload, norm, clip_norm), row, _seen(norm, norm > clip_norm)

    def sums(key, clip_norm, payload, context: Context):
        norm = jnp.sqrt(squared_norm(payload))
        bit = (norm <= clip_norm).astype(jnp.float32) - 0.5
        return bit if bit_noise == 0 else jnp.where(norm > 0, bit, 0.0)  # zeros move no sum that is noised

    def server(key, clip_norm, aggregate):
        total, people = aggregate.sums, jnp.maximum(aggregate.count, 1)
        if bit_noise > 0:
            people = jnp.asarray(aggregate.expected, jnp.float32)
            total = total + bit_noise * people * jax.random.normal(key)
        fraction = 0.5 + total / people
        moved = clip_norm * jnp.exp(-learning_rate * (fraction - quantile))
        return aggregate, moved, {"clip_norm": Mean(clip_norm, jnp.ones(()))}

    def facts(facts: Facts) -> Facts:
        facts = _clipping(name, f"C, {initial} at first")(facts)
        if bit_noise == 0:
            return facts._replace(leaks=f"{name} learns how many clients it clipped")
        bit = Mechanism("gaussian", 2 * bit_noise, of="statistic", per_expected=True, transform=name)
        return facts._replace(noise=(*facts.noise, bit))

    return Transform(
        name=name,
        init=lambda payload_shapes: (jnp.asarray(initial, jnp.float32), None),
        client=client,
        server=server,
        facts=facts,
        bound=lambda clip_norm, incoming, dim: jnp.minimum(incoming, clip_norm),
        sums=sums,
    )


def _scaled(tree: PyTree, norm: jax.Array, clip_norm: Scalar) -> PyTree:
    """In float32 at least: rounded to a shorter type, the norm could pass the bound that noise is scaled by."""
    scale = jnp.where(norm > clip_norm, clip_norm / jnp.where(norm > clip_norm, norm, 1.0), 1.0)
    return jax.tree.map(lambda p: p * scale, tree)


def _seen(norm: jax.Array, clipped: jax.Array) -> dict[str, Mean]:
    one = jnp.ones((), jnp.float32)
    return {"clip_fraction": Mean(clipped.astype(jnp.float32), one), "update_norm": Mean(norm, one)}


def _clipping(name: str, bound: str) -> FactsRule:
    """The facts of a clip."""

    def facts(facts: Facts) -> Facts:
        if any(m.of == "value" for m in facts.noise):
            raise ArgumentError(f"{name} stands after noise: the noise would be clipped too. Clip first.")
        if facts.integers or facts.modulus is not None:
            raise ArgumentError(f"{name} stands after a quantiser: it would scale integers. Clip first.")
        return facts._replace(clipped=True, bound=bound)

    return facts
