"""Samplers that choose by the candidates' losses: a host stage before a round is planned."""

import dataclasses
from typing import Any

import numpy as np

from fedjax_sim.core.types import Cohort, RoundState
from fedjax_sim.data.batching import Batching
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.parts import Parts
from fedjax_sim.simulation.client_map import over_clients
from fedjax_sim.simulation.evaluation import measure_of


def choosing(parts: Parts, state: RoundState) -> Parts:
    """The parts, with a sampler that chooses of its candidates by their losses under this state's model.

    Where the sampler does not choose, the parts as they are.
    """
    choose, draw = parts.sampler.choose, parts.sampler.sample
    if choose is None:
        return parts

    def sample(sampler_state: Any, round: int, seed: int) -> tuple[Cohort, Any]:
        candidates, sampler_state = draw(sampler_state, round, seed)
        return choose(sampler_state, candidates, _losses(parts, state, candidates))

    return dataclasses.replace(parts, sampler=parts.sampler._replace(sample=sample))


def _losses(parts: Parts, state: RoundState, candidates: Cohort) -> np.ndarray:
    """[C] each candidate's mean loss; NaN where a place is empty, or its client has no examples."""
    task, valid = parts.algorithm.task, np.asarray(candidates.valid)
    losses = np.full(len(valid), np.nan)
    if valid.any():
        params = placement.local(parts.algorithm.params(state.server))
        ids, batching = np.asarray(candidates.ids)[valid], Batching(parts.batching.batch_size, shuffle=False)
        mesh = placement.client_mesh(list(parts.mesh.local_devices))
        measured = over_clients(measure_of(task), params, parts.data, batching, mesh, ids=ids, task=task)
        losses[valid] = measured["loss"].compute()
    return losses
