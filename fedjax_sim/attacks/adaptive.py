"""Attacks whose scale is chosen against the rule that they attack."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Reducer
from fedjax_sim.attacks.base import Attack, Known, along, mean_of
from fedjax_sim.attacks.deceived import put_alike, summed
from fedjax_sim.core.arrays import PyTree, Scalar
from fedjax_sim.core.errors import ArgumentError, check, check_count, check_positive
from fedjax_sim.core.pytree import squared_norm


def optimise(attack: Attack, rule: Reducer, largest: float = 10.0, evaluations: int = 16) -> Attack:
    r"""A colluding attack of the scale that moves a rule's value furthest from the honest mean.

    .. math:: \max_{\gamma} \lVert R(x_1, ..., x_h, a + \gamma d, ..., a + \gamma d) - \bar x \rVert

    over scales from `largest` / `evaluations` to `largest` in equal steps, each of which runs the rule once, in a
    compiled loop (as Shejwalkar and Houmansadr 2021, whose bad clients know the rule). Of equals, the smallest.

    Args:
        attack: `alie`, `ipm`, `min_max` or `min_sum`; or any that colludes.
        rule: the reducer to beat; the chain's own, if it keeps a state.
        largest: scale to try.
        evaluations: scales to try.

    Example:
        >>> import fedjax_sim as fs
        >>> median = fs.aggregate.median()
        >>> fs.attacks.optimise(fs.attacks.ipm(1.0), median).name
        'optimise(ipm(1.0), median)'
    """
    if attack.collude is None:
        raise ArgumentError(
            f"optimise: {attack.name} has no scale to choose: must be an attack that colludes, as alie."
        )
    check(isinstance(rule, Reducer), "rule", rule, "must be a reducer, as fs.aggregate.median().")
    check_positive("largest", largest)
    check_count("evaluations", evaluations)
    collusion = attack.collude

    def scale(known: Known, start: PyTree, direction: PyTree) -> Scalar:
        bad = known.attackers
        honest = known.everyone.contributes & ~bad
        mean = mean_of(known.everyone, honest)

        def harm(scale: jax.Array) -> jax.Array:
            value = summed(
                rule, put_alike(known.everyone, bad, along(start, direction, scale, known.everyone.bound))
            ).value
            return squared_norm(jax.tree.map(lambda a, b: a - b, value, mean))

        scales = jnp.linspace(largest / evaluations, largest, evaluations)
        return scales[jnp.argmax(jax.lax.map(harm, scales))]

    name = f"optimise({attack.name}, {rule.name})"
    return Attack(name, collude=collusion._replace(scale=scale, rule=rule))
