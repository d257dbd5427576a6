"""Frozen weights that stay memory-mapped or on another GPU, and are copied to the device that computes when used.

No copy is kept between the forward and the backward pass, which fetches the weight again. The device holds two weights
at a time (prefetch.py), beside embeddings, norms, adapters and activations.
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
    """Take the weights of frozen products out of the module, so that `module.to(device)` leaves them behind.

    place: the weight where it is kept; None: it stays in the module.
    """
    visits = prefetcher(device)
    for layer in _products(module):
        kept = place(layer.weight.detach())
        if kept is not None:
            del layer._parameters["weight"]
            layer.forward = partial(_product, layer, kept, visits)
    return visits


def bytes_that_stay(module: nn.Module) -> int:
    """Bytes of the parameters other than weights of products, which always stay on the device that computes."""
    products = {id(layer) for layer in _products(module)}
    stay = {
        id(p): p.nbytes
        for layer in module.modules()
        for name, p in layer.named_parameters(recurse=False)
        if id(layer) not in products or name != "weight"
    }
    return sum(stay.values())


class MultiGpu:
    """Decides which weights of a base are kept on which GPU of an actor with several (`backend: spread`).

    The first GPU does all the computing. The others store the layers that do not fit there. The adapter and its
    gradients stay on the first one, so every method gives the same bits as on a single GPU.

    first: bytes for the base on the first GPU, without embeddings and norms, which are always there; others: on each of
    the others.
    """

    def __init__(self, first: int, others: Sequence[int]):
        self._free = [first, *others]

    def index(self, num_bytes: int) -> int:
        """The first GPU with enough room, whose free bytes are then reduced."""
        for i, free in enumerate(self._free):
            if num_bytes <= free:
                self._free[i] -= num_bytes
                return i
        return 0  # torch reports an error if there is no room

    def place(self, weight: Tensor) -> Tensor | None:
        """The weight on the GPU that keeps it; None: on the one that computes."""
        index = self.index(weight.nbytes)
        return weight.to(torch.device("cuda", index)) if index else None


def _products(module: nn.Module) -> Iterator[Any]:
    """Frozen Linears, and GPT-2's Conv1D."""
    for layer in module.modules():
        if (type(layer) is nn.Linear or is_transposed(layer)) and not any(p.requires_grad for p in layer.parameters()):
            yield layer


def _product(layer: Any, weight: Tensor, visits: Prefetcher, x: Tensor) -> Tensor:
    y: Tensor = StreamedProduct.apply(x, weight, visits, type(layer) is not nn.Linear)
    return y if layer.bias is None else y + layer.bias


class StreamedProduct(torch.autograd.Function):
    """x W^T, x (..., in) on the device, W (out, in) anywhere; flipped: x W, W (in, out). Its gradient is
    differentiable again.
    """

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
