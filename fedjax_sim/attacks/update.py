"""Bad clients that send something else than they trained, each for itself."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_sim.attacks.base import Attack, Received
from fedjax_sim.core.arrays import Array, Key, PyTree, Scalar
from fedjax_sim.core.errors import ArgumentError, check, check_not_negative, check_positive
from fedjax_sim.core.types import Params
from fedjax_sim.privacy import audit


def sign_flip(scale: Scalar = 1.0) -> Attack:
    """What was trained, times -scale (Li et al. 2019, section 5). Whole numbers in a payload stay.

    Args:
        scale: above 0.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> print(fs.attacks.sign_flip(2.0).update(None, jnp.array([1.0, -3.0]), None))
        [-2.  6.]
    """
    check_positive("scale", scale)
    return Attack(f"sign_flip({scale})", update=lambda key, payload, received: _floats(lambda x: -scale * x, payload))


def gaussian(sigma: Scalar = 1.0) -> Attack:
    """Normal numbers of standard deviation sigma in place of what was trained (Blanchard et al. 2017, section 5).

    Args:
        sigma: 0 or above.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> fs.attacks.gaussian(200.0).update(jax.random.key(0), jnp.zeros(3), None).shape
        (3,)
    """
    check_not_negative("sigma", sigma)
    return Attack(f"gaussian({sigma})", update=lambda key, payload, received: _normal(key, payload, sigma))


def zero() -> Attack:
    """Nothing learnt: zeros, with the weight that the client states.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.attacks.zero().name
        'zero'
    """
    return Attack("zero", update=lambda key, payload, received: _floats(jnp.zeros_like, payload))


def nan() -> Attack:
    """NaN in each number. By default such a client ends the run: `fs.Simulation(on_nonfinite="drop")` leaves it out.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.attacks.nan().name
        'nan'
    """
    return Attack("nan", update=lambda key, payload, received: _floats(lambda x: jnp.full_like(x, jnp.nan), payload))


def free_rider(kind: Literal["zero", "replay", "noise"] = "zero", sigma: Scalar = 1e-3) -> Attack:
    """A client that does not train and wants the model (Fraboni et al. 2021): it sends the received model back.

    A replay is what the round before changed, :math:`x_t - x_{t-1}`, as if it had just been learnt (Lin et al. 2019,
    "delta weights"): the server's state keeps that model, bits that clients receive count it, and in round 0 there is
    nothing to replay.

    Args:
        kind: "zero", the model as it is; "replay", the last change; "noise", normal numbers of standard deviation
            sigma, to look trained.
        sigma: of the noise.

    Raises:
        ArgumentError: another kind; a replay of an algorithm whose payload is not like the model, when it is traced.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.attacks.free_rider("noise", 0.01).name
        'free_rider(noise, 0.01)'
    """
    check(kind in ("zero", "replay", "noise"), "kind", kind, 'must be "zero", "replay" or "noise".')
    if kind == "zero":
        return zero()._replace(name="free_rider(zero)")
    if kind == "replay":
        return Attack("free_rider(replay)", update=_replayed, remembers=True)
    return gaussian(sigma)._replace(name=f"free_rider(noise, {sigma})")


def canary(norm: Scalar, seed: Scalar = 0) -> Attack:
    """Clients of an audit: each sends a direction of its own if its coin says so, else zeros.

    See `fs.privacy.audit.canary`, `included` and `canary_scores`, which need the same seed.

    Args:
        norm: L2 of the direction; that of the chain's clip.
        seed: of directions and coins.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.attacks.canary(norm=0.5).name
        'canary(0.5)'
    """
    check_positive("norm", norm)
    return Attack(f"canary({norm})", update=lambda key, payload, got: audit.canary(got.client_id, payload, norm, seed))


def replacement(target: Params, scale: Scalar) -> Attack:
    r"""Model replacement: :math:`\gamma (x_{target} - x)` (Bagdasaryan et al. 2020, equation 3).

    With :math:`\gamma = 1 / (\eta p)`, of the server's rate :math:`\eta` and the client's share p of the cohort's
    weight, the server's model becomes the target where all others send 0: 40 for 20 of 400 examples and a server rate
    of 0.5.

    Args:
        target: a model's parameters.
        scale: gamma, above 0.

    Raises:
        ArgumentError: the algorithm's payload is not like the model; when it is first traced.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> attack = fs.attacks.replacement(jnp.array([1.0, 1.0]), scale=40.0)
        >>> print(attack.update(None, jnp.zeros(2), fs.attacks.Received(jnp.array([1.0, 0.5]), client_id=3, round=0)))
        [ 0. 20.]
    """
    check_positive("scale", scale)

    def update(key: Key, payload: PyTree, received: Received) -> PyTree:
        _check_alike("replacement", payload, received.params, target)
        return jax.tree.map(lambda p, x, y: (scale * (y - x)).astype(p.dtype), payload, received.params, target)

    return Attack(f"replacement({scale})", update=update)


def _replayed(key: Key, payload: PyTree, received: Received) -> PyTree:
    _check_alike("free_rider(replay)", payload, received.params, received.previous)
    return jax.tree.map(lambda p, x, y: (x - y).astype(p.dtype), payload, received.params, received.previous)


def _check_alike(name: str, payload: PyTree, model: Params, other: Params) -> None:
    sent, has, wanted = map(jax.tree.structure, (payload, model, other))
    if not sent == has == wanted:
        raise ArgumentError(
            f"{name}: the payload is {sent}, the model {has} and the other model {wanted}: must be alike. Attack an "
            "algorithm that sends a model."
        )


def _floats(change: Callable[[Array], Array], payload: PyTree) -> PyTree:
    return jax.tree.map(lambda x: change(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, payload)


def _normal(key: Key, payload: PyTree, sigma: Scalar) -> PyTree:
    leaves, structure = jax.tree.flatten(payload)
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    draw = lambda key, x: jnp.asarray(sigma, x.dtype) * jax.random.normal(key, x.shape, x.dtype)
    drawn = [draw(k, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
