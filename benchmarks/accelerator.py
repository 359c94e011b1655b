"""What an accelerator makes of the works: clients a second over lanes, and kernels a local step.

    python benchmarks/accelerator.py [--works W1,W2,W3] [--lanes 1,2,4,8,16,32,64,128,256,512] [--rounds 20]

For each work and number of lanes: a warm-up, then `--rounds` rounds timed one by one, whole, with sampling and
planning. Kernels are counted in the compiled program: instructions of the local steps' loop that the platform
launches one by one (fusions, products, reductions, copies ...). It runs on a CPU too, where it says little. JSON.
"""

import argparse
import json
import re
import statistics
import time
from typing import Any

import jax
import numpy as np
import optax
import works
from federated_tax import make_task, spread

import fedjax_sim as fs
from fedjax_sim.simulation.executor import on_devices

FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota", "after-all", "partition-id")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", default="W1,W2,W3")
    parser.add_argument("--lanes", default="auto,1,2,4,8,16,32,64,128,256,512")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    fs.use_cpu_cores()
    found = {}
    for name in args.works.split(","):
        work = works.load(name)
        found[name] = measured(name, work, args.lanes.split(","), args.rounds)
    device = jax.devices()[0]
    about = {"platform": device.platform, "device": device.device_kind, "devices": len(jax.devices())}
    print(json.dumps({**about, "jax": jax.__version__, "rounds": args.rounds, "works": found}))


def measured(name: str, work: Any, all_lanes: list[str], rounds: int) -> dict[str, Any]:
    """Results by lanes; those over the clients of a device are left out."""
    task = make_task(name, work)
    data = fs.FederatedData({"x": work.x, "y": work.y}, work.offsets)
    cohort = len(work.cohorts[0])
    out: dict[str, Any] = {}
    for lanes in all_lanes:
        most = -(-cohort // len(jax.devices()))
        if lanes != "auto" and int(lanes) > most:
            break
        sim = fs.Simulation(
            fs.fedavg(task, optax.sgd(work.learning_rate)),
            data,
            fs.sampler.uniform(cohort),
            fs.Batching(work.batch_size),
            execution=fs.Execution(lanes="auto" if lanes == "auto" else int(lanes)),
        )
        try:
            out[lanes] = {"lanes": sim.lanes, **timed(sim, sim.init({"layers": work.params}), rounds, cohort)}
        except jax.errors.JaxRuntimeError as error:  # out of memory: more lanes will not fit either
            out[lanes] = {"error": str(error).splitlines()[0][:200]}
            break
    return out


def timed(sim: fs.Simulation, state: fs.RoundState, rounds: int, cohort: int) -> dict[str, Any]:
    for _ in range(2):
        state, metrics = sim.step(state)
    seconds, steps = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        state, metrics = sim.step(state)
        jax.block_until_ready(state.server)
        seconds.append(time.perf_counter() - begin)
        steps.append(metrics["plan/steps"])
    return {
        "round_ms": spread([1e3 * t for t in seconds]),
        "clients_per_second": round(cohort / statistics.median(seconds)),
        "steps_per_second": round(statistics.median(steps) / statistics.median(seconds)),
        "kernels_per_step": kernels(sim, state),
    }


def kernels(sim: fs.Simulation, state: fs.RoundState) -> int | None:
    """Launched instructions in the body of the loop over local steps: the innermost loop with a product in it."""
    plans = sim.executor.plan(state, 1, 1)
    program = sim.executor.program(plans.shape, 1)
    device_state = on_devices(state)
    lowered = program.lower(state.seeds, device_state, plans.words, np.int32(1), sim.executor.constants)  # type: ignore[attr-defined]
    return count_kernels(lowered.compile().as_text())


def count_kernels(text: str) -> int | None:
    """The same of a compiled program's text."""
    bodies: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=[%E])", text):
        head = re.match(r"(?:ENTRY )?%?([\w.-]+) ", block)
        if head:
            bodies[head[1]] = re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = .*$", block, re.M)
    loops = {name for lines in bodies.values() for line in lines for name in re.findall(r"body=%?([\w.-]+)", line)}

    def holds_product(name: str, seen: frozenset[str] = frozenset()) -> bool:
        for line in bodies.get(name, []):
            if re.search(r" (dot|convolution)\(|custom_call_target=\"[^\"]*(gemm|conv|dot|matmul)", line):
                return True
            for inner in re.findall(r"(?:calls|to_apply|body)=%?([\w.-]+)", line):
                if inner not in seen and holds_product(inner, seen | {name}):
                    return True
        return False

    def has_inner_loop(name: str) -> bool:
        inner = [n for line in bodies[name] for n in re.findall(r"body=%?([\w.-]+)", line)]
        return any(holds_product(n) for n in inner)

    steps = [name for name in loops if holds_product(name) and not has_inner_loop(name)]
    if not steps:
        return None
    launched = [sum(not re.search(rf" ({'|'.join(FREE)})\(", line) for line in bodies[name]) for name in steps]
    return max(launched)


if __name__ == "__main__":
    main()
