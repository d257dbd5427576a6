"""Gradients of a model that is lent to one device alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fibec_ray.curvature.per_sample import Caught, catch
from fibec_ray.model_types import Batch, Outputs


class Alone:
    """`watched` and `grad` of `LocalModel`, from its `forward` and `holders`."""

    forward: Any
    holders: Any

    def watched(
        self, batch: Batch, names: Collection[str] = (), embeds: Tensor | None = None, hidden: bool = False
    ) -> tuple[Outputs, Caught]:
        with torch.enable_grad(), catch(self.holders, names, len(batch.labels)) as caught:
            return self.forward(batch, embeds=embeds, hidden=hidden), caught

    def grad(
        self, value: Tensor, tensors: Sequence[Tensor], cotangent: Tensor | None = None, retain_graph: bool = False
    ) -> list[Tensor | None]:
        return list(self.derive([value], tensors, [cotangent], retain_graph))

    def derive(
        self, values: Sequence[Tensor], tensors: Sequence[Tensor], cotangents: Any, retain_graph: bool
    ) -> Sequence[Tensor | None]:
        """Gradients of the sum of the values, each times its cotangent, in the tensors."""
        return torch.autograd.grad(values, tensors, cotangents, retain_graph, allow_unused=True)
