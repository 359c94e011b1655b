"""What a simulation says of itself."""

import dataclasses

from fedjax_sim.core import html, pytree
from fedjax_sim.simulation.executor import Executor


def text(executor: Executor) -> str:
    """One line."""
    return f"Simulation({', '.join(f'{name}: {value}' for name, value in _facts(executor).items())})"


def table(executor: Executor) -> str:
    """An HTML table, for notebooks."""
    return html.facts("Simulation", _facts(executor))


def _facts(executor: Executor) -> dict[str, str]:
    parts = executor.parts
    batching = {
        field.name: str(getattr(parts.batching, field.name))
        for field in dataclasses.fields(parts.batching)
        if getattr(parts.batching, field.name) != field.default
    }
    return {
        "clients": str(parts.data.num_clients),
        "examples": str(parts.data.num_examples),
        "parameters": str(pytree.size(parts.model)),
        "sampler": parts.sampler.name,
        **batching,
        "devices": f"{len(parts.devices)} {parts.devices[0].platform}",
        "residency": parts.residency,
        "lanes": str(executor.lanes),
        "seed": str(parts.seed),
        **({} if parts.noise_seed is None else {"noise seed": str(parts.noise_seed)}),
    }
