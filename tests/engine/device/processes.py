"""What each process of test_processes.py runs: `python -m tests.engine.device.processes PLAN`, PLAN in JSON."""

import json
import os
import signal
import sys


def main(plan):
    import jax

    import fedjax_sim as fs
    from fedjax_sim.runs import plots

    plots.save_all = lambda run: []  # for time: one test runs the command line, which draws
    fs.use_cpu_cores(plan["devices"])
    if plan["processes"] > 1:
        here = fs.use_processes(plan["coordinator"], plan["processes"], plan["id"])
        assert (here, len(jax.devices())) == (plan["id"], plan["processes"] * plan["devices"])
    for case in plan["cases"]:
        print(json.dumps(run(case, plan)), flush=True)


def run(case, plan):
    """The parameters, the losses and what was evaluated of a few rounds, as numbers."""
    import jax
    import numpy as np

    import fedjax_sim as fs
    from fedjax_sim.data.federated import FederatedData
    from tests.engine import toys

    read, original = [], FederatedData.read
    FederatedData.read = lambda self, clients, counts: read.append(len(clients)) or original(self, clients, counts)
    seen = []

    def evaluate(params):
        seen.append(1)
        if case.get("dies") == plan["id"]:
            how = {"killed": lambda: os.kill(os.getpid(), signal.SIGKILL), "raises": lambda: 1 / 0}
            how.get(case["how"], lambda: os.kill(os.getpid(), signal.SIGTERM))()
        return fs.evaluate(toys.task(), params, toys.federation().client(0))

    sim = fs.Simulation(
        toys.ALGORITHMS[case["algorithm"]](toys.task(noisy=True)),
        toys.federation(),
        fs.sampler.uniform(6),
        fs.Batching(3, epochs=2),
        seed=3,
        execution=fs.Execution(lanes=1, residency=case.get("residency", "device")),
        evaluate=evaluate,
    )
    folder = case.get("folder")
    state = sim.restore(folder) if case.get("resume") else sim.init()
    state, history = sim.run(
        state,
        case["rounds"] - state.round,
        run_dir=folder,
        eval_every=case.get("eval_every"),
        checkpoint_every=1 if folder else None,
        callbacks=[lambda metrics: seen.append("called")],
    )
    FederatedData.read = original
    assert fs.evaluate(toys.task(), sim.params(state), toys.federation().client(0)) == history.rounds[-1].evaluation
    return {
        "params": jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), sim.params(state)),
        "loss": history["client/loss"].tolist(),
        "evaluated": history.rounds[-1].evaluation,
        "called": seen.count("called"),
        "read": sum(read),
        "clients": history.rounds[-1].clients("client/loss").tolist(),
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
