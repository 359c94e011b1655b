"""Secure aggregation by the protocol: rounds without training, the key stream's speed, and memory over neighbours.

python benchmarks/secure.py [secagg_plus | bonawitz | stream | memory] [--clients 1000] [--words 100000]
    [--neighbours 20] [--dropout 0.05] [--rounds 2]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

KINDS = ("secagg_plus", "bonawitz", "stream", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--clients", type=int, default=None)
    parser.add_argument("--words", type=int, default=None)
    parser.add_argument("--neighbours", type=int, default=20)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    if args.kind == "stream":
        return print(json.dumps(stream(args.words or 100_000, args.neighbours)))
    if args.kind == "memory":
        return print(json.dumps({k: one(k) for k in (4, 20, 80)}))
    clients, words = {"secagg_plus": (1000, 100_000), "bonawitz": (100, 200_000)}[args.kind]
    return print(json.dumps(rounds(args.kind, args.clients or clients, args.words or words, args)))


def one(neighbours: int) -> dict[str, float]:
    """A process's peak with so many neighbours."""
    sizes = [
        "--clients",
        "100",
        "--words",
        "500000",
        "--neighbours",
        str(neighbours),
        "--dropout",
        "0",
        "--rounds",
        "1",
    ]
    done = subprocess.run([sys.executable, __file__, "secagg_plus", *sizes], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rounds(kind: str, clients: int, words: int, args: argparse.Namespace) -> dict[str, Any]:
    """Whole rounds, in which each client sends a vector that its data hold."""
    import fedjax_sim as fs

    fs.use_cpu_cores()
    lost = fs.secure.dropouts(upload=args.dropout)
    protocol = fs.secure.bonawitz(dropouts=lost)
    if kind == "secagg_plus":
        protocol = fs.secure.secagg_plus(args.neighbours, threshold=0.55, dropouts=lost)
    sim = summing(clients, words, protocol)
    plain = summing(clients, words, "simulated")
    state, metrics, seconds = sim.init(), {}, []
    for _ in range(args.rounds):
        start = time.perf_counter()
        state, metrics = sim.step(state)
        assert not metrics.abandoned
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    start, other = time.perf_counter(), plain.step(plain.init())[0]
    np.asarray(plain.params(other))
    degree = protocol.degree(clients)
    return {
        "protocol": protocol.name,
        "clients": clients,
        "words": words,
        "first_round_s": round(seconds[0], 2),
        "round_s": round(min(seconds[1:] or seconds), 2),
        "keystream_gb": round(4e-9 * words * (1 + degree) * clients * (1 - args.dropout), 2),
        "recovered": metrics["secure/recovered"],
        "mb_of_a_client": round(sum(metrics[f"secure/client_bytes_{s}"] for s in fs.secure.Dropouts._fields) / 1e6, 3),
        "peak_mb": peak,
        "simulated_first_round_s": round(time.perf_counter() - start, 2),
        **{f"host_s_{name}": round(value, 2) for name, value in host_seconds(protocol, clients).items()},
    }


def host_seconds(protocol, clients: int) -> dict[str, float]:
    """Seconds of all clients' and the server's own work with keys and shares, by step, measured beside the rounds."""
    import fedjax_sim as fs

    made = fs.secure.sum_of({k: np.zeros(1, np.int32) for k in range(clients)}, protocol, round=10**6)
    found = {f"clients_{step}": costs.client for step, costs in made.costs.items()}
    return found | {"server": sum(costs.server for costs in made.costs.values())}


def summing(clients: int, words: int, protocol):
    """A simulation whose clients send words alone."""
    import jax.numpy as jnp

    import fedjax_sim as fs

    a = fs.aggregate
    task = fs.Task(lambda key: jnp.zeros(words), lambda params, batch, key: batch["x"] * params[0])
    sums = a.chain(a.clip_by_l2(1.0), a.quantize(8), a.secure_sum(protocol=protocol), reduce=a.mean(weight="uniform"))
    algorithm = fs.Algorithm(
        task,
        init=lambda params: (params, None),
        client=lambda key, server, row, batches: fs.ClientUpdate(server + batches.batch(0)["x"][0]),
        server=lambda key, server, aggregate: aggregate.value,
        aggregator=sums,
    )
    values = np.random.default_rng(0).normal(size=clients).astype(np.float32)
    data = fs.FederatedData({"x": values}, np.arange(clients + 1))
    return fs.Simulation(algorithm, data, fs.sampler.uniform(clients), fs.Batching(1))


def stream(words: int, neighbours: int) -> dict[str, float]:
    """The key stream alone, on one device and with two of one core each."""
    import jax
    import jax.numpy as jnp

    import fedjax_sim as fs
    from fedjax_sim.secure import chacha

    fs.use_cpu_cores()
    devices = jax.devices()
    draw = np.random.default_rng(0)
    keys = draw.integers(2**32, size=(len(devices), neighbours, 8), dtype=np.uint32)
    signs = np.ones((len(devices), neighbours), np.uint32)
    one = jax.jit(lambda keys, signs: chacha.mask(keys, signs, words))
    all_of_them = jax.pmap(lambda keys, signs: chacha.mask(keys, signs, words))
    found = {}
    for name, run, given, count in (
        ("mb_per_s_one_device", one, (jnp.asarray(keys[0]), jnp.asarray(signs[0])), 1),
        (f"mb_per_s_{len(devices)}_devices", all_of_them, (keys, signs), len(devices)),
    ):
        jax.block_until_ready(run(*given))
        seconds = []
        for _ in range(15):
            start = time.perf_counter()
            jax.block_until_ready(run(*given))
            seconds.append(time.perf_counter() - start)
        speed = 4e-6 * words * neighbours * count / np.array(seconds)
        found |= {name: round(float(np.median(speed))), f"{name}_best": round(float(speed.max()))}
    return found


if __name__ == "__main__":
    main()
