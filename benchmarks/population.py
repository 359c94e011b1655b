"""What availability, a fleet and asynchronous rounds cost. JSON; asserts nothing.

    python benchmarks/population.py all [--pairs 30]
    python benchmarks/population.py rounds [--work W1] [--pairs 30]
    python benchmarks/population.py asynchronous [--pairs 30]
    python benchmarks/population.py planning [--population 10000000] [--rounds 50]
    python benchmarks/population.py events [--arrivals 1000000]

rounds: with Markov availability, over-selection, a deadline, dropouts and a clock, over plain `uniform`; as many
clients train. asynchronous: W1, an update of 50 with 200 at work, over a synchronous round of 50. planning: 1000 of
10,000,000 clients with Markov availability, sampled and planned, and the most memory that a round takes for it.
events: arrivals of an asynchronous run, on the host alone. all: these, rounds of W1 and W3, each beside what it is to
stay below.
"""

import argparse
import json
import statistics
import time
import tracemalloc
from typing import Any

import numpy as np

import fedjax_sim as fs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", "rounds", "asynchronous", "planning", "events"])
    parser.add_argument("--work", default="W1", choices=["W1", "W2", "W3"])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--population", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--arrivals", type=int, default=1_000_000)
    args = parser.parse_args()
    does = {"all": everything, "rounds": rounds, "asynchronous": asynchronous, "planning": planning, "events": events}
    print(json.dumps(does[args.what](args)))


def everything(args: argparse.Namespace) -> dict[str, Any]:
    of_work = lambda name: rounds(argparse.Namespace(**{**vars(args), "work": name}))
    found = {
        "rounds W1": (of_work("W1"), lambda made: made["ratio"]["median"], 1.05),
        "rounds W3": (of_work("W3"), lambda made: made["ratio"]["median"], 1.15),
        "asynchronous": (asynchronous(args), lambda made: made["ratio"]["median"], 1.3),
        "planning, ms": (planning(args), lambda made: made["ms"]["median"], 20.0),
        "events, s": (events(args), lambda made: made["seconds"], 10.0),
    }
    return {name: {"is": of(made), "at most": most, **made} for name, (made, of, most) in found.items()}


def rounds(args: argparse.Namespace) -> dict[str, Any]:
    p = fs.population
    fleet = fs.fleet.lognormal(0.6, fs.fleet.Device(flops=1e9, down=1e6, up=2.5e5, watts=2.0))

    def samplers(count: int) -> dict[str, tuple[fs.sampler.Sampler, Any]]:
        everything = (p.markov(0.3, 0.1), p.over_select(1.3), p.deadline(1e6), p.dropout(0.05))
        plain = fs.sampler.uniform(count)
        return {"with": (p.chain(plain, *everything), fleet), "without": (plain, None)}

    return compare(args, args.work, samplers)


def asynchronous(args: argparse.Namespace) -> dict[str, Any]:
    def samplers(count: int) -> dict[str, tuple[fs.sampler.Sampler, Any]]:
        fleet = fs.fleet.lognormal(0.6, fs.fleet.Device(seconds_per_step=0.1))
        buffered = fs.sampler.asynchronous(200, count, max_staleness=8)
        return {"with": (buffered, fleet), "without": (fs.sampler.uniform(count), None)}

    return compare(args, "W1", samplers)


def compare(args: argparse.Namespace, name: str, samplers: Any) -> dict[str, Any]:
    """Milliseconds a round, in runs that alternate, timed whole, so that what overlaps with computing does."""
    import jax
    import works
    from federated_tax import make_task, spread

    fs.use_cpu_cores()
    import optax

    work, each = works.load(name), args.rounds or (3 if name == "W1" else 20)
    data = fs.FederatedData({"x": work.x, "y": work.y}, work.offsets)
    uniform = fs.aggregate.mean("uniform")
    algorithm = fs.fedavg(make_task(name, work), optax.sgd(work.learning_rate), aggregator=uniform)
    sims = {
        kind: fs.Simulation(algorithm, data, sampler, fs.Batching(work.batch_size), fleet=fleet, on_nonfinite="drop")
        for kind, (sampler, fleet) in samplers(work.cohorts.shape[1]).items()
    }
    states = {kind: sim.run(sim.init({"layers": work.params}), 10)[0] for kind, sim in sims.items()}
    times: dict[str, list[float]] = {kind: [] for kind in sims}
    trained: dict[str, list[float]] = {kind: [] for kind in sims}
    for _ in range(args.pairs + 1):
        for kind, sim in sims.items():
            begin = time.perf_counter()
            states[kind], history = sim.run(states[kind], each)
            jax.block_until_ready(states[kind].server)
            times[kind].append(1e3 * (time.perf_counter() - begin) / each)
            trained[kind] += history["cohort/clients"].tolist()
    times = {kind: values[1:] for kind, values in times.items()}
    return {
        "work": name,
        "ratio": spread([a / b for a, b in zip(times["with"], times["without"], strict=True)]),
        "ms_a_round": {kind: spread(values) for kind, values in times.items()},
        "clients": {kind: statistics.mean(values) for kind, values in trained.items()},
        "pairs": args.pairs,
        "jax": jax.__version__,
    }


def planning(args: argparse.Namespace) -> dict[str, Any]:
    from fedjax_sim.engine.plan.planner import Planner

    count, cohort = args.population, 1000
    sizes = np.random.default_rng(0).integers(10, 61, count)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    data = fs.FederatedData({"x": np.zeros(int(offsets[-1]), np.uint8)}, offsets)
    sampler = fs.population.markov(0.1, 0.3)(fs.sampler.uniform(cohort))
    planner = Planner(data, fs.Batching(10), devices=2)
    shape, state = planner.shape(cohort, lanes=16), sampler.init(count)
    times = []
    for r in range((args.rounds or 50) + 3):
        begin = time.perf_counter()
        drawn, state = sampler.sample(state, 100 + r, 0)
        planner.plan(drawn, shape, 0, r)
        times.append(1e3 * (time.perf_counter() - begin))
    low, middle, high = statistics.quantiles(times[3:], n=4)
    tracemalloc.start()  # slows what it watches
    drawn, state = sampler.sample(state, 99, 0)
    planner.plan(drawn, shape, 0, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    ms = {"median": middle, "q1": low, "q3": high}
    return {"population": count, "cohort": cohort, "ms": ms, "peak_mb_of_a_round": peak / 1e6}


def events(args: argparse.Namespace) -> dict[str, Any]:
    clients, concurrency, buffer = 100_000, 200, 50
    durations = np.random.default_rng(0).lognormal(0, 0.6, clients)
    sampler = fs.sampler.asynchronous(concurrency, buffer, max_staleness=50, durations=durations)
    state = sampler.init(clients)
    begin, busy = time.perf_counter(), time.process_time()
    for round in range(args.arrivals // buffer):
        _, state = sampler.sample(state, round, 0)
    return {
        "arrivals": args.arrivals,
        "concurrency": concurrency,
        "buffer": buffer,
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - busy,
        "too_stale": int(state["dropped"]),
    }


if __name__ == "__main__":
    main()
