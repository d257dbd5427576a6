"""Matrix products of frozen layers on a CPU, and a heap that keeps freed memory between steps.

Which library multiplies fastest depends on the processor. PyTorch computes float32 products with MKL, whose fast
kernels are for Intel processors: on AMD processors with AVX-512, oneDNN is more than twice as fast. Processors without
bfloat16 instructions multiply bfloat16 forty times slower than float32. `products.py` has the names of the choices,
`product_trial.py` chooses, and `python -m fibec_ray.bench.kernels` measures all of them.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from fibec_ray.models.products import OF_BFLOAT16, candidates, refuse_missing
from fibec_ray.parts.peft.base import is_transposed
from fibec_ray.types import Products

MMAP_THRESHOLD = (-3, 32 * 2**20)
"""glibc's option number (malloc.h) and its largest value in bytes."""
TRIM_THRESHOLD = (-1, 2**30)
"""Option number, and bytes of free memory at the top of the heap to keep."""
TOP_PAD = (-2, 64 * 2**20)
"""Option number, and bytes by which the heap grows."""
BLOCK = 2**20
"""Weights that are cast to float32 at a time: 4 MB, so that a cast layer needs little memory."""
LEAST_ROWS = 64
"""Fewest outputs of a block, so that its product stays efficient however many inputs it has."""

Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x (n, in), W (out, in), b (out,) or None -> x W^T + b"""


def speed_up(module: nn.Module, device: torch.device, products: Products | Literal["auto"] = "auto") -> None:
    """On a CPU, give a model's frozen layers the chosen product, with gradients only for their inputs.

    device: where the model will compute; its weights may still be elsewhere. products: auto is this
    processor's default, without a trial. Raises ModelError if this machine does not have them.
    """
    if device.type != "cpu":
        return
    if products != "auto":
        refuse_missing(products)
    for layer in products_of(module):
        if not any(parameter.requires_grad for parameter in layer.parameters()):
            multiply = multiplier(products, layer.weight.dtype)
            if multiply is not None:
                layer.forward = partial(_product, layer, layer.weight.dtype, multiply)
    if usual_if_auto(products, "bfloat16") in OF_BFLOAT16:
        for layer in module.modules():
            if isinstance(layer, _ConvNd) and not any(parameter.requires_grad for parameter in layer.parameters()):
                layer.forward = partial(_convolution_in_float32, layer)


def usual_if_auto(products: Products | Literal["auto"], dtype: str) -> Products:
    """The given products; for `auto` this processor's default."""
    return candidates(dtype)[0] if products == "auto" else products


def products_of(module: nn.Module) -> Iterator[Any]:
    """A model's layers that multiply by a matrix: Linears, and GPT-2's Conv1D."""
    return (layer for layer in module.modules() if type(layer) is nn.Linear or is_transposed(layer))


def multiplier(products: Products | Literal["auto"], dtype: torch.dtype) -> Multiply | None:
    """The function that multiplies weights of a dtype; None for PyTorch's own Linear."""
    products = usual_if_auto(products, "bfloat16" if dtype == torch.bfloat16 else "float32")
    library = onednn if products.startswith("onednn") else F.linear
    if dtype == torch.bfloat16 and products.endswith("float32"):
        return partial(in_float32, library)
    # In bfloat16 PyTorch uses oneDNN itself.
    return onednn if dtype == torch.float32 and library is onednn else None


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product, which does not copy transposed weights. All tensors are float32."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def in_float32(multiply: Multiply, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product of bfloat16 tensors in float32, rounded to bfloat16 at the end. multiply: of float32 tensors.

    Weights are cast one block of outputs at a time.
    """
    wide, blocks = x.float(), weight.split(max(LEAST_ROWS, BLOCK // weight.shape[1]))
    biases = [None] * len(blocks) if bias is None else bias.float().split(len(blocks[0]))
    parts = [multiply(wide, _cast(block), own).to(x.dtype) for block, own in zip(blocks, biases, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _cast(block: Tensor) -> Tensor:
    """The block in float32. A transposed one stays transposed: copying along its rows would be slow."""
    return block.t().float().t() if block.stride(0) < block.stride(1) else block.float()


def keep_heap() -> None:
    """Make glibc keep freed memory. By default each tensor over 128 kB is mapped anew and zeroed page by page."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for option, value in (MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD):
            library.mallopt(option, value)


def _product(layer: Any, dtype: torch.dtype, multiply: Multiply, x: Tensor) -> Tensor:
    """The layer's output. multiply: for tensors of `dtype`; PyTorch multiplies if the model has been cast since."""
    weight = layer.weight.t() if is_transposed(layer) else layer.weight
    if not x.dtype == weight.dtype == dtype:
        return F.linear(x, weight, layer.bias)
    # Flat, because oneDNN returns a view otherwise, which autograd forbids to change in place.
    return frozen_product(x.flatten(0, -2), weight, layer.bias, multiply).view(*x.shape[:-1], -1)


def _convolution_in_float32(layer: _ConvNd, x: Tensor) -> Tensor:
    """A frozen convolution of a bfloat16 base in float32. It has few weights, so they are cast all at once."""
    wide, bias = layer.weight.float(), None if layer.bias is None else layer.bias.float()
    y: Tensor = layer._conv_forward(x.float(), wide, bias)
    return y.to(x.dtype)


def frozen_product(x: Tensor, weight: Tensor, bias: Tensor | None, multiply: Multiply) -> Tensor:
    """x W^T + b, x (n, in), with constant W (out, in) and b (out,) or None. Differentiable any number of times."""
    # Skips Function.apply's inspection of `forward`, which takes as long as a small product.
    if torch._C._are_functorch_transforms_active():
        under_transform: Tensor = _FrozenProduct.apply(x, weight, bias, multiply)
        return under_transform
    y: Tensor = super(torch.autograd.Function, _FrozenProduct).apply(x, weight, bias, multiply)
    return y


class _FrozenProduct(torch.autograd.Function):
    """See `frozen_product`."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, multiply: Multiply) -> Tensor:
        return multiply(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # Attributes instead of saved tensors, since the weight never needs a gradient.
        _, ctx.weight, _, ctx.multiply = inputs

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None, multiply: Multiply
    ) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return frozen_product(x.flatten(0, -2), weight, bias, multiply).view(*x.shape[:-1], -1), 0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return frozen_product(grads[0], ctx.weight.t(), None, ctx.multiply), None, None, None
