"""Transforms of one part of a payload."""

from fedjax_sim.aggregate.base import Facts, Transform
from fedjax_sim.core.errors import ArgumentError, check


def on(part: str, transform: Transform) -> Transform:
    """Apply a transform to one part of the payload, by its name in the dict; the other parts pass as they are.

    Noise and secure sums protect only what they cover, so that they take the whole payload. Noise may follow where
    every part is clipped: its bound is then the root of the parts' squared bounds. Metrics have the part's name before
    theirs, as in `delta/clip_fraction`.

    Args:
        part: a key of the payload, as "delta" of `fs.scaffold`.
        transform: what to do with it.

    Raises:
        ArgumentError: noise or a masked sum on one part only.

    Example:
        >>> import fedjax_sim as fs
        >>> clips = (
        ...     fs.aggregate.on("delta", fs.aggregate.clip_by_l2(1.0)),
        ...     fs.aggregate.on("control", fs.aggregate.clip_by_l2(0.1)),
        ... )
        >>> fs.aggregate.chain(*clips, reduce=fs.aggregate.mean("uniform")).name
        "chain(on('delta', clip_by_l2(1.0)) > on('control', clip_by_l2(0.1)) > mean(uniform))"
    """
    check(isinstance(part, str), "part", part, "must be the name of a part of the payload.")
    check(isinstance(transform, Transform), "transform", transform, "must be a fs.aggregate.Transform.")
    check(transform.part is None, "transform", transform.name, "applies to a part already.")
    name = f"on({part!r}, {transform.name})"

    def facts(facts: Facts) -> Facts:
        after = transform.facts(facts)
        if after.noise != facts.noise or after.modulus != facts.modulus or after.weighted != facts.weighted:
            raise ArgumentError(f"{name} protects one part of the payload only: put {transform.name} around all of it.")
        bound = after.bound if after.bound == facts.bound else f"{facts.bound}; of {part!r} {after.bound}"
        # The rest is what it was: integers only where all are, bits and largest numbers unknown.
        return after._replace(
            integers=facts.integers and after.integers, bits=max(facts.bits, after.bits), largest=None, bound=bound
        )

    return transform._replace(name=name, facts=facts, part=part)
