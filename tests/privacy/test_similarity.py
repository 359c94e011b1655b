"""The structural similarity of what gradient inversion finds."""

import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs

audit = fs.privacy.audit


def test_similarity_of_pictures():
    """Of flat pictures by its formula; of others window by window; colours apart; not of what is no picture."""
    of = lambda a: audit.Inverted(jnp.asarray(a), jnp.zeros(()))
    a, b = 0.3, 0.5
    flat = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert of(np.full((1, 12, 9), a)).ssim(np.full((1, 12, 9), b)) == pytest.approx(flat, rel=1e-5)
    x, y = np.random.default_rng(1).random((2, 1, 13, 12, 2)).astype(np.float32).astype(np.float64)
    one = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window = np.outer(one, one) / one.sum() ** 2
    found = []
    for i, j, c in np.ndindex(3, 2, 2):
        p, q = (z[0, i : i + 11, j : j + 11, c] for z in (x, y))
        mp, mq = (window * p).sum(), (window * q).sum()
        pp, qq, pq = (
            (window * (p - mp) ** 2).sum(),
            (window * (q - mq) ** 2).sum(),
            (window * (p - mp) * (q - mq)).sum(),
        )
        found.append((2 * mp * mq + 1e-4) * (2 * pq + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (pp + qq + 9e-4)))
    assert of(x).ssim(y) == pytest.approx(np.mean(found), rel=1e-5)
    assert of(x).ssim(x) == pytest.approx(1.0)
    with pytest.raises(fs.FedSimError, match="is no batch of pictures"):
        of(np.zeros((2, 5))).ssim(np.zeros((2, 5)))
    with pytest.raises(fs.FedSimError, match="must be of the shape"):
        of(np.zeros((2, 5, 5))).ssim(np.zeros((1, 5, 5)))
