"""Faster arithmetic for frozen layers on a CPU, and memory that is not given back between steps; called by models/.

PyTorch computes float32 products with MKL, whose fast kernels are for Intel's processors alone: on others it runs at
less than half of what oneDNN reaches, which PyTorch brings too (docs/performance.md). Its products are of the same
precision.
"""

from __future__ import annotations

import ctypes
import platform
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MMAP_THRESHOLD = 32 * 2**20
"""Bytes. The largest that glibc takes."""
TRIM_THRESHOLD = 2**30
"""Bytes of free memory at the top of the heap that are kept."""
TOP_PAD = 64 * 2**20
"""Bytes by which the heap grows."""


def speed_up(module: nn.Module) -> None:
    """Gives the Linears of a model on a CPU oneDNN's products; those of frozen ones have no gradients of weights."""
    for layer in module.modules():
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            form = _frozen_linear if _is_frozen(layer) else _trained_linear
            layer.forward = partial(form, layer)  # type: ignore[method-assign]


def keep_heap() -> None:
    """Makes glibc keep what is freed. By default each tensor over 128 kB is mapped anew, and zeroed page by page."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for option, value in ((-3, MMAP_THRESHOLD), (-1, TRIM_THRESHOLD), (-2, TOP_PAD)):
            library.mallopt(option, value)


def _is_frozen(layer: nn.Linear) -> bool:
    return not any(parameter.requires_grad for parameter in layer.parameters())


def products(x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
    """x_d W_d^T + b_d for each lane d. x (D, n, in), weights (D, out, in), biases (D, 1, out), (out,) or None."""
    if x.device.type == "cpu" and x.dtype == weights.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        y: Tensor = _TrainedProducts.apply(x, weights)
        return y if biases is None else y + biases
    return torch.bmm(x, weights.mT) if biases is None else torch.baddbmm(biases, x, weights.mT)


def _trained_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A large bias-free product of few columns is what MKL is slowest at, and LoRA is made of these."""
    if x.dtype != torch.float32 or layer.weight.dtype != x.dtype:
        return nn.functional.linear(x, layer.weight, layer.bias)
    return products(x.reshape(1, -1, x.shape[-1]), layer.weight.unsqueeze(0), layer.bias).view(*x.shape[:-1], -1)


def _frozen_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    if x.dtype != layer.weight.dtype or x.dtype not in (torch.float32, torch.bfloat16):
        return nn.functional.linear(x, layer.weight, layer.bias)
    # Flat, because oneDNN gives back a view of anything else, which autograd lets nobody change in place.
    y: Tensor = _FrozenProduct.apply(x.flatten(0, -2), layer.weight, layer.bias)
    return y.view(*x.shape[:-1], -1)


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b, x (n, in), of constants W (out, in) and b (out,) or None. Differentiable as often as one likes."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # Kept as an attribute: autograd would copy nothing, but the weights are no variables of the graph.
        ctx.weight = inputs[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        y: Tensor = _FrozenProduct.apply(x.flatten(0, -2), weight, bias)
        return y.view(*x.shape[:-1], -1), 0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _FrozenProduct.apply(grads[0], ctx.weight.t(), None), None, None


class _TrainedProducts(torch.autograd.Function):
    """x_d W_d^T. x (D, n, in), w (D, out, in) -> (D, n, out)"""

    @staticmethod
    def forward(x: Tensor, weights: Tensor) -> Tensor:
        return torch.stack([_product(each, w) for each, w in zip(x, weights, strict=True)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weights: Tensor) -> tuple[Tensor, int]:
        def first(value: Tensor, dim: int | None) -> Tensor:
            return value.expand(info.batch_size, -1, -1, -1) if dim is None else value.movedim(dim, 0)

        x, weights = first(x, in_dims[0]), first(weights, in_dims[1])
        return torch.matmul(x, weights.mT), 0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x, weights), e = ctx.saved_tensors, grads[0]
        if torch.is_grad_enabled():  # a second derivative is wanted
            return torch.bmm(e, weights), torch.bmm(e.mT, x)
        to_x, to_weights = ctx.needs_input_grad
        into = torch.stack([_product(each, w.t()) for each, w in zip(e, weights, strict=True)]) if to_x else None
        # Few rows by many columns, not the other way round, which takes ten times as long.
        wide = x.shape[2] >= e.shape[2]
        own = (torch.bmm(e.mT, x) if wide else torch.bmm(x.mT, e).mT) if to_weights else None
        return into, own


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
