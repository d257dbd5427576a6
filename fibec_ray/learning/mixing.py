"""Scores samples with a model for each of them, for solvers that mix a device's own model with the shared one.

Shapes: B samples of a batch, H hidden size, n samples to compare with.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.learning.local_update import features
from fibec_ray.model_types import Batch, LanedModel, LocalModel, Outputs, Shard
from fibec_ray.parts.solver.base import Solver
from fibec_ray.tensors import Tensors


class Mixer:
    """Mixes models for a device's test samples. The model must hold the shared values, in evaluation mode.

    memory: the solver's. shard, rows: the training samples that test samples are compared with.
    """

    def __init__(self, solver: Solver, model: LocalModel, memory: Tensors, shard: Shard, rows: Tensor):
        self._solver, self._model = solver, cast(LanedModel, model)
        device = next((value.device for value in model.trainable.values()), torch.device("cpu"))
        self._shared = {name: value.detach() for name, value in model.trainable.items()}
        self._memory = {name: value.to(device) for name, value in memory.items()}
        self._references = self._features(shard.batch(rows))

    def outputs(self, batch: Batch) -> Outputs:
        """The outputs of a batch, each sample under its own mix."""
        found = self._features(batch)
        likeness = F.cosine_similarity(found.unsqueeze(1), self._references.unsqueeze(0), dim=2).mean(1)
        out, _ = self._model.stacked(self._solver.mixed(self._shared, self._memory, likeness), batch)
        return out

    def _features(self, batch: Batch) -> Tensor:
        """(B, H) under the shared model."""
        return features(self._model.forward(batch, hidden=True), batch)
