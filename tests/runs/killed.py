"""A run of its own process, to be killed: `python -m tests.runs.killed FOLDER ROUNDS`. It goes on if it can.

The algorithm keeps client rows and a server optimizer, and its state is of some MB, so that a save lasts.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import fedjax_sim as fs
from tests.engine import toys

SIZE = 60_000


def task() -> fs.Task:
    """The noisy regression of the toys, and a block of parameters beside it."""
    small = toys.task(noisy=True)

    def init(key):
        return {"small": small.init(key), "block": jax.random.normal(key, (SIZE,))}

    def loss(params, batch, key):
        error, metrics = small.loss(params["small"], batch, key)
        return error + jnp.mean((params["block"][None] - batch["x"][:, :1]) ** 2, axis=1), metrics

    return fs.Task(init, loss)


def algorithm() -> fs.Algorithm:
    """Adam on the server; a client keeps its last update and sends a part of it again."""
    train, optimizer = fs.grad(task()), optax.adam(0.05)

    def init(params):
        return {"x": params, "optimizer": optimizer.init(params)}, jax.tree.map(jnp.zeros_like, params)

    def client(key, server, row, batches):
        def step(y, batch, key):
            grads, metrics = train(y, batch, key)
            return jax.tree.map(lambda y, g: y - 0.05 * g, y, grads), metrics

        y, metrics = fs.local_steps(step, server["x"], batches, key)
        delta = jax.tree.map(lambda y, x, kept: y - x + 0.1 * kept, y, server["x"], row)
        return fs.ClientUpdate(delta, weight=batches.num_examples, state=delta, metrics=metrics)

    def server(key, server, aggregate):
        gradient = jax.tree.map(jnp.negative, aggregate.value)
        updates, state = optimizer.update(gradient, server["optimizer"])
        return {"x": optax.apply_updates(server["x"], updates), "optimizer": state}

    return fs.Algorithm(task(), init, client, server, params=lambda server: server["x"])


def simulation(devices=None) -> fs.Simulation:
    evaluate = lambda params: {"test/square": jnp.sum(params["small"]["w"] ** 2)}
    parts = algorithm(), toys.federation(), fs.sampler.uniform(5), fs.Batching(3)
    return fs.Simulation(*parts, seed=7, execution=fs.Execution(devices=devices), evaluate=evaluate)


def main(folder: str, rounds: int) -> None:
    sim = simulation()
    try:
        state = sim.restore(folder)
    except fs.RunFolderError:
        if any(each.name.isdigit() for each in (Path(folder) / "checkpoints").glob("*")):
            raise  # only a run that was killed before its first checkpoint begins again
        state = sim.init()
    print(f"\nfrom {state.round}", flush=True)
    sim.run(
        state,
        rounds - state.round,
        eval_every=7,
        run_dir=folder,
        checkpoint_every=2,
        callbacks=[lambda metrics: print(f"\nround {metrics.round}", flush=True)],
    )


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    main(sys.argv[1], int(sys.argv[2]))
