"""Faster arithmetic for frozen layers on a CPU, and memory that is kept between steps.

PyTorch computes float32 products with MKL, whose fast kernels are for Intel's processors alone: on others it runs at
less than half of what oneDNN reaches, which PyTorch brings too (`python -m fibec_ray.bench.kernels`). Its products are
of the same precision.
"""

from __future__ import annotations

import ctypes
import platform
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MMAP_THRESHOLD = (-3, 32 * 2**20)
"""glibc's number of the option (malloc.h), and bytes: the largest that it takes."""
TRIM_THRESHOLD = (-1, 2**30)
"""The same: bytes of free memory at the top of the heap that are kept."""
TOP_PAD = (-2, 64 * 2**20)
"""The same: bytes by which the heap grows."""


def speed_up(module: nn.Module, device: torch.device) -> None:
    """Gives the frozen Linears of a model oneDNN's product, with gradients of their inputs alone, on a CPU.

    device: where the model will compute; its weights may still be elsewhere.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    for layer in module.modules():
        if type(layer) is nn.Linear and not any(parameter.requires_grad for parameter in layer.parameters()):
            layer.forward = partial(_linear, layer)  # type: ignore[method-assign]


def keep_heap() -> None:
    """Makes glibc keep what is freed. By default each tensor over 128 kB is mapped anew, and zeroed page by page."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for option, value in (MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD):
            library.mallopt(option, value)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    # In bfloat16 PyTorch takes oneDNN's product itself.
    if x.dtype != torch.float32 or layer.weight.dtype != torch.float32:
        return nn.functional.linear(x, layer.weight, layer.bias)
    # Flat, because oneDNN gives back a view of anything else, which autograd lets nobody change in place.
    return _product(x.flatten(0, -2), layer.weight, layer.bias).view(*x.shape[:-1], -1)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """_FrozenProduct, with its shapes. Function.apply inspects the signature of `forward` at each call, which is of use
    to torch.func alone, and takes as long as a small product."""
    if torch._C._are_functorch_transforms_active():
        under_transform: Tensor = _FrozenProduct.apply(x, weight, bias)
        return under_transform
    y: Tensor = super(torch.autograd.Function, _FrozenProduct).apply(x, weight, bias)
    return y


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b, x (n, in), of constants W (out, in) and b (out,) or None. Differentiable as often as one likes."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # An attribute, as no gradient of it is ever wanted: it is no saved variable of the graph.
        ctx.weight = inputs[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return _product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1), 0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _product(grads[0], ctx.weight.t(), None), None, None
