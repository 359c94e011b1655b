"""Chunks of lanes against lanes that refill from a queue, on cohorts with a client much longer than the others.

    python benchmarks/skewed.py [--pairs 10] [--lanes 1,4,8,16,32,50] [--devices 1,2]

The engine cuts a device's clients, longest first, into chunks of L lanes, each of which runs to its longest client. The
other form is written here alone: L lanes in one loop over steps, of which each takes the next client of the device's
queue when its own ends. Same clients, batches and steps, the same weighted mean; compiled rounds are timed, without the
host's planning, in turns. JSON, a line a setting; asserts nothing.
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import works
from federated_tax import make_task, spread

import fedjax_sim as fs
from fedjax_sim.engine.device import placement
from fedjax_sim.simulation.executor import on_devices

CLIENTS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--lanes", default="1,4,8,16,32,50")
    parser.add_argument("--devices", default="1,2")
    args = parser.parse_args()
    fs.use_cpu_cores(max(map(int, args.devices.split(","))))
    for name in ("W1", "W3"):
        work = works.load(name)
        for cohort, sizes in cohorts(work).items():
            for count in map(int, args.devices.split(",")):
                for lanes in map(int, args.lanes.split(",")):
                    if lanes <= -(-CLIENTS // count):
                        print(json.dumps(compare(name, work, cohort, sizes, lanes, count, args.pairs)), flush=True)


def cohorts(work: works.Work) -> dict[str, np.ndarray]:
    """Examples of each client: one of 30 times the median, or the work's own first clients."""
    own = np.diff(work.offsets)[:CLIENTS]
    skewed = np.full(CLIENTS, 5 * work.batch_size)
    skewed[17] *= 30
    return {"one of 30 times the median": skewed, "the work's own": own}


def compare(name: str, work: works.Work, cohort: str, sizes: np.ndarray, lanes: int, count: int, pairs: int) -> Any:
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    data = {"x": work.x[:total], "y": work.y[:total]}
    task = make_task(name, work)
    sim = fs.Simulation(
        fs.fedavg(task, optax.sgd(work.learning_rate)),
        fs.FederatedData(data, offsets),
        fs.sampler.fixed(np.arange(CLIENTS)[None]),
        fs.Batching(work.batch_size, shuffle=False),
        execution=fs.Execution(lanes=lanes, devices=jax.devices()[:count]),
    )
    state = sim.init({"layers": work.params})
    plans = sim.executor.plan(state, 1, slots=1)
    program, arrays = sim.executor.program(plans.shape, 1), sim.executor.constants
    given = (state.seeds, on_devices(state), plans.words, np.int32(1), arrays)
    chunks = lambda: jax.block_until_ready(program(*given)[0].server.params)

    refilled, queues = refill(task, work, sim, plans.rounds[0], lanes)
    refilling = lambda: jax.block_until_ready(refilled(sim.params(state), queues, arrays))
    one, other = chunks(), refilling()
    apart = max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))
    times: dict[str, list[float]] = {"chunks": [], "refill": []}
    for _ in range(pairs + 1):
        for kind, run in (("chunks", chunks), ("refill", refilling)):
            begin = time.perf_counter()
            run()
            times[kind].append(1e3 * (time.perf_counter() - begin))
    ratios = [a / b for a, b in zip(times["chunks"][1:], times["refill"][1:], strict=True)]
    return {
        "work": name,
        "cohort": cohort,
        "devices": count,
        "lanes": lanes,
        "chunks_over_refill": spread(ratios),
        **{f"{kind}_ms": spread(values[1:]) for kind, values in times.items()},
        "largest_difference": apart,
    }


def refill(task: fs.Task, work: works.Work, sim: fs.Simulation, plan: Any, lanes: int) -> tuple[Any, Any]:
    """`(params, queues, arrays) -> params`, and the queues: each device's clients, in the engine's order."""
    ids, steps = (leaf.reshape(len(leaf), -1) for leaf in (plan.lanes.client_id, plan.lanes.steps))
    start = sim.data.offsets[ids].astype(np.int32)
    size = np.where(steps > 0, sim.data.sizes_of(ids.ravel()).reshape(ids.shape), 0).astype(np.int32)
    pad = lambda leaf: np.pad(leaf, ((0, 0), (0, lanes))).astype(np.int32)  # nobody is behind the last
    queues = placement.shard(sim.parts.mesh, tuple(map(pad, (start, size, steps))))
    batch = work.batch_size

    def device(server: Any, queues: Any, arrays: Any) -> Any:
        start, size, steps = (leaf[0] for leaf in queues)
        behind = len(start) - lanes

        def step(params: Any, client: Any, at: Any) -> Any:
            place = at * batch + jnp.arange(batch)
            rows = start[client] + jnp.minimum(place, size[client] - 1)
            mask = (place < size[client]).astype(jnp.float32)
            picked = jax.tree.map(lambda a: a[rows], arrays)

            def loss(p: Any) -> Any:
                return jnp.sum(task.loss(p, {**picked, "mask": mask}, jax.random.key(0)) * mask) / jnp.maximum(
                    mask.sum(), 1
                )

            return jax.tree.map(lambda p, g: p - work.learning_rate * g, params, jax.grad(loss)(params))

        def refilled(carry: Any, done: Any) -> Any:
            params, client, at, following, total = carry
            weight = jnp.where(done, size[client], 0).astype(jnp.float32)
            add = lambda t, p, s: t + jnp.tensordot(weight, p - s[None], 1)
            total = jax.tree.map(add, total, params, server)
            new = jnp.minimum(following + jnp.cumsum(done) - 1, behind)
            pick = lambda p, s: jnp.where(done.reshape(-1, *[1] * (p.ndim - 1)), s[None], p)
            params = jax.tree.map(pick, params, server)
            return params, jnp.where(done, new, client), jnp.where(done, 0, at), following + done.sum(), total

        def body(carry: Any) -> Any:
            params, client, at, following, total = carry
            active = at < steps[client]
            new = jax.vmap(step)(params, client, at)
            keep = lambda n, p: jnp.where(active.reshape(-1, *[1] * (p.ndim - 1)), n, p)
            params, at = jax.tree.map(keep, new, params), at + active
            done = active & (at == steps[client])
            carry = (params, client, at, following, total)
            return jax.lax.cond(done.any(), refilled, lambda carry, done: carry, carry, done)

        first = jnp.arange(lanes, dtype=jnp.int32)
        params = jax.tree.map(lambda p: jnp.broadcast_to(p, (lanes, *p.shape)), server)
        begin = (params, first, jnp.zeros(lanes, jnp.int32), jnp.int32(lanes), jax.tree.map(jnp.zeros_like, server))
        busy = lambda carry: (carry[2] < steps[carry[1]]).any()
        total = jax.lax.while_loop(busy, body, begin)[-1]
        total, weight = jax.lax.psum((total, size.sum().astype(jnp.float32)), placement.AXIS)
        return jax.tree.map(lambda s, t: s + t / weight, server, total)

    specs = (placement.REPLICATED, placement.SHARDED, placement.REPLICATED)
    share = jax.shard_map(device, mesh=sim.parts.mesh, in_specs=specs, out_specs=placement.REPLICATED, check_vma=False)
    return jax.jit(share), queues


if __name__ == "__main__":
    main()
