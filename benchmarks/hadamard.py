"""The Walsh-Hadamard transform's time over that of a copy of the array, for 2^10 to 2^22 numbers.

python benchmarks/hadamard.py [--pairs 30]

Prints JSON: for each size, the median and the quartiles of the ratio over alternating pairs.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate.numerics.hadamard import hadamard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    pairs = parser.parse_args().pairs
    transform, copy = jax.jit(hadamard), jax.jit(jnp.copy)
    found = {}
    for k in range(10, 23):
        x = jax.random.normal(jax.random.key(k), (2**k,))
        times: dict[str, list[float]] = {"transform": [], "copy": []}
        repeats = max(1, 2**20 >> k)
        for pair in range(pairs + 2):
            for name, function in (("transform", transform), ("copy", copy)):
                start = time.perf_counter()
                for _ in range(repeats):
                    jax.block_until_ready(function(x))
                if pair > 1:
                    times[name].append((time.perf_counter() - start) / repeats)
        ratios = np.divide(times["transform"], times["copy"])
        low, middle, high = np.percentile(ratios, [25, 50, 75]).round(2).tolist()
        milliseconds = {name: round(1e3 * float(np.median(values)), 4) for name, values in times.items()}
        found[f"2^{k}"] = {"ratio": middle, "quartiles": [low, high], "ms": milliseconds}
    print(json.dumps({"platform": jax.devices()[0].platform, "jax": jax.__version__, "pairs": pairs, "sizes": found}))


if __name__ == "__main__":
    main()
