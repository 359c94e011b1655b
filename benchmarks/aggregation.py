"""What a chain, a robust rule or an attack costs: a round with it over a round with a mean, on the same cohorts.

    python benchmarks/aggregation.py [--work W1] [--pairs 30] [--of clip_noise,secure_sum]
    python benchmarks/aggregation.py --of rules      # or chains, or attacks: all of them

Rounds with and without alternate in one process, after two warm-up pairs. JSON to the standard output.
"""

import argparse
import json
import time
from typing import Any

import jax
import optax
import works
from federated_tax import make_task, spread

import fedjax_sim as fs

UNIFORM = fs.aggregate.mean("uniform")


def rounded(bits: int) -> fs.aggregate.Transform:
    """Nearest integers of a shared step: the cheapest quantiser, so that what is measured is what follows it."""
    largest = 2 ** (bits - 1) - 1

    def client(key, state, row, payload, context):
        step = context.bound / largest
        return jax.tree.map(lambda p: jax.numpy.round(p / step).astype(jax.numpy.int32), payload), row, {}

    return fs.aggregate.Transform(
        "rounded",
        client=client,
        facts=lambda facts: facts._replace(integers=True, bits=bits, largest=float(largest)),
        step=lambda state, incoming, bound, dim: bound / largest,
    )


def chains() -> dict[str, Any]:
    """Name to transforms."""
    a = fs.aggregate
    return {
        "clip": (a.clip_by_l2(1.0),),
        "clip_noise": (a.clip_by_l2(1.0), a.gaussian_noise(1e-3)),
        "adaptive_noise": (a.adaptive_clip(1.0), a.gaussian_noise(1e-3)),
        "secure_sum": (a.clip_by_l2(1.0), rounded(16), a.secure_sum()),
        "skellam": (a.clip_by_l2(1.0), rounded(16), a.skellam_noise(1e-3), a.secure_sum()),
        "quantize": (a.clip_by_l2(1.0), a.quantize(8)),
        "rotated": (a.clip_by_l2(1.0), a.rotate(), a.quantize(8), a.secure_sum()),
        "drive": (a.drive(),),
        "discrete_gaussian": (a.clip_by_l2(1.0), rounded(16), a.discrete_gaussian_noise(1e-3), a.secure_sum()),
    }


def rules() -> dict[str, fs.aggregate.Reducer]:
    """Name to reducer, of a fifth of 50 clients that are bad."""
    a, f = fs.aggregate, 10
    return {
        "median": a.median(),
        "trimmed_mean": a.trimmed_mean(f),
        "krum": a.krum(f),
        "multi_krum": a.multi_krum(f),
        "bulyan": a.bulyan(f),
        "geometric_median": a.geometric_median(),
        "centered_clipping": a.centered_clipping(1.0),
        "norm_bound": a.norm_bound("median"),
        "dnc": a.dnc(f),
        "nnm": a.nnm(f, a.trimmed_mean(f)),
        "bucketing": a.bucketing(2, a.trimmed_mean(5)),
    }


def attacks() -> dict[str, fs.attacks.Attack]:
    """Name to attack, by a fifth of the clients on a mean."""
    return {
        "label_flip": fs.attacks.label_flip("reverse", classes=62),
        "sign_flip": fs.attacks.sign_flip(3.0),
        "gaussian": fs.attacks.gaussian(1.0),
        "alie": fs.attacks.alie(),
        "ipm": fs.attacks.ipm(0.5),
        "min_max": fs.attacks.min_max(),
        "min_sum": fs.attacks.min_sum(),
        "mimic": fs.attacks.mimic(0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=["W1", "W3"], default="W1")
    parser.add_argument("--pairs", type=int, default=30)
    every = {"chains": chains(), "rules": rules(), "attacks": attacks()}
    names = [name for group in every.values() for name in group]
    parser.add_argument(
        "--of", default="clip,clip_noise,secure_sum", help=f"{', '.join(every)}, or of {', '.join(names)}"
    )
    parser.add_argument("--devices", type=int, default=None)
    args = parser.parse_args()
    fs.use_cpu_cores(args.devices)
    work = works.load(args.work)
    task = make_task(args.work, work)
    data = fs.FederatedData({"x": work.x, "y": work.y}, work.offsets)
    cohort, population = len(work.cohorts[0]), len(work.offsets) - 1

    def start(name: str | None) -> tuple[fs.Simulation, fs.RoundState]:
        chain = fs.aggregate.chain(*every["chains"].get(name, ()), reduce=every["rules"].get(name, UNIFORM))
        algorithm = fs.fedavg(task, optax.sgd(0.1 * work.learning_rate), aggregator=chain)
        if name in every["attacks"]:
            algorithm = fs.attacks.infect(algorithm, every["attacks"][name], 0.2, num_clients=population)
        sampler = fs.sampler.uniform(cohort)
        sim = fs.Simulation(algorithm, data, sampler, fs.Batching(work.batch_size, shuffle=False))
        return sim, sim.init({"layers": work.params})

    def timed(sim: fs.Simulation, state: fs.RoundState) -> tuple[float, fs.RoundState]:
        begin = time.perf_counter()
        after, _ = sim.step(state)
        jax.block_until_ready(after.server)
        return time.perf_counter() - begin, after

    plain, plain_state = start(None)
    results = {}
    for name in [each for word in args.of.split(",") for each in every.get(word, [word])]:
        sim, state = start(name)
        bare: list[float] = []
        with_chain: list[float] = []
        for _ in range(args.pairs + 2):
            seconds, plain_state = timed(plain, plain_state)
            bare.append(seconds)
            seconds, state = timed(sim, state)
            with_chain.append(seconds)
        ratios = [b / a for a, b in zip(bare[2:], with_chain[2:], strict=True)]
        results[name] = {"ratio": spread(ratios), "round_ms": spread([1e3 * t for t in with_chain[2:]])}
    devices = f"{len(plain.devices)} {plain.devices[0].device_kind}"
    about = {"work": args.work, "clients": f"{cohort} of {population}", "devices": devices, "jax": jax.__version__}
    print(json.dumps({**about, "pairs": args.pairs, "of": results}))


if __name__ == "__main__":
    main()
