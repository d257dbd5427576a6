"""Frozen weights that stay where they are, memory-mapped or on another GPU, and visit the device that computes.

Nothing of a weight is kept between the forward pass and the backward pass, which fetches it again: the device holds two
weights at a time (prefetch.py), beside embeddings, norms, adapters and activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


class MultiGpu:
    """Which weights of a base lie on which GPU of an actor that has several (`backend: spread`).

    The first GPU does all the computing. The others store the layers that do not fit there. The adapter and its
    gradients stay on the first one, so every method gives the same bits as on a single GPU.

    first: bytes that the GPU which computes has for the base; others: the same of the others, in their order.

    What is not asked for here, such as embeddings and norms, is on the first one: they come off it beforehand.
    """

    def __init__(self, first: int, others: Sequence[int]):
        self._free = [first, *others]

    def index(self, num_bytes: int) -> int:
        """The first GPU that has room, which it then has no more."""
        for i, free in enumerate(self._free):
            if num_bytes <= free:
                self._free[i] -= num_bytes
                return i
        return 0  # to the last bytes of memory: torch says so if there is no room

    def place(self, weight: Tensor) -> Tensor | None:
        """The weight on the GPU where it stays; None: on the one that computes."""
        index = self.index(weight.nbytes)
        return weight.to(torch.device("cuda", index)) if index else None


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
