"""The ways to multiply by frozen weights on a CPU (`fleet.products`), and which of them this machine has.

torch           PyTorch's Linear, in the base's dtype
onednn          oneDNN, which PyTorch includes; with a bfloat16 base this is PyTorch's Linear, which calls oneDNN
torch_float32   only for a bfloat16 base: PyTorch in float32, casting the weights block by block
onednn_float32  the same with oneDNN

All give the same results up to rounding. Which is fastest depends on the processor (`product_trial.py`). On a GPU they
have no effect.
"""

from __future__ import annotations

from platform import machine
from typing import get_args

from fibec_ray.errors import ModelError
from fibec_ray.types import Products

NAMES: tuple[Products, ...] = get_args(Products)
OF_BFLOAT16: tuple[Products, ...] = ("torch_float32", "onednn_float32")
"""For a bfloat16 base only."""


def has_onednn() -> bool:
    """True if PyTorch was built with oneDNN, which some platforms lack."""
    import torch

    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_bfloat16() -> bool:
    """True if this processor has instructions for bfloat16 products, or if torch cannot tell.

    oneDNN also multiplies bfloat16 with other AVX-512 instructions, at a third of float32's speed.
    """
    import torch

    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None) if has_onednn() else None
    if asked is None:
        return True
    avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", None) if machine() in ("x86_64", "AMD64") else None
    return bool(asked()) and (avx512 is None or bool(avx512()))


def candidates(dtype: str) -> tuple[Products, ...]:
    """Products that a base of this dtype can use on this machine. The first is the default, used without a trial."""
    library = "onednn" if has_onednn() else "torch"
    if dtype == "float32":
        return ("onednn", "torch") if library == "onednn" else ("torch",)
    in_float32: tuple[Products, ...] = (
        ("onednn_float32", "torch_float32") if library == "onednn" else ("torch_float32",)
    )
    native: tuple[Products, ...] = ("onednn",) if library == "onednn" else ("torch",)
    return (*native, *in_float32) if has_bfloat16() else (*in_float32, *native)


def in_words(products: Products, dtype: str) -> str:
    """A description for messages. dtype: of the base."""
    library = "oneDNN" if products.startswith("onednn") else "PyTorch"
    if products not in OF_BFLOAT16:
        return f"{library}, in {dtype}"
    why = "bfloat16 products are slower here" if has_bfloat16() else "this CPU has no bfloat16 instructions"
    return f"{library}, in float32: {why}; the weights stay in bfloat16 and are cast block by block"


def of_older_runs() -> Products:
    """The products that runs on this machine used before `fleet.products` existed."""
    return "onednn" if has_onednn() else "torch"


def unfit(products: str, dtype: str) -> str | None:
    """Why a base of this dtype cannot use these products, and what to do; None if it can.

    products: one of NAMES, or auto.
    """
    if products in OF_BFLOAT16 and dtype != "bfloat16":
        return (
            f"fleet.products: {products} is for a bfloat16 base, but backbone.dtype is {dtype}; set it to auto, torch "
            "or onednn, or set backbone.dtype=bfloat16"
        )
    return None


def refuse_missing(products: str) -> None:
    """Raise ModelError for products that this machine's PyTorch lacks."""
    if products.startswith("onednn") and not has_onednn():
        raise ModelError(
            f"fleet.products: {products} needs oneDNN, which this machine's PyTorch lacks; start a "
            f"new run with fleet.products=auto, or with fleet.products={products.replace('onednn', 'torch')}"
        )
