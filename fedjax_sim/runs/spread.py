"""The one convention of error bars: 95 % intervals of a mean over seeds, by Student's t."""

import functools

import numpy as np

LEVEL = 0.95
SAID = "95 % t-interval"
"""What tables and plots call it."""


def half_width(values: np.ndarray) -> np.ndarray:
    r"""Half of the interval around the mean of [Z, ...] values; NaN of one value.

    .. math:: t_{0.975, Z - 1} \, s / \sqrt{Z}, \qquad s^2 = \sum_z (v_z - \bar v)^2 / (Z - 1)

    It holds the true mean in 95 of 100 cases where values are independent and normal.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.runs.spread import half_width
        >>> print(f"{half_width(np.array([1.0, 2.0, 3.0])):.4f}")
        2.4841
    """
    values = np.asarray(values, float)
    count = len(values)
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    return _quantile(count - 1) * values.std(axis=0, ddof=1) / count**0.5


@functools.cache
def _quantile(freedom: int) -> float:
    """Student's t, of so many degrees of freedom, that is passed by 2.5 %."""
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom))
