"""The simulation of former.tar.gz, a run folder that version 0.1.0.dev0 wrote before simulations had parts.

`python tests/runs/former/simulation.py FOLDER` made it, with that version's package on PYTHONPATH.
"""

import sys

import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs


def build() -> fs.Simulation:
    """SCAFFOLD, whose clients have rows, under compression with feedback, which has them too."""
    loss = lambda params, batch, key: (batch["x"] @ params["w"] - batch["y"]) ** 2
    task = fs.Task(lambda key: {"w": jnp.zeros(3)}, loss)
    x = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    data = fs.FederatedData({"x": x, "y": x @ np.float32([1, -1, 2])}, np.arange(0, 25, 4))
    sparse = fs.aggregate.chain(fs.aggregate.on("delta", fs.aggregate.error_feedback(fs.aggregate.top_k(0.5))))
    algorithm = fs.scaffold(task, 0.05, aggregator=sparse)
    return fs.Simulation(algorithm, data, fs.sampler.uniform(3), fs.Batching(2), seed=5)


if __name__ == "__main__":
    sim = build()
    sim.run(sim.init(), 4, run_dir=sys.argv[1], checkpoint_every=2)
