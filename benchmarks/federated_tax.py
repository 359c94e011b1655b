"""The federated tax: a round's time over that of a raw SGD loop that does nothing federated.

    python benchmarks/federated_tax.py W1 [--pairs 30] [--lanes auto]

The raw loop takes the same number of steps of the same model, batch size and rewrite of convolutions, shared out over
the same devices, in one jitted `fori_loop` with the data as arguments. Rounds and loops alternate in one process, after
two warm-up pairs; a round is timed whole, with sampling and planning on the host. JSON to the standard output.
"""

import argparse
import json
import resource
import statistics
import time
from typing import Any

PROCESS_START = time.perf_counter()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import works  # noqa: E402

import fedjax_sim as fs  # noqa: E402
from fedjax_sim.core.convolution import pays_on  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["W1", "W2", "W3", "CIFAR10"])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--lanes", default="auto")
    parser.add_argument("--devices", type=int, default=None)
    args = parser.parse_args()
    fs.use_cpu_cores(args.devices)

    work = works.load(args.work)
    data_ready = time.perf_counter()
    task = make_task(args.work, work)
    cohorts = [work.cohorts[r % len(work.cohorts)] for r in range(len(work.cohorts) + args.pairs + 3)]
    sim = fs.Simulation(
        fs.fedavg(task, optax.sgd(work.learning_rate)),
        fs.FederatedData({"x": work.x, "y": work.y}, work.offsets),
        fs.sampler.fixed(cohorts),
        fs.Batching(work.batch_size, shuffle=False),
        execution=fs.Execution(lanes=args.lanes if args.lanes == "auto" else int(args.lanes)),
    )
    state = sim.init({"layers": work.params})

    begin = time.perf_counter()
    state, metrics = sim.step(state)
    first = time.perf_counter() - begin
    to_first_round = time.perf_counter() - data_ready
    for _ in range(len(work.cohorts) - 1):
        state, metrics = sim.step(state)
    loss = fs.evaluate(task, sim.params(state), {"x": work.x, "y": work.y})["loss"]

    raw, raw_params, arrays = raw_loop(task, work, sim.devices)
    times: dict[str, list[float]] = {"round": [], "raw": [], "planning": []}
    for _ in range(args.pairs + 2):
        begin = time.perf_counter()
        after, metrics = sim.step(state)
        jax.block_until_ready(after.server)
        times["round"].append(time.perf_counter() - begin)
        state = after

        share = np.full(len(sim.devices), metrics["plan/steps"] // len(sim.devices), np.int32)
        share[: metrics["plan/steps"] % len(sim.devices)] += 1
        begin = time.perf_counter()
        raw_params = jax.block_until_ready(raw(raw_params, share, arrays))
        times["raw"].append(time.perf_counter() - begin)

        begin = time.perf_counter()
        sim.executor.plan(state, 1, slots=1)
        times["planning"].append(time.perf_counter() - begin)
    times = {name: values[2:] for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["round"], times["raw"], strict=True)]
    print(
        json.dumps(
            {
                "work": args.work,
                "devices": f"{len(sim.devices)} {sim.devices[0].device_kind}",
                "lanes": sim.lanes,
                "tax": spread(ratios),
                "tax_of_medians": round(statistics.median(times["round"]) / statistics.median(times["raw"]), 3),
                **{f"{name}_ms": spread([1e3 * t for t in values]) for name, values in times.items()},
                "first_round_s": round(first, 2),
                "data_to_end_of_round_1_s": round(to_first_round, 2),
                "final_loss": round(loss, 6),
                "compilations": sim.compile_count(),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "jax": jax.__version__,
            }
        )
    )


def make_task(name: str, work: works.Work) -> fs.Task:
    """The work's model as a task on a plain pytree of parameters."""

    def logits(params, x):
        layers = params["layers"]
        if name != "W3":
            x = (x.astype(jnp.float32) / 255 - 0.5) * 0.5
        if x.ndim == 4:
            for layer in layers[:2]:
                x = jax.lax.conv_general_dilated(
                    x, layer["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.relu(x + layer["b"].reshape(1, 1, 1, -1))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            x, layers = x.reshape(x.shape[0], -1), layers[2:]
        for layer in layers[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ layers[-1]["w"] + layers[-1]["b"]

    def loss(params, batch, key):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch["x"]), batch["y"])

    return fs.Task(init=lambda key: {"layers": work.params}, loss=loss)


def raw_loop(task: fs.Task, work: works.Work, devices):
    """The limit: so many SGD steps a device on slices of the data, and one mean at the end."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("d",))
    spec = jax.sharding.PartitionSpec
    total, size = len(work.y), work.batch_size
    loss = fs.matmul_convolutions(task.loss) if pays_on(devices[0].platform) else task.loss

    def objective(params, x, y):
        losses: Any = loss(params, {"x": x, "y": y, "mask": jnp.ones(size)}, jax.random.key(0))
        return losses.mean()

    def device(params, steps, arrays):
        def step(i, params):
            at = (i * size) % (total - size)
            x, y = (jax.lax.dynamic_slice_in_dim(arrays[name], at, size) for name in ("x", "y"))
            grads = jax.grad(objective)(params, x, y)
            return jax.tree.map(lambda p, g: p - work.learning_rate * g, params, grads)

        return jax.lax.pmean(jax.lax.fori_loop(0, steps[0], step, params), "d")

    run = jax.shard_map(device, mesh=mesh, in_specs=(spec(), spec("d"), spec()), out_specs=spec(), check_vma=False)
    everywhere = jax.sharding.NamedSharding(mesh, spec())
    arrays = jax.device_put({"x": work.x, "y": work.y}, everywhere)
    return jax.jit(run), jax.device_put({"layers": work.params}, everywhere), arrays


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, middle, high = statistics.quantiles(values, n=4)
    named = {"median": middle, "q1": low, "q3": high, "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in named.items()}


if __name__ == "__main__":
    main()
