"""flwr: its FedAvg over its simulation with Ray, one actor a core, a PyTorch client of one thread.

There are as many nodes as the cohort has clients, and each message says which client the node is: the fewest nodes that
Flower can do with. An actor keeps the data between clients.
"""

import os
from pathlib import Path

os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)  # of the actors
os.environ.setdefault("RAY_DISABLE_DOCKER_CPU_WARNING", "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import flwr_client
import shared
import torch
import torch_model
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


class FixedCohorts(FedAvg):
    """FedAvg that trains given clients, and stops the clock when a round is aggregated."""

    def __init__(self, work, path, clock):
        super().__init__(fraction_evaluate=0.0)
        self.work, self.path, self.clock = work, path, clock

    def configure_train(self, server_round, arrays, config, grid):
        cohort = self.work.cohorts[server_round - 1].tolist()
        nodes = sorted(grid.get_node_ids())
        for node, client in zip(nodes, cohort, strict=True):
            config = ConfigRecord({"client": client, "path": self.path, "work": self.work.name})
            content = RecordDict({"arrays": arrays, "config": config})
            yield Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)

    def aggregate_train(self, server_round, replies):
        after = super().aggregate_train(server_round, replies)
        self.clock.tick()
        return after


def main() -> None:
    args = shared.arguments()
    work = shared.load(args)
    model = torch_model.make(work)
    clock = shared.Clock()
    results = []
    server = ServerApp()

    @server.main()
    def run(grid, context):
        strategy = FixedCohorts(work, os.path.abspath(args.path), clock)
        first = ArrayRecord([p.detach().numpy() for p in model.parameters()])
        results.append(strategy.start(grid, first, num_rounds=len(work.cohorts)))

    cores = len(os.sched_getaffinity(0))
    backend = {"init_args": {"num_cpus": cores}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, flwr_client.app, work.cohorts.shape[1], backend_config=backend)
    with torch.no_grad():
        for p, value in zip(model.parameters(), results[0].arrays.to_numpy_ndarrays(), strict=True):
            p.copy_(torch.from_numpy(value))
    shared.report(args, work, clock, torch_model.layers(model), "flwr", "ray", "torch", "numpy")


if __name__ == "__main__":
    main()
