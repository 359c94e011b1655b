"""Bad clients that see the round's messages and agree on one of their own, hidden in the honest ones' spread."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.robust.blocks import each, fold
from fedjax_sim.aggregate.robust.distances import combined, masked, norms, row_sums, squared_distances
from fedjax_sim.attacks.base import Attack, Collusion, Known, mean_of
from fedjax_sim.core.arrays import PyTree, Scalar
from fedjax_sim.core.errors import check, check_count, check_positive
from fedjax_sim.core.pytree import squared_norm

Knows = Literal["all", "own"]
Direction = Literal["std", "unit", "sign"]


def alie(z: Scalar | None = None, knows: Knows = "all") -> Attack:
    r"""A little is enough: the mean less z standard deviations (Baruch et al. 2019, Algorithm 3).

    .. math:: \mu - z \sigma, \quad z_{max} = \Phi^{-1} \left( \frac{n - m - s}{n - m} \right),
        \quad s = \lfloor n / 2 + 1 \rfloor - m

    coordinate by coordinate, of n clients with m bad ones; mean and deviation (ddof = 0) are those of the messages
    known. Bad clients see them before they send.

    Args:
        z: standard deviations; None for :math:`z_{max}` of the round, 0 where it would be infinite or bad clients are
            the majority.
        knows: "all" honest messages of the round, or what the bad clients would honestly send, their "own".

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages, bad = jnp.array([[1.0], [3.0], [9.0]]), jnp.array([False, False, True])
        >>> everyone = fs.aggregate.Collected(messages, jnp.ones(3), jnp.ones(3, bool), jnp.arange(3))
        >>> known = fs.attacks.Known(everyone._replace(contributes=~bad), everyone, bad)
        >>> print(fs.attacks.alie(1.5).collude.message(known))
        [0.5]
    """

    def scale(known: Known, start: PyTree, direction: PyTree) -> Scalar:
        return most_deviations(known.clients, known.bad) if z is None else z

    return Attack(f"alie({'' if z is None else z})", collude=_collusion(_spread("std"), scale, knows))


def most_deviations(clients: Scalar, bad: Scalar) -> jax.Array:
    """z_max of `alie`, [] float32."""
    n, m = jnp.asarray(clients, jnp.float32), jnp.asarray(bad, jnp.float32)
    honest = jnp.maximum(n - m, 1)
    below = (n - m - jnp.floor(n / 2 + 1) + m) / honest
    usable = (below > 0) & (below < 1)
    return jnp.where(usable, jax.scipy.special.ndtri(jnp.where(usable, below, 0.5)), 0.0)


def ipm(eps: Scalar, knows: Knows = "all") -> Attack:
    r"""Inner product manipulation: :math:`-\epsilon` times the mean of the messages known (Xie et al. 2020).

    A small epsilon passes for honest where clients differ; a large one, above (n - m) / m, turns a mean around.

    Args:
        eps: how much of the mean, above 0.
        knows: as of `alie`.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.attacks.ipm(0.5).name
        'ipm(0.5)'
    """
    check_positive("eps", eps)

    def line(known: Known) -> tuple[PyTree, PyTree]:
        middle = _mean(known)
        return jax.tree.map(jnp.zeros_like, middle), jax.tree.map(jnp.negative, middle)

    return Attack(f"ipm({eps})", collude=_collusion(line, lambda *_: eps, knows))


def min_max(direction: Direction = "std", knows: Knows = "all") -> Attack:
    r"""As far from the mean as no honest message is from another (Shejwalkar and Houmansadr 2021, equation 8).

    .. math:: \max \gamma : \max_i \lVert \mu + \gamma d - x_i \rVert \le \max_{i, j} \lVert x_i - x_j \rVert

    Each :math:`\lVert \mu + \gamma d - x_i \rVert^2` is a parabola in :math:`\gamma`, so that the largest one is the
    least of the parabolas' roots: exact, where the paper halves steps.

    Args:
        direction: d: the negative deviation "std", the negative mean of length 1 "unit", or its negative "sign".
        knows: as of `alie`.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.attacks.min_max("unit").name
        'min_max(unit)'
    """

    def scale(known: Known, start: PyTree, direction: PyTree) -> Scalar:
        valid = known.collected.contributes
        reach = jnp.max(_pairs(known), initial=0.0)
        square = squared_norm(direction)
        apart, slope = _parabolas(known, start, direction)
        root = jnp.sqrt(jnp.maximum(slope**2 + square * (reach - apart), 0)) - slope
        return jnp.where(square > 0, jnp.min(jnp.where(valid, root, jnp.inf)) / jnp.where(square > 0, square, 1), 0.0)

    return Attack(f"min_max({direction})", collude=_collusion(_spread(direction), scale, knows))


def min_sum(direction: Direction = "std", knows: Knows = "all") -> Attack:
    r"""As far from the mean as its distances allow, summed (Shejwalkar and Houmansadr 2021, equation 9).

    .. math:: \max \gamma : \sum_i \lVert \mu + \gamma d - x_i \rVert^2 \le \max_i \sum_j \lVert x_i - x_j \rVert^2

    exactly, as of `min_max`.

    Args:
        direction: as of `min_max`.
        knows: as of `alie`.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.attacks.min_sum().name
        'min_sum(std)'
    """

    def scale(known: Known, start: PyTree, direction: PyTree) -> Scalar:
        count = jnp.sum(known.collected.contributes)
        most = jnp.max(jnp.sum(_pairs(known), axis=1), initial=0.0)
        room = jnp.maximum(most - jnp.sum(jnp.square(norms(known.collected, start))), 0)
        square = count * squared_norm(direction)
        return jnp.sqrt(room / jnp.where(square > 0, square, 1)) * (square > 0)

    return Attack(f"min_sum({direction})", collude=_collusion(_spread(direction), scale, knows))


def mimic(client: int) -> Attack:
    """All bad clients send what one honest client does, which then counts too much (Karimireddy et al. 2022, 3.1).

    In rounds without that client they send what the honest client of the smallest id does.

    Args:
        client: its id.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.attacks.mimic(7).name
        'mimic(7)'
    """
    check_count("client", client, minimum=0)

    def line(known: Known) -> tuple[PyTree, PyTree]:
        places, valid = known.collected, known.collected.contributes
        first = jnp.argmin(jnp.where(valid, jnp.where(places.ids == client, -1, places.ids), jnp.iinfo(jnp.int32).max))
        one = combined(jnp.arange(len(places.ids)) == first, places)
        return one, jax.tree.map(jnp.zeros_like, one)

    return Attack(f"mimic({client})", collude=_collusion(line, lambda *_: 0.0, "all"))


def _collusion(line: Callable, scale: Callable, knows: Knows) -> Collusion:
    check(knows in ("all", "own"), "knows", knows, 'must be "all" or "own".')
    return Collusion(line, scale, knows)


def _spread(direction: Direction) -> Callable[[Known], tuple[PyTree, PyTree]]:
    """From the mean, against it or along the deviations."""
    check(direction in ("std", "unit", "sign"), "direction", direction, 'must be "std", "unit" or "sign".')

    def line(known: Known) -> tuple[PyTree, PyTree]:
        middle = _mean(known)
        if direction == "sign":
            return middle, jax.tree.map(lambda leaf: -jnp.sign(leaf), middle)
        if direction == "unit":
            length = jnp.sqrt(squared_norm(middle))
            return middle, jax.tree.map(lambda leaf: -leaf / jnp.where(length > 0, length, 1), middle)
        return middle, jax.tree.map(jnp.negative, _deviation(known))

    return line


def _mean(known: Known) -> PyTree:
    return mean_of(known.collected, known.collected.contributes)


def _deviation(known: Known) -> PyTree:
    """Coordinate by coordinate, ddof = 0."""
    valid = known.collected.contributes
    count = jnp.maximum(jnp.sum(valid), 1)

    def rule(block: jax.Array) -> jax.Array:
        middle = jnp.sum(masked(block, valid), axis=0) / count
        return jnp.sqrt(jnp.sum(jnp.square(masked(block - middle[None], valid)), axis=0) / count)

    return each(rule, known.collected.messages)


def _pairs(known: Known) -> jax.Array:
    """[n, n] squared distances of those known, 0 of others."""
    found = squared_distances(known.collected)
    return jnp.where(jnp.isfinite(found), found, 0.0)


def _parabolas(known: Known, start: PyTree, direction: PyTree) -> tuple[jax.Array, jax.Array]:
    """[n] the squared length of `start - message`, and its product with the direction; 0 of those not known."""

    def add(total: Any, block: jax.Array, start: jax.Array, direction: jax.Array) -> tuple[jax.Array, jax.Array]:
        apart = masked(start - block, known.collected.contributes)
        product = jnp.matmul(apart, direction[0], precision="highest")
        return total[0] + row_sums(jnp.square(apart)), total[1] + product

    one = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)
    zeros = jnp.zeros(len(known.collected.ids))
    return fold(add, (zeros, zeros), known.collected.messages, one(start), one(direction))
