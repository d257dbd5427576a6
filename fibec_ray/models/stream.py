"""Frozen weights that stay where they are, memory-mapped or on another GPU, and visit the device that computes.

Nothing of a weight is kept between the forward pass and the backward pass, which fetches it again: the device holds two
weights at a time (prefetch.py), beside embeddings, norms, adapters and activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.models.prefetch import Prefetcher, prefetcher
from fibec_ray.parts.peft.base import is_transposed


def stream(
    module: nn.Module, device: torch.device, place: Callable[[Tensor], Tensor | None] = lambda weight: weight
) -> Prefetcher:
    """Takes the weights of the frozen products out of the module, so that `module.to(device)` leaves them behind.

    place: the weight where it stays; None: it is left in the module.
    """
    visits = prefetcher(device)
    for layer in _products(module):
        kept = place(layer.weight.detach())
        if kept is not None:
            del layer._parameters["weight"]
            layer.forward = partial(_product, layer, kept, visits)
    return visits


def bytes_that_stay(module: nn.Module) -> int:
    """Of the parameters that are no weights of products: they are with what computes, however the base is held."""
    products = {id(layer) for layer in _products(module)}
    stay = {
        id(p): p.nbytes
        for layer in module.modules()
        for name, p in layer.named_parameters(recurse=False)
        if id(layer) not in products or name != "weight"
    }
    return sum(stay.values())


def _products(module: nn.Module) -> Iterator[Any]:
    """Linears, and GPT-2's, which transformers calls Conv1D."""
    for layer in module.modules():
        if (type(layer) is nn.Linear or is_transposed(layer)) and not any(p.requires_grad for p in layer.parameters()):
            yield layer


def _product(layer: Any, weight: Tensor, visits: Prefetcher, x: Tensor) -> Tensor:
    y: Tensor = StreamedProduct.apply(x, weight, visits, type(layer) is not nn.Linear)
    return y if layer.bias is None else y + layer.bias


class StreamedProduct(torch.autograd.Function):
    """x W^T, x (..., in) on the device, W (out, in) anywhere; flipped: x W, W (in, out). The gradient is
    differentiable again."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, visits: Prefetcher, flipped: bool) -> Tensor:
        there = visits.fetch(weight)
        y = F.linear(x, there.t() if flipped else there)
        visits.ahead()  # now that the product is queued
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # No saved tensor: autograd would keep a reference to the device's copy.
        _, ctx.weight, ctx.visits, ctx.flipped = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return StreamedProduct.apply(grads[0], ctx.weight, ctx.visits, not ctx.flipped), None, None, None
