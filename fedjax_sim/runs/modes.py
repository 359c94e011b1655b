"""Whether more or less of a metric is better."""

from typing import Literal

from fedjax_sim.core.errors import check

Mode = Literal["min", "max"]
LOWER_IS_BETTER = ("loss", "error", "perplexity", "mse", "mae", "rmse")


def lower_is_better(name: str) -> bool:
    """Whether a metric of that name is best at its least value; accuracies and what is unknown, at their greatest.

    Example:
        >>> from fedjax_sim.runs.modes import lower_is_better
        >>> lower_is_better("test/loss"), lower_is_better("test/accuracy")
        (True, False)
    """
    return any(word in LOWER_IS_BETTER for word in name.lower().replace("/", "_").split("_"))


def mode_of(name: str, mode: Mode | None = None) -> Mode:
    """The mode that is given; or, for None, the one that a metric's name tells of.

    Example:
        >>> from fedjax_sim.runs.modes import mode_of
        >>> mode_of("test/loss"), mode_of("test/loss", "max")
        ('min', 'max')
    """
    check(mode in (None, "min", "max"), "mode", mode, 'must be "min", "max" or None.')
    return mode or ("min" if lower_is_better(name) else "max")
