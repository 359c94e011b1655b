"""drjax: its primitives over the clients, sharded over one device a core; the cohort is padded to its longest client.

DrJAX leaves local training and batches to the user: a `lax.scan` over padded batches (in fours, to compile seldom).
--devices 1: no sharding.
"""

import os

import shared

args = shared.arguments(devices=len(os.sched_getaffinity(0)))
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"

import drjax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax_model  # noqa: E402
import numpy as np  # noqa: E402


def main() -> None:
    work = shared.load(args)
    cohort_size = work.cohorts.shape[1]
    mesh = jax.make_mesh((args.devices,), ("clients",), (jax.sharding.AxisType.Auto,))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))

    def local(params, xs, ys, masks):
        def step(p, batch):
            return jax_model.sgd(work.name, work.learning_rate, p, *batch), None

        after, _ = jax.lax.scan(step, params, (xs, ys, masks))
        return jax.tree.map(jnp.subtract, after, params)

    @jax.jit
    @drjax.program(placements={"clients": cohort_size})
    def one_round(params, xs, ys, masks, sizes):
        deltas = drjax.map_fn(local, (drjax.broadcast(params), xs, ys, masks))
        weighted = drjax.map_fn(lambda d, n: jax.tree.map(lambda a: a * n, d), (deltas, sizes))
        total, examples = drjax.reduce_sum(weighted), drjax.reduce_sum(sizes)
        return jax.tree.map(lambda p, d: p + d / examples, params, total)

    with jax.set_mesh(mesh):
        params = jax.device_put(work.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        clock = shared.Clock()
        for cohort in work.cohorts:
            longest = -(-max(work.steps(i) for i in cohort) // 4) * 4
            batches = [np.stack(a) for a in zip(*(work.padded(i, longest) for i in cohort), strict=True)]
            sizes = work.sizes[cohort].astype(np.float32)
            params = one_round(params, *jax.device_put((*batches, sizes), placed))
            jax.block_until_ready(params)
            clock.tick()
    shared.report(args, work, clock, params, "drjax", "jax", "numpy")


if __name__ == "__main__":
    main()
