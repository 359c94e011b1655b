"""A step of the Shakespeare LSTM, 2 x 256, batch 4, 80 characters, on one core: fs.models.LSTM, Flax's cell, PyTorch.

    python benchmarks/recurrent.py [--torch PYTHON] [--clients 4] [--pairs 20]

PYTHON is an interpreter that has PyTorch; without one, Flax's cell alone is compared with. Each has a process of its
own on the same core, and times SGD steps whenever it is asked to, in turn: processor time a client's step. `--clients`
models with weights of their own are stepped at once under `vmap`; PyTorch steps one. JSON to the standard output.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

VOCABULARY, EMBEDDING, WIDTH, LAYERS, BATCH, LENGTH = 90, 8, 256, 2, 4, 80
STEPS = 8
"""Steps of a model that are timed together; of models under `vmap`, all of them count."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=None, help="an interpreter that has PyTorch")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--of", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.of:
        serve(torch_step() if args.of == "torch" else jax_step(args.of, args.clients))
        return
    from federated_tax import spread

    kinds = {"ours": sys.executable, "flax": sys.executable, **({"torch": args.torch} if args.torch else {})}
    workers = {name: Worker(python, name, args.clients) for name, python in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(args.pairs):
        for name, worker in workers.items():
            times[name].append(worker.ask())
    for worker in workers.values():
        worker.process.terminate()
    over = {name: [a / b for a, b in zip(times["ours"], times[name], strict=True)] for name in times if name != "ours"}
    print(
        json.dumps(
            {
                "clients": args.clients,
                **{f"ours_over_{name}": spread(ratios) for name, ratios in over.items()},
                **{f"{name}_ms": spread([1e3 * t for t in values]) for name, values in times.items()},
            }
        )
    )


class Worker:
    """A process on the first core that times a step for each line that it is sent."""

    def __init__(self, python: str, name: str, clients: int):
        command = [python, __file__, "--of", name, "--clients", str(clients)]
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def serve(step: Callable[[], None]) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for _ in range(3):
        step()
    for _ in sys.stdin:
        step()  # the caches are another process's
        begin = time.process_time()
        step()
        print((time.process_time() - begin) / STEPS, flush=True)


def jax_step(name: str, clients: int) -> Callable[[], None]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX makes its threads
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    import fedjax_sim as fs

    class Flax(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Embed(VOCABULARY, EMBEDDING)(x)
            for _ in range(LAYERS):
                h = jnp.asarray(nn.RNN(nn.OptimizedLSTMCell(WIDTH))(h))
            return nn.Dense(VOCABULARY)(h)

    model = Flax() if name == "flax" else fs.models.LSTM(VOCABULARY, EMBEDDING, WIDTH, LAYERS)
    tokens = jax.random.randint(jax.random.key(0), (clients, BATCH, LENGTH + 1), 1, VOCABULARY)

    def one(params, tokens):
        def loss(params):
            logits = jnp.asarray(model.apply(params, tokens[:, :-1]))
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        return jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params))

    run = jax.jit(jax.vmap(one), donate_argnums=0)
    first = model.init(jax.random.key(0), tokens[0, :, :-1])
    params = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], clients, 0), first)

    def step() -> None:
        nonlocal params
        for _ in range(max(1, STEPS // clients)):
            params = jax.block_until_ready(run(params, tokens))

    return step


def torch_step() -> Callable[[], None]:
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    embed, logits = torch.nn.Embedding(VOCABULARY, EMBEDDING), torch.nn.Linear(WIDTH, VOCABULARY)
    lstm = torch.nn.LSTM(EMBEDDING, WIDTH, LAYERS, batch_first=True)
    optimizer = torch.optim.SGD([*embed.parameters(), *lstm.parameters(), *logits.parameters()], 1.0)
    tokens = torch.randint(1, VOCABULARY, (BATCH, LENGTH + 1))

    def step() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            out = logits(lstm(embed(tokens[:, :-1]))[0])
            torch.nn.functional.cross_entropy(out.transpose(1, 2), tokens[:, 1:]).backward()
            optimizer.step()

    return step


if __name__ == "__main__":
    main()
