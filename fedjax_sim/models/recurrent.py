"""An LSTM layer over time whose gradient takes the recurrent kernel's in one product, after the backward scan."""

from typing import Any

import jax
import jax.numpy as jnp

Carry = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def lstm(inputs: jax.Array, recurrent: jax.Array, kept: jax.Array | None = None) -> jax.Array:
    r"""Hidden states [T, B, H] of one LSTM layer that starts from zeros.

    .. math:: c_t = \sigma(f) k_t c_{t-1} + \sigma(i) \tanh(g), \quad h_t = \sigma(o) \tanh(c_t), \quad
              (i, f, g, o) = x_t + k_t h_{t-1} R.

    Left to itself, reverse mode adds an [H, 4H] product to the gradient of R at each step of time. Here the
    backward scan gives the gates' gradients :math:`d_t` alone, and then
    :math:`\partial R = \sum_t (k_t h_{t-1})^\top d_t` is one product over time and batch. Forward mode (`jax.jvp` of
    the layer itself) is not defined; reverse mode of reverse mode is.

    Args:
        inputs: [T, B, 4H], the gates' shares of the inputs and biases, in the order i, f, g, o.
        recurrent: R [H, 4H].
        kept: [T, B, 1] zeros and ones, k: 0 forgets all that was before this token; None for ones. No gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> lstm(jnp.ones((3, 2, 8)), jnp.zeros((2, 8))).shape
        (3, 2, 2)
    """
    return _forward(inputs, recurrent, kept)[0]


def _forward(inputs: jax.Array, recurrent: jax.Array, kept: jax.Array | None):
    def step(carry: Carry, at: tuple[jax.Array, jax.Array | None]):
        x, k = at
        c, h = carry if k is None else (carry[0] * k, carry[1] * k)
        i, f, g, o = jnp.split(x + h @ recurrent, 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (c, h), (h, c, jnp.concatenate([i, f, g, o], axis=-1))

    zero = jnp.zeros((*inputs.shape[1:-1], recurrent.shape[0]), inputs.dtype)
    _, (h, c, gates) = jax.lax.scan(step, (zero, zero), (inputs, kept))
    return h, (h, c, gates, recurrent, kept)


def _backward(known: tuple[Any, ...], dh: jax.Array):
    h, c, gates, recurrent, kept = known

    def before(x: jax.Array) -> jax.Array:
        """What each step began with."""
        x = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
        return x if kept is None else x * kept

    h_before, c_before, transposed = before(h), before(c), recurrent.T

    def step(carry: Carry, at: tuple[Any, ...]):
        dc, dh_after = carry
        dh, c, c_before, gates, k = at
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        dh, t = dh + dh_after, jnp.tanh(c)
        dc = dc + dh * o * (1 - t * t)
        d = jnp.concatenate(
            [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)], axis=-1
        )
        dc, dh = dc * f, d @ transposed
        return (dc, dh) if k is None else (dc * k, dh * k), d

    zero = jnp.zeros_like(h[0])
    _, d = jax.lax.scan(step, (zero, zero), (dh, c, c_before, gates, kept), reverse=True)
    return d, jnp.einsum("tbh,tbg->hg", h_before, d), None


lstm.defvjp(_forward, _backward)
