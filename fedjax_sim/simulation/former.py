"""Names of before, which work for one release more and say what to write now."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.simulation.execution import Execution

ATTRIBUTES = {
    "shared": "multi_process",
    **{name: name for name in ("model", "row_bytes", "exact", "on_nonfinite", "debug", "noise_seed")},
}
"""Of a simulation, and what they are of its parts."""


def attribute(sim: Any, name: str) -> Any:
    """A simulation's attribute of before."""
    if name not in ATTRIBUTES:
        raise AttributeError(f"'Simulation' object has no attribute {name!r}")
    now = ATTRIBUTES[name]
    warnings.warn(f"sim.{name} is deprecated: write sim.parts.{now}.", DeprecationWarning, stacklevel=3)
    return getattr(sim.parts, now)


def with_former(execution: Execution, former: Mapping[str, Any]) -> Execution:
    """With what was given as keywords of their own, as it was before there was `execution=`.

    Raises:
        ArgumentError: a keyword that there never was, or both.
    """
    check(isinstance(execution, Execution), "execution", execution, "must be a fs.Execution.")
    if not former:
        return execution
    names = [field.name for field in dataclasses.fields(Execution)]
    unknown = sorted(set(former) - set(names))
    if unknown:
        raise ArgumentError(f"{unknown[0]}={former[unknown[0]]!r}: fs.Simulation has no such argument.")
    twice = [name for name in former if getattr(execution, name) != getattr(Execution(), name)]
    if twice:
        raise ArgumentError(f"{twice[0]}={former[twice[0]]!r}: execution= has it too; leave it out.")
    given = ", ".join(f"{name}=..." for name in former)
    warnings.warn(
        f"{given} of fs.Simulation {'is' if len(former) == 1 else 'are'} deprecated: write "
        f"execution=fs.Execution({given}).",
        DeprecationWarning,
        stacklevel=3,
    )
    return dataclasses.replace(execution, **former)
