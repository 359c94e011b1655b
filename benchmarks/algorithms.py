"""What each algorithm costs on W1: a round's time over FedAvg's, memory in models a lane, and what is kept and sent.

    python benchmarks/algorithms.py [--pairs 30] [--only scaffold,feddyn] [--devices 2]

FedAvg's rounds and the algorithm's alternate in one process on the same cohorts, after two warm-up pairs. JSON to the
standard output. Of each algorithm, in models of W1 (209,662 parameters):

- `lane`: what a lane more needs, by XLA's own account of the round's program with 4 and with 12 lanes on one device;
- `server`, `row`: the server's state, and one client's row;
- `up`, `down`: what a client sends and receives in a round.
"""

import argparse
import json
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
import works
from federated_tax import make_task, spread

import fedjax_sim as fs
from fedjax_sim.core import pytree

TARGETS = {"fedprox": 1.1, "scaffold": 1.3, "feddyn": 1.3, "mimelite": 2.2, "mime": 3.2, "fedsam": 2.1, "moon": 3.1}
TARGETS |= dict.fromkeys(("fednova", "fedexp", "fedacg", "fedper"), 1.05)
TARGETS |= dict.fromkeys(("ditto", "apfl", "perfedavg first"), 2.2) | {"perfedavg": 4, "ifca": 2}
FEW, MANY, ROUNDS = 4, 12, 1000


