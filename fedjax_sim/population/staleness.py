r"""How much less an update counts that is based on an old model: functions of its staleness :math:`\tau`, from 1 down.

Staleness counts the server's updates since the model was handed out.
"""

from collections.abc import Callable

import numpy as np

from fedjax_sim.core.errors import check_not_negative

Staleness = Callable[[np.ndarray], np.ndarray]
"""`([n] staleness) -> [n] weights`."""


def polynomial(exponent: float = 0.5) -> Staleness:
    r""":math:`s(\tau) = (1 + \tau)^{-a}` (Xie et al. 2019, section 5.2; Nguyen et al. 2022 take a = 1/2).

    Args:
        exponent: a, at least 0; 0 counts all alike.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.population.polynomial(0.5)(np.array([0, 3, 8])).round(3)
        array([1.   , 0.5  , 0.333])
    """
    check_not_negative("exponent", exponent)
    return lambda staleness: (1.0 + np.asarray(staleness)) ** -exponent


def hinge(slope: float, free: float) -> Staleness:
    r""":math:`s(\tau) = 1` up to b, and :math:`1 / (a (\tau - b) + 1)` beyond (Xie et al. 2019, section 5.2).

    Args:
        slope: a, at least 0.
        free: b, the staleness that costs nothing.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.population.hinge(10.0, 4)(np.array([0, 4, 5, 9])).round(4)
        array([1.    , 1.    , 0.0909, 0.0196])
    """
    check_not_negative("slope", slope)
    check_not_negative("free", free)
    return lambda staleness: 1.0 / (slope * np.maximum(np.asarray(staleness) - free, 0.0) + 1.0)
