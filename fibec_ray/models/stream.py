"""Frozen Linears whose weights stay where they are, memory-mapped, and visit the device that computes; see holding.py.

Nothing of a weight is kept between the forward pass and the backward pass, which fetches it again: the device holds one
weight at a time, beside embeddings, norms, adapters and activations.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def stream(module: nn.Module) -> None:
    """Takes the weights of the frozen Linears out of the module, so that `module.to(device)` leaves them behind."""
    for layer in module.modules():
        if type(layer) is nn.Linear and not any(p.requires_grad for p in layer.parameters()):
            weight = layer._parameters.pop("weight")
            assert weight is not None
            layer.forward = partial(_linear, layer, weight.detach())  # type: ignore[method-assign]


def _linear(layer: nn.Linear, weight: Tensor, x: Tensor) -> Tensor:
    y: Tensor = StreamedProduct.apply(x, weight)
    return y if layer.bias is None else y + layer.bias


class StreamedProduct(torch.autograd.Function):
    """x W^T, x (..., in) on the device, W (out, in) anywhere. The gradient is differentiable again."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, fetch(weight, x.device))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.weight = inputs[1]  # not a saved tensor: autograd would keep a reference to the device's copy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return StreamedProduct.apply(grads[0], ctx.weight.t()), None


def fetch(weight: Tensor, device: torch.device) -> Tensor:
    return weight.to(device, non_blocking=True)
