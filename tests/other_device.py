"""Passes on another device than the CPU, without one: PyTorch's meta device has shapes but no values.

Reading a value back from it raises an error, and copies between it and the CPU are refused here. On a GPU each of
these would wait for all work queued on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fibec_ray.models.masks import Masks
from fibec_ray.models.torch_model import TorchModel

META = torch.device("meta")


def moved(model: TorchModel) -> TorchModel:
    """The model on the meta device. It cannot be moved back."""
    for module in model.peft_model.modules():
        module.__dict__.pop("forward", None)  # the CPU's own products
    model.peft_model.to(META)
    if model.head is not None:
        model.head.to(META)
    model.trainable = model._collect()  # the meta device's parameters are new ones
    model.device, model._masks = META, Masks(model.base, META, needed=model.attached.num_prefixes > 0)
    return model


class Transfers(TorchDispatchMode):
    """Collects the operations between the meta device and the CPU. Plain numbers (0-d tensors) do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor) and leaf.dim()]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(str(func))
        return out


@contextmanager
def without_transfers() -> Iterator[None]:
    """Fail if something was copied to or from the meta device."""
    with Transfers() as seen:
        yield
    assert not seen.found, seen.found
