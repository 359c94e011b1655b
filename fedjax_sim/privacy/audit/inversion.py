"""Gradient inversion: examples out of what one client sends."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.core.arrays import Array, Key, PyTree
from fedjax_sim.core.errors import check, check_count
from fedjax_sim.core.pytree import squared_norm


class Inverted(NamedTuple):
    """Examples that explain an update, and how well.

    Attributes:
        x: [B, ...].
        loss: [] of the matching that was minimised; 0 explains the update fully.

    Example:
        >>> import jax, jax.numpy as jnp, optax, fedjax_sim as fs
        >>> gradient = lambda x: x.mean(axis=0)  # of a model that learns a mean
        >>> update = jnp.array([1.0, 2.0])
        >>> found = fs.privacy.audit.invert(gradient, update, (1, 2), jax.random.key(0), "dlg", steps=300)
        >>> print(found.x.round(2))
        [[1. 2.]]
    """

    x: Array
    loss: Array

    def psnr(self, truth: Array, peak: float = 1.0) -> float:
        r"""The peak signal-to-noise ratio in dB, :math:`10 \log_{10}(peak^2 / mse)`, of the best matching of the batch.

        Args:
            truth: [B, ...] the client's examples.
            peak: the largest value of an example.

        Example:
            >>> import jax.numpy as jnp, fedjax_sim as fs
            >>> found = fs.privacy.audit.Inverted(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.zeros(()))
            >>> found.psnr(jnp.array([[1.0, 0.1], [0.0, 1.0]])) > 20
            True
        """
        ours, theirs = self._matched(truth)
        mse = ((ours - theirs) ** 2).mean()
        return float("inf") if mse == 0 else float(10 * np.log10(peak**2 / mse))

    def ssim(self, truth: Array, peak: float = 1.0) -> float:
        r"""The structural similarity of pictures, 1 for the same ones (Wang et al. 2004, equation 13).

        .. math:: \frac{(2 \mu_a \mu_b + c_1)(2 \sigma_{ab} + c_2)}
            {(\mu_a^2 + \mu_b^2 + c_1)(\sigma_a^2 + \sigma_b^2 + c_2)}, \quad
            c_1 = (0.01 \, peak)^2, \quad c_2 = (0.03 \, peak)^2

        in Gaussian windows of deviation 1.5 and 11 pixels a side, or as many as an odd window has room for; the mean
        over windows that lie within a picture, over colours, and over the best matching of the batch, that of `psnr`.

        Args:
            truth: [B, H, W] or [B, H, W, colours], the client's examples.
            peak: the largest value of a pixel.

        Raises:
            ArgumentError: examples that are no pictures.

        Example:
            >>> import jax.numpy as jnp, fedjax_sim as fs
            >>> truth = jnp.linspace(0.0, 1.0, 128).reshape(2, 8, 8)
            >>> fs.privacy.audit.Inverted(truth[::-1], jnp.zeros(())).ssim(truth)
            1.0
        """
        check(self.x.ndim in (3, 4), "x", self.x.shape, "is no batch of pictures, [B, H, W] or [B, H, W, colours].")
        return float(np.mean(_similarity(*self._matched(truth), peak)))

    def _matched(self, truth: Array) -> tuple[np.ndarray, np.ndarray]:
        """Ours and the true examples, float64, in the order that the least squared errors match them."""
        from scipy.optimize import linear_sum_assignment

        check(np.shape(truth) == self.x.shape, "truth", np.shape(truth), f"must be of the shape {self.x.shape}.")
        ours, theirs = np.asarray(self.x, np.float64), np.asarray(truth, np.float64)
        flat = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
        rows, columns = linear_sum_assignment(((flat[0][:, None] - flat[1][None]) ** 2).mean(axis=-1))
        return ours[rows], theirs[columns]


def invert(
    gradient: Callable[[jax.Array], PyTree],
    update: PyTree,
    shape: tuple[int, ...],
    key: Key,
    method: Literal["dlg", "geiping"] = "geiping",
    steps: int = 1000,
    rate: float = 0.05,
    variation: float = 0.0,
) -> Inverted:
    r"""Search for examples whose gradient is an update: what a server that sees one client's message can learn.

    "dlg" (Zhu et al. 2019, Algorithm 1) minimises :math:`\lVert \nabla(x) - g \rVert^2`; "geiping" (Geiping et al.
    2020, equation 4) :math:`1 - \cos(\nabla(x), g)` plus `variation` times the total variation of pictures. Both by
    Adam, from normal numbers. Labels are known, as `gradient` holds them: Zhao et al. (2020) read the one label of a
    batch of one off the signs of the last layer's bias gradient.

    Who sees what: a server without secure aggregation. Clipping keeps the direction, so that "geiping" still works;
    noise, a secure sum, large batches and several local steps make it harder. Write these into `gradient`.

    Args:
        gradient: `(x) -> like update`, what a client with examples x would send.
        update: what it sent.
        shape: of x, [B, ...].
        key: of the start.
        method: "dlg" or "geiping".
        steps: of Adam.
        rate: Adam's.
        variation: weight of the total variation, of pictures [B, H, W, ...].

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> gradient = lambda x: jnp.outer(x[0], jnp.array([1.0, -1.0]))
        >>> truth = jnp.array([[0.3, 0.9, 0.1]])
        >>> found = fs.privacy.audit.invert(gradient, gradient(truth), (1, 3), jax.random.key(0), "dlg", steps=300)
        >>> found.psnr(truth) > 30
        True
    """
    check(method in ("dlg", "geiping"), "method", method, 'must be "dlg" or "geiping".')
    check_count("steps", steps)
    optimizer = optax.adam(rate)

    def objective(x: jax.Array) -> jax.Array:
        mine = gradient(x)
        if method == "dlg":
            return squared_norm(jax.tree.map(lambda a, b: a - b, mine, update))
        product = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), mine, update)), jnp.zeros(()))
        cosine = product / jnp.sqrt(jnp.maximum(squared_norm(mine) * squared_norm(update), 1e-30))
        return 1 - cosine + (variation * _total_variation(x) if variation else 0.0)

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry, _):
            x, state = carry
            moved, state = optimizer.update(jax.grad(objective)(x), state, x)
            return (x + jnp.asarray(moved), state), None

        (x, _), _ = jax.lax.scan(step, (x, optimizer.init(x)), length=steps)
        return x, objective(x)

    return Inverted(*run(jax.random.normal(key, shape)))


def invert_dense(weights: Array, bias: Array) -> tuple[jax.Array, jax.Array]:
    r"""The one example of a batch of one, exactly, from a dense layer with a bias (Phong et al. 2018, section 3).

    As :math:`\partial W = x \, \partial b^T`, each column of a unit with :math:`\partial b \ne 0` holds x; the label of
    a softmax layer is the one unit with a negative :math:`\partial b`.

    Args:
        weights: [D, H] gradient of the kernel, or an update by one step of SGD.
        bias: [H] gradient of the bias, alike.

    Returns:
        (x [D], label []): by the unit of the largest bias gradient.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> x, slopes = jnp.array([0.5, 2.0]), jnp.array([0.2, -0.7, 0.5])
        >>> found, label = fs.privacy.audit.invert_dense(jnp.outer(x, slopes), slopes)
        >>> print(found, label)
        [0.5 2. ] 1
    """
    weights, bias = jnp.asarray(weights), jnp.asarray(bias)
    fits = weights.ndim == 2 and bias.shape == weights.shape[1:]
    check(fits, "weights", weights.shape, f"must be [D, H] of a bias [H], which has shape {bias.shape}.")
    check(
        bool((bias != 0).any()), "bias", "all 0", "nothing can be read off it: the client's loss did not depend on x."
    )
    unit = jnp.argmax(jnp.abs(bias))
    return weights[:, unit] / bias[unit], jnp.argmin(bias)


def _similarity(a: np.ndarray, b: np.ndarray, peak: float) -> np.ndarray:
    """Of each window of pictures [B, H, W, ...]."""
    size = min(11, *a.shape[1:3])
    places = np.arange(size - 1 + size % 2) - (size - 1) // 2
    window = np.exp(-(places**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(x: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            x = np.lib.stride_tricks.sliding_window_view(x, len(window), axis) @ window
        return x

    first, second = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_a, mean_b = mean(a), mean(b)
    square_a, square_b, product = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + first) * (2 * product + second)
    return likeness / ((mean_a**2 + mean_b**2 + first) * (square_a + square_b + second))


def _total_variation(x: jax.Array) -> jax.Array:
    check(x.ndim >= 3, "variation", x.shape, "is of pictures, [B, H, W, ...].")
    return jnp.abs(jnp.diff(x, axis=1)).mean() + jnp.abs(jnp.diff(x, axis=2)).mean()
