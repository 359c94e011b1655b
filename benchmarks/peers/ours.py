"""fedjax_sim: the work as a user writes it. One JAX device a core."""

import sys
from pathlib import Path

import optax
import shared

import fedjax_sim as fs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import federated_tax
import works


def main() -> None:
    args = shared.arguments()
    fs.use_cpu_cores()
    work = shared.load(args)
    task = federated_tax.make_task(work.name, works.Work(*work[1:]))
    sim = fs.Simulation(
        fs.fedavg(task, optax.sgd(work.learning_rate)),
        fs.FederatedData({"x": work.x, "y": work.y}, work.offsets),
        fs.sampler.fixed(work.cohorts),
        fs.Batching(work.batch_size, shuffle=False),
    )
    state = sim.init({"layers": work.params})
    clock = shared.Clock()
    for _ in work.cohorts:
        state, metrics = sim.step(state)
        metrics["client/loss"]  # waits for the round
        clock.tick()
    shared.report(args, work, clock, sim.params(state)["layers"], "fedjax-sim", "jax", "numpy")


if __name__ == "__main__":
    main()
