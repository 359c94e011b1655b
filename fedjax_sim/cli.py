"""The command line: `fedjax-sim run` trains the EMNIST CNN on scikit-learn's digits by federated averaging."""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Iterator
from typing import Literal

from fedjax_sim.core.errors import FedSimError


@dataclasses.dataclass(frozen=True)
class Run:
    """Train a CNN with FedAvg on handwritten digits that 100 clients hold, each with its own mix of classes."""

    rounds: int = 100
    """Rounds of training."""
    num_clients: int = 100
    """Clients of the population."""
    alpha: float = 0.3
    """Dirichlet concentration of the partition: the smaller, the more unlike the clients."""
    cohort_size: int = 20
    """Clients drawn each round."""
    epochs: int = 5
    """Local epochs."""
    batch_size: int = 20
    """Examples in a local batch."""
    client_lr: float = 0.1
    """Learning rate of the clients' SGD."""
    seed: int = 0
    """Seed of everything random."""
    lanes: int | Literal["auto"] = "auto"
    """Clients that a device trains side by side."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `fedjax-sim`; returns the exit status."""
    import tyro

    config = tyro.extras.subcommand_cli_from_dict(
        {"run": Run, "version": _Version},
        prog="fedjax-sim",
        description="A vectorized federated-learning simulator.",
        args=arguments,
    )
    try:
        config.start() if isinstance(config, _Version) else run(config)
    except FedSimError as error:
        print(f"fedjax-sim: {error}", file=sys.stderr)
        return 2
    return 0


@dataclasses.dataclass(frozen=True)
class _Version:
    """Print the version."""

    def start(self) -> None:
        from importlib.metadata import version

        print(version("fedjax-sim"))


def run(config: Run) -> None:
    """Train, with at least a line a second, and print the test accuracy and its spread over clients."""
    import optax
    from rich.console import Console
    from rich.table import Table

    import fedjax_sim as fs

    begin = time.perf_counter()
    fs.use_cpu_cores()
    digits = fs.data.load("digits")
    partition = fs.partition.dirichlet(config.alpha, config.num_clients)
    clients = fs.data.federate(digits.train, partition, seed=config.seed)
    task = fs.classification(fs.models.CNN(num_classes=10), digits.train)
    algorithm = fs.fedavg(task, optax.sgd(config.client_lr))
    sim = fs.Simulation(
        algorithm,
        clients,
        fs.sampler.uniform(config.cohort_size),
        fs.Batching(config.batch_size, epochs=config.epochs),
        seed=config.seed,
        lanes=config.lanes,
    )
    print(sim, flush=True)
    print("The partition is synthetic: the digits come without their writers' names.", flush=True)

    with _ticking("compiling") as ticker:

        def show(metrics: fs.RoundMetrics) -> None:
            ticker.message = (
                f"round {metrics.round + 1}/{config.rounds}: "
                f"loss {metrics['client/loss']:.3f}, accuracy {metrics['client/accuracy']:.3f} "
                f"on {metrics['cohort/clients']} clients, {metrics['cohort/examples']} examples"
            )

        state, _ = sim.run(sim.init(), config.rounds, callbacks=[show])
        print(ticker.message, flush=True)
        ticker.message = "evaluating"
        params = sim.params(state)
        test = fs.evaluate(task, params, digits.test)
        quantiles = fs.evaluate_clients(task, params, clients).quantiles("accuracy")

    table = Table(title="Accuracy of the global model on each client's own examples", min_width=60)
    for p in quantiles:
        table.add_column(f"{100 * p:g} %", justify="right")
    table.add_row(*(f"{value:.3f}" for value in quantiles.values()))
    Console().print(table)
    print(f"test accuracy {test['accuracy']:.4f}, test loss {test['loss']:.4f} on {len(digits.test['y'])} examples")
    print(f"{config.rounds} rounds in {time.perf_counter() - begin:.1f} s, seed {config.seed}")


class _Ticker:
    def __init__(self, message: str):
        self.message = message


@contextlib.contextmanager
def _ticking(message: str) -> Iterator[_Ticker]:
    """Print the ticker's message once a second, whatever the main thread waits for."""
    ticker, stop, begin = _Ticker(message), threading.Event(), time.perf_counter()

    def tick() -> None:
        while not stop.wait(0.9):
            print(f"[{time.perf_counter() - begin:5.1f} s] {ticker.message}", flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield ticker
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
