"""pfl: its FederatedAveraging over its SimulatedBackend. --threads 0: all cores. Several processes: under torchrun,

python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/peers/pfl_peer.py ...
"""

import functools

import numpy as np
import shared
import torch
import torch_model
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel


class InOrder:
    """A sampler that gives the users of the cohorts, one after another."""

    def __init__(self, users: list[int]) -> None:
        self.users, self.at = users, 0

    def __call__(self) -> int:
        self.at += 1
        return self.users[(self.at - 1) % len(self.users)]  # it is asked ahead


class Ticks(TrainingProcessCallback):
    """Stops the clock after each round."""

    def __init__(self, clock: shared.Clock) -> None:
        self.clock = clock

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.clock.tick()
        return False, Metrics()


def loss(self, x, y):
    return torch.nn.functional.cross_entropy(self(x), y)


def metrics(self, x, y):
    with torch.no_grad():
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


def main() -> None:
    args = shared.arguments(threads=0)
    if args.threads:
        torch.set_num_threads(args.threads)
    work = shared.load(args)
    module = torch_model.make(work)
    module.loss, module.metrics = functools.partial(loss, module), functools.partial(metrics, module)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    x, y = torch.from_numpy(work.x), torch.from_numpy(work.y).long()
    offsets = work.offsets.tolist()

    def dataset(user):
        rows = slice(offsets[user], offsets[user + 1])
        return PyTorchTensorDataset((x[rows], y[rows]), user_id=user)

    weights = dict(enumerate(work.sizes.tolist()))
    users = FederatedDataset(dataset, InOrder(work.cohorts.ravel().tolist()), weights)
    rounds, cohort = work.cohorts.shape
    backend = SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()])
    algorithm_params = NNAlgorithmParams(
        central_num_iterations=rounds, evaluation_frequency=10**6, train_cohort_size=cohort, val_cohort_size=0
    )
    train_params = NNTrainHyperParams(
        local_learning_rate=work.learning_rate, local_num_epochs=1, local_batch_size=work.batch_size
    )
    clock = shared.Clock()
    FederatedAveraging().run(
        algorithm_params, backend, model, train_params, callbacks=[Ticks(clock)], send_metrics_to_platform=False
    )
    if get_framework_module().distributed.global_rank == 0:
        layers = [{k: np.asarray(v) for k, v in layer.items()} for layer in torch_model.layers(module)]
        shared.report(args, work, clock, layers, "pfl", "torch", "numpy")


if __name__ == "__main__":
    main()
