"""Faster arithmetic for frozen layers on a CPU, and memory that is kept between steps.

PyTorch computes float32 products with MKL, whose fast kernels are for Intel processors only. On others it reaches less
than half the speed of oneDNN, which PyTorch includes too (`python -m fibec_ray.bench.kernels`). Precision is the same.
"""

from __future__ import annotations

import ctypes
import platform
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MMAP_THRESHOLD = (-3, 32 * 2**20)
"""glibc's option number (malloc.h) and its largest value in bytes."""
TRIM_THRESHOLD = (-1, 2**30)
"""Option number, and bytes of free memory at the top of the heap to keep."""
TOP_PAD = (-2, 64 * 2**20)
"""Option number, and bytes by which the heap grows."""


def speed_up(module: nn.Module, device: torch.device) -> None:
    """On a CPU, use oneDNN's product in a model's frozen Linears, with gradients only for their inputs.

    device: where the model will compute; its weights may still be elsewhere.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    for layer in module.modules():
        if type(layer) is nn.Linear and not any(parameter.requires_grad for parameter in layer.parameters()):
            layer.forward = partial(_linear, layer)  # type: ignore[method-assign]


def keep_heap() -> None:
    """Make glibc keep freed memory. By default each tensor over 128 kB is mapped anew and zeroed page by page."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for option, value in (MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD):
            library.mallopt(option, value)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    # In bfloat16 PyTorch uses oneDNN itself.
    if x.dtype != torch.float32 or layer.weight.dtype != torch.float32:
        return nn.functional.linear(x, layer.weight, layer.bias)
    # Flat, because oneDNN returns a view otherwise, which autograd forbids to change in place.
    return _product(x.flatten(0, -2), layer.weight, layer.bias).view(*x.shape[:-1], -1)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Call _FrozenProduct. Skips Function.apply's inspection of `forward`, which takes as long as a small product."""
    if torch._C._are_functorch_transforms_active():
        under_transform: Tensor = _FrozenProduct.apply(x, weight, bias)
        return under_transform
    y: Tensor = super(torch.autograd.Function, _FrozenProduct).apply(x, weight, bias)
    return y


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b, x (n, in), with constant W (out, in) and b (out,) or None. Differentiable any number of times."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # An attribute instead of a saved tensor, since it never needs a gradient.
        ctx.weight = inputs[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return _product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1), 0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _product(grads[0], ctx.weight.t(), None), None, None
