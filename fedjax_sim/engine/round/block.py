"""A block of rounds in one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.engine.plan.planner import PlanShape
from fedjax_sim.engine.plan.words import unpack_plan
from fedjax_sim.engine.round.phase import DeviceState, RoundOutput


def block(one_round: Callable[..., Any], shape: PlanShape, slots: int) -> Callable[..., Any]:
    """Up to `slots` rounds in one dispatch; how many is traced. Outputs come as a list, one entry a slot."""

    def run(seeds: Any, state: DeviceState, words: Any, count: Any, arrays: Any):
        plan_of = lambda r: unpack_plan(words[r], shape)
        like = jax.eval_shape(lambda: one_round(seeds, state, plan_of(0), arrays)[1])
        outputs = jax.tree.map(lambda a: jnp.zeros((slots, *a.shape), a.dtype), like)

        def body(r: Any, carry: tuple[DeviceState, RoundOutput]):
            state, outputs = carry
            state, output = one_round(seeds, state, plan_of(r), arrays)
            return state, jax.tree.map(lambda out, leaf: out.at[r].set(leaf), outputs, output)

        state, outputs = jax.lax.fori_loop(0, count, body, (state, outputs))
        return state, [jax.tree.map(lambda leaf, r=r: leaf[r], outputs) for r in range(slots)]

    return run
