"""Gradients of a model that trains one device at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fibec_ray.curvature.per_sample import Caught, catch
from fibec_ray.model_types import Batch, Outputs
from fibec_ray.tensors import Tensors


class Named:
    """Implements `load`, `read` and `server_only` of `LocalModel`."""

    trainable: Mapping[str, nn.Parameter]
    server_only_values: Mapping[str, nn.Parameter] = {}

    @property
    def server_only(self) -> Collection[str]:
        """See `LocalModel.server_only`."""
        return self.server_only_values.keys()

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """See `LocalModel.load`."""
        tensors = {**self.trainable, **self.server_only_values}
        for name, value in values.items():
            tensors[name].copy_(value)

    def read(self, names: Collection[str] | None = None) -> Tensors:
        """See `LocalModel.read`."""
        tensors = {**self.trainable, **self.server_only_values}
        return {n: p.detach().cpu().clone() for n, p in tensors.items() if names is None or n in names}


class Alone(Named):
    """Implements `per_sample_grads` and `grad` of `LocalModel`, from `forward` and `holders`."""

    forward: Any
    holders: Any

    def per_sample_grads(
        self, batch: Batch, names: Collection[str] = (), embeds: Tensor | None = None, hidden: bool = False
    ) -> tuple[Outputs, Caught]:
        """See `LocalModel.per_sample_grads`."""
        with torch.enable_grad(), catch(self.holders, names, batch.num_samples, batch.rows_each) as caught:
            return self.forward(batch, embeds=embeds, hidden=hidden), caught

    def grad(
        self, value: Tensor, tensors: Sequence[Tensor], cotangent: Tensor | None = None, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """See `LocalModel.grad`."""
        return list(self.derive([value], tensors, [cotangent], retain_graph))

    def derive(
        self, values: Sequence[Tensor], tensors: Sequence[Tensor], cotangents: Any, retain_graph: bool
    ) -> Sequence[Tensor | None]:
        """Gradients of the sum of the values, each times its cotangent, with respect to the tensors."""
        return torch.autograd.grad(values, tensors, cotangents, retain_graph, allow_unused=True)
