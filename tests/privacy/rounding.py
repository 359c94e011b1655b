"""Transforms that tests of privacy share."""

import dataclasses

import jax
import jax.numpy as jnp

import fedjax_sim as fs


def rounded(step, bound=None):
    """Whole multiples of a step; `bound` as `Transform` has it, None where what is sent keeps the clip's."""

    def client(key, state, row, payload, context):
        return jax.tree.map(lambda p: jnp.round(p / step).astype(jnp.int32), payload), row, {}

    def server(key, state, aggregate):
        value = jax.tree.map(lambda v: v.astype(jnp.float32) * step, aggregate.value)
        return dataclasses.replace(aggregate, value=value), state, {}

    return fs.aggregate.Transform(
        "rounded",
        client=client,
        server=server,
        facts=lambda facts: facts._replace(integers=True, largest=1 / step),
        step=lambda state, incoming, outgoing, dim: jnp.float32(step),
        **({} if bound is None else {"bound": bound}),
    )
