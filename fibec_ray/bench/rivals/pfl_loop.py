"""Apple's pfl on two processes; `torchrun --nproc-per-node 2 -m fibec_ray.bench.rivals.pfl_loop ARRAYS OUT DTYPE`.

Tuning: pfl's own design does most of it (one model per process, users in a loop, one all-reduce per round). Besides,
the local optimiser is fused and has trainable parameters only, users' batches are slices of one array, and evaluation
is off, except pfl's own in round 0, which is not measured.

Users are named by round and place in the cohort. pfl's processes take users in turn, so they train the same cohorts as
all contenders.
"""

from __future__ import annotations

import itertools
import sys
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import pfl.internal.ops.pytorch_ops as ops
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.bench.rivals import training
from fibec_ray.bench.rivals.training import Arguments, Classifier, Workload

NEVER = 1_000_000


class PflClassifier(Classifier):
    """The classifier with the two methods that pfl needs."""

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of a batch."""
        return F.cross_entropy(self(tokens), labels)

    @torch.no_grad()
    def metrics(self, tokens: Tensor, labels: Tensor) -> dict[str, Any]:
        """The loss as pfl's weighted metric."""
        return {"loss": Weighted(float(self.loss(tokens, labels)) * len(labels), len(labels))}


class Ends(TrainingProcessCallback):
    """Records when each round ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """Note the time."""
        self.seconds.append(time.time())
        return False, Metrics()


def users(workload: Workload) -> FederatedDataset:
    """A data set that gives the users of the first cohort, then those of the second, and so on."""
    order = itertools.product(range(workload.rounds), range(workload.cohort_size))
    return FederatedDataset(lambda user: Dataset(list(workload.data(*user))), lambda: next(order))


def optimizer(weight_decay: float, parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Fused AdamW over trainable parameters."""
    return training.adamw([parameter for parameter in parameters if parameter.requires_grad], lr, weight_decay)


def run(arguments: Arguments) -> None:
    """Run the workload."""
    torch.set_num_threads(1)
    workload = training.load_workload(arguments.arrays)
    settings, module = workload.settings, PflClassifier(workload, arguments.dtype)
    training.load(module, workload.initial)
    central = torch.optim.SGD(module.trainable().values(), lr=1.0)
    model = PyTorchModel(module, partial(optimizer, settings["weight_decay"]), central)
    data, ends = users(workload), Ends()
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(workload.rounds, NEVER, workload.cohort_size, None),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=settings["learning_rate"],
            local_batch_size=workload.batch_size,
            local_max_grad_norm=settings["clip"],
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=workload.samples_per_device),
        callbacks=[ends],
    )
    if ops.distributed.global_rank == 0:
        training.report(arguments, ends.seconds, training.read(module), version("pfl"))


if __name__ == "__main__":
    run(Arguments.of(sys.argv))
