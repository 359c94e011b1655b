"""What ends a round of secure aggregation: too few clients, or a message that a client must not answer."""

from fedjax_sim.core.errors import FedSimError

STEPS = ("advertise", "share", "upload", "consistency", "unmask")
"""The protocol's rounds 0 to 4."""


class RoundAborted(FedSimError):
    """Fewer clients than the threshold are left in one of the protocol's rounds.

    Attributes:
        step: "advertise", "share", "upload", "consistency" or "unmask", the protocol's rounds 0 to 4.
        count: clients that are left.
        threshold: t.

    Example:
        >>> import fedjax_sim as fs
        >>> print(fs.secure.RoundAborted("share", 3, 4))
        protocol round 1 (share): 3 clients are left, and the threshold is t = 4.
    """

    def __init__(self, step: str, count: int, threshold: int, of: str = "clients are left"):
        super().__init__(
            f"protocol round {STEPS.index(step)} ({step}): {count} {of}, and the threshold is t = {threshold}."
        )
        self.step, self.count, self.threshold = step, count, threshold


class Refused(FedSimError):
    """A client does not answer: what came to it could cost it, or another, its privacy.

    Example:
        >>> import fedjax_sim as fs
        >>> issubclass(fs.secure.Refused, fs.FedSimError)
        True
    """
