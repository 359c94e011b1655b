"""What a simulation says of itself."""

import dataclasses
from typing import Any

from fedjax_sim.core import html, pytree


def text(sim: Any) -> str:
    """One line."""
    return f"Simulation({', '.join(f'{name}: {value}' for name, value in _facts(sim).items())})"


def table(sim: Any) -> str:
    """An HTML table, for notebooks."""
    return html.facts("Simulation", _facts(sim))


def _facts(sim: Any) -> dict[str, str]:
    batching = {
        field.name: str(getattr(sim.batching, field.name))
        for field in dataclasses.fields(sim.batching)
        if getattr(sim.batching, field.name) != field.default
    }
    return {
        "clients": str(sim.data.num_clients),
        "examples": str(sim.data.num_examples),
        "parameters": str(pytree.size(sim.model)),
        "sampler": sim.sampler.name,
        **batching,
        "devices": f"{len(sim.devices)} {sim.devices[0].platform}",
        "residency": sim.residency,
        "lanes": str(sim.lanes),
        "seed": str(sim.seed),
        **({} if sim.noise_seed is None else {"noise seed": str(sim.noise_seed)}),
    }