def algorithms(task: fs.Task, lr: float) -> dict[str, Callable[[], fs.Algorithm]]:
    """Name to algorithm, all of the same local rate, so that their losses stay in sight of each other."""
    sgd, momentum = optax.sgd(lr), optax.sgd(0.1 * lr, momentum=0.9)

    def features(params, batch, key):
        x = (batch["x"].astype(jax.numpy.float32) / 255 - 0.5) * 0.5
        for layer in params["layers"][:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x

    average = optax.chain(optax.sgd(1.0), fs.server.ema())
    return {
        "fedavg": lambda: fs.fedavg(task, sgd),
        "fedavg, moving average": lambda: fs.fedavg(task, sgd, average),
        "fedavg, adam kept": lambda: fs.fedavg(task, optax.adam(1e-3), client_optimizer_state="keep"),
        "fedavg, adam averaged": lambda: fs.fedavg(task, optax.adam(1e-3), client_optimizer_state="average"),
        "fedprox": lambda: fs.fedprox(task, sgd, mu=0.1),
        "fednova": lambda: fs.fednova(task, lr),
        "scaffold": lambda: fs.scaffold(task, lr),
        "scaffnew": lambda: fs.scaffnew(task, 0.2, lr),
        "feddyn": lambda: fs.feddyn(task, lr, alpha=0.1),
        "fedexp": lambda: fs.fedexp(task, sgd),
        "mimelite": lambda: fs.mimelite(task, momentum),
        "mime": lambda: fs.mime(task, momentum),
        "qfedavg": lambda: fs.qfedavg(task, lr, q=1.0),
        "afl": lambda: fs.afl(task, sgd, 2),
        "fedsam": lambda: fs.fedsam(task, lr),
        "fedacg": lambda: fs.fedacg(task, sgd),
        "moon": lambda: fs.moon(task, sgd, features),
        "fedpa": lambda: fs.fedpa(task, sgd, samples=2, sample_steps=2),
        "fedper": lambda: fs.fedavg(task, sgd, private="layers/2"),
        "ditto": lambda: fs.ditto(task, sgd, lam=1.0),
        "apfl": lambda: fs.apfl(task, lr),
        "pfedme": lambda: fs.pfedme(task, 0.05, lr),
        "perfedavg": lambda: fs.perfedavg(task, lr, lr),
        "perfedavg first": lambda: fs.perfedavg(task, lr, lr, order="first"),
        "ifca": lambda: fs.ifca(task, sgd, 3),
        "diloco": lambda: fs.diloco(task, optax.adamw(1e-3)),
    }


def simulation(algorithm: fs.Algorithm, work: works.Work) -> tuple[fs.Simulation, fs.RoundState]:
    """A work whose examples belong to two domains, by their labels; and its first state."""
    data = fs.FederatedData({"x": work.x, "y": work.y, "domain": work.y % 2}, work.offsets)
    sampler = fs.sampler.fixed(np.tile(work.cohorts, (ROUNDS, 1)))  # FedAvg's rounds go on from algorithm to algorithm
    sim = fs.Simulation(algorithm, data, sampler, fs.Batching(work.batch_size, shuffle=False))
    return sim, sim.init({"layers": work.params})


def timed(sim: fs.Simulation, state: fs.RoundState) -> tuple[float, fs.RoundState]:
    """A whole round's seconds, and the state after it."""
    begin = time.perf_counter()
    after, _ = sim.step(state)
    jax.block_until_ready(after.server)
    return time.perf_counter() - begin, after


def lane(algorithm: fs.Algorithm, work: works.Work, model: int) -> float:
    """Models that one lane more needs; of few clients, so that the table of their rows is on the device."""
    offsets = work.offsets[: MANY + 1]
    arrays = {"x": work.x[: offsets[-1]], "y": work.y[: offsets[-1]], "domain": work.y[: offsets[-1]] % 2}
    needs = {}
    for lanes in (FEW, MANY):
        execution = fs.Execution(lanes=lanes, devices=jax.devices()[:1], rows="device")
        parts = fs.FederatedData(arrays, offsets), fs.sampler.fixed([range(MANY)]), fs.Batching(work.batch_size)
        sim = fs.Simulation(algorithm, *parts, execution=execution)
        state = sim.init({"layers": work.params})
        given = sim.pure_state(state), *sim.round_plan(state)
        found = jax.jit(sim.round_function()).lower(*given).compile().memory_analysis()
        assert found is not None
        needs[lanes] = found.temp_size_in_bytes
    return (needs[MANY] - needs[FEW]) / (MANY - FEW) / model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--only", default=None, help="names, with commas between them; all by default")
    parser.add_argument("--devices", type=int, default=None)
    args = parser.parse_args()
    fs.use_cpu_cores(args.devices)
    work = works.load("W1")
    made = algorithms(make_task("W1", work), 0.1 * work.learning_rate)
    names = list(made) if args.only is None else args.only.split(",")
    plain, plain_state = simulation(made["fedavg"](), work)
    model = pytree.bits(plain.params(plain_state)) // 8

    results = {}
    for name in names:
        algorithm = made[name]()
        sim, state = simulation(algorithm, work)
        server, row = algorithm.init({"layers": work.params})
        bare, other = [], []
        for _ in range(args.pairs + 2):
            seconds, plain_state = timed(plain, plain_state)
            bare.append(seconds)
            seconds, state = timed(sim, state)
            other.append(seconds)
        sent = sim.step(state)[1]
        of_client = lambda way, sent=sent: float(sent.clients(f"aggregate/{way}link_bits")[0]) / 8 / model
        results[name] = {
            "ratio": spread([b / a for a, b in zip(bare[2:], other[2:], strict=True)]),
            "target": TARGETS.get(name),
            "round_ms": spread([1e3 * t for t in other[2:]]),
            "lanes": sim.lanes,
            "models": {
                "lane": round(lane(algorithm, work, model), 2),
                "server": round(pytree.bits(server) / 8 / model, 2),
                "row": round(pytree.bits(row) / 8 / model, 2),
                "up": round(of_client("up"), 2),
                "down": round(of_client("down"), 2),
            },
        }
    devices = f"{len(plain.devices)} {plain.devices[0].device_kind}"
    about = {"work": "W1", "devices": devices, "lanes": plain.lanes, "jax": jax.__version__, "pairs": args.pairs}
    print(json.dumps({**about, "algorithms": results}))


if __name__ == "__main__":
    main()
