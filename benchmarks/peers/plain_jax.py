"""Plain JAX loops written by hand. --how step: a jitted step, called for each batch; scan: a jitted client, which scans
over its batches; vmap: a jitted round, which maps over the cohort, padded to its longest client."""

from functools import partial

import jax
import jax.numpy as jnp
import jax_model
import numpy as np
import shared


def main() -> None:
    args = shared.arguments(how="step")
    work = shared.load(args)
    sgd = partial(jax_model.sgd, work.name, work.learning_rate)
    one_round = {"step": step_rounds, "scan": scan_rounds, "vmap": vmap_rounds}[args.how](work, sgd)
    params = jax.tree.map(jnp.asarray, work.params)
    clock = shared.Clock()
    for cohort in work.cohorts:
        params = jax.block_until_ready(one_round(params, cohort))
        clock.tick()
    shared.report(args, work, clock, params, "jax", "numpy")


def step_rounds(work: shared.Work, sgd):
    """A jitted step, called for each batch from Python."""
    sgd, add = jax.jit(sgd), jax.jit(_add)

    def one_round(params, cohort):
        total = jax.tree.map(jnp.zeros_like, params)
        share = work.sizes[cohort] / work.sizes[cohort].sum()
        for client, weight in zip(cohort, share, strict=True):
            local = params
            for batch in zip(*work.padded(client, work.steps(client)), strict=True):
                local = sgd(local, *batch)
            total = add(total, local, weight)
        return total

    return one_round


def scan_rounds(work: shared.Work, sgd):
    """A jitted client: a scan over its batches, padded to the next power of two."""

    @jax.jit
    def train(total, params, xs, ys, masks, weight):
        local, _ = jax.lax.scan(lambda p, batch: (sgd(p, *batch), None), params, (xs, ys, masks))
        return _add(total, local, weight)

    def one_round(params, cohort):
        total = jax.tree.map(jnp.zeros_like, params)
        share = work.sizes[cohort] / work.sizes[cohort].sum()
        for client, weight in zip(cohort, share, strict=True):
            padded = 1 << (work.steps(client) - 1).bit_length()
            total = train(total, params, *work.padded(client, padded), weight)
        return total

    return one_round


def vmap_rounds(work: shared.Work, sgd):
    """A jitted round: all clients side by side, padded to the longest of the cohort (in fours, to compile seldom)."""

    @jax.jit
    def train(params, xs, ys, masks, share):
        def client(xs, ys, masks):
            return jax.lax.scan(lambda p, batch: (sgd(p, *batch), None), params, (xs, ys, masks))[0]

        return jax.tree.map(lambda p: jnp.tensordot(share, p, 1), jax.vmap(client)(xs, ys, masks))

    def one_round(params, cohort):
        longest = -(-max(work.steps(client) for client in cohort) // 4) * 4
        batches = [np.stack(a) for a in zip(*(work.padded(client, longest) for client in cohort), strict=True)]
        share = work.sizes[cohort] / work.sizes[cohort].sum()
        return train(params, *batches, share.astype(np.float32))

    return one_round


def _add(total, local, weight):
    return jax.tree.map(lambda t, p: t + jnp.float32(weight) * p, total, local)


if __name__ == "__main__":
    main()
