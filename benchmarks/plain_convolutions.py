"""Rounds of one CNN written three times: as a Flax task, as a plain `fs.Task`, and in a client function of its own.

    python benchmarks/plain_convolutions.py [--rounds 5] [--devices 2] [--lanes 1]

W2's network, data and cohorts. The plain task calls `jax.lax`; the client function takes its gradients itself. The
engine rewrites the client function, whoever wrote it, so that the three should take the same time: `plain_over_flax`
and `own_over_flax` are ratios of rounds that alternate. JSON to the standard output.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import optax
import works
from federated_tax import make_task, spread

import fedjax_sim as fs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=None)
    parser.add_argument("--lanes", type=int, default=1)
    args = parser.parse_args()
    fs.use_cpu_cores(args.devices)

    work = works.load("W2")
    plain = make_task("W2", work)
    prepare = lambda batch: {**batch, "x": (batch["x"].astype(jnp.float32) / 255 - 0.5) * 0.5}
    flax = fs.classification(fs.models.CNN(62), {"x": work.x[:1], "y": work.y[:1]}, preprocess=prepare)
    optimizer = optax.sgd(work.learning_rate)
    algorithms = {
        "flax": fs.fedavg(flax, optimizer),
        "plain": fs.fedavg(plain, optimizer),
        "own": own_client(plain, work.learning_rate),
    }
    data = fs.FederatedData({"x": work.x, "y": work.y}, work.offsets)
    rounds = [work.cohorts[r % len(work.cohorts)] for r in range(args.rounds + 1)]
    settings = {"lanes": args.lanes, "batching": fs.Batching(work.batch_size, shuffle=False)}
    sims = {
        name: fs.Simulation(algorithm, data, fs.sampler.fixed(rounds), **settings)
        for name, algorithm in algorithms.items()
    }
    states = {name: sim.init() for name, sim in sims.items()}
    times: dict[str, list[float]] = {name: [] for name in sims}
    for _ in range(args.rounds + 1):  # the first compiles
        for name, sim in sims.items():
            begin = time.perf_counter()
            states[name], _ = sim.step(states[name])
            jax.block_until_ready(states[name].server)
            times[name].append(time.perf_counter() - begin)
    ratios = {
        f"{name}_over_flax": spread([a / b for a, b in zip(times[name][1:], times["flax"][1:], strict=True)])
        for name in ("plain", "own")
    }
    sim = sims["flax"]
    print(
        json.dumps(
            {
                "work": "W2",
                "devices": f"{len(sim.devices)} {sim.devices[0].device_kind}",
                "lanes": sim.lanes,
                **ratios,
                **{f"{name}_s": spread(values[1:]) for name, values in times.items()},
                "first_round_s": {name: round(values[0], 2) for name, values in times.items()},
                "jax": jax.__version__,
            }
        )
    )


def own_client(task: fs.Task, rate: float) -> fs.Algorithm:
    """FedAvg as a user may write it: the gradient is the client function's own affair."""

    def client(key, server, row, batches):
        def step(params, batch, key):
            mean = lambda p: jnp.sum(task.loss(p, batch, key) * batch["mask"]) / jnp.sum(batch["mask"])
            loss, grads = jax.value_and_grad(mean)(params)
            return jax.tree.map(lambda p, g: p - rate * g, params, grads), {"loss": loss}

        params, metrics = fs.local_steps(step, server, batches, key)
        delta = jax.tree.map(jnp.subtract, params, server)
        return fs.ClientUpdate(delta, weight=batches.num_examples, metrics=metrics)

    def server(key, server, aggregate):
        return jax.tree.map(jnp.add, server, aggregate.value)

    return fs.Algorithm(task, lambda params: (params, None), client, server)


if __name__ == "__main__":
    main()
