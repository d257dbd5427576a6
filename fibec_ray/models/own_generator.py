"""Lets code that draws from torch's global generator draw from another one, in this thread alone.

The initialisers of transformers take no generator, and the global one is shared by all threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CHUNK = 1 << 15
"""Values drawn at a time. torch starts no threads of its own for so few."""

_GLOBAL = Lock()
"""held while the global generator is seeded"""


class OwnGenerator(TorchDispatchMode):
    """Inside the block, random operations of this thread use the given CPU generator.

    Narrow dtypes are drawn in float32 and rounded, so bfloat16 values are the rounded float32 ones.
    """

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation of torch."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or _draws_nothing(args):
            return func(*args, **kwargs)
        if not any(argument.name == "generator" for argument in func._schema.arguments):
            return self._seeding_global(func, args, kwargs)
        kwargs = {**kwargs, "generator": self._generator}
        if func._schema.name.endswith("_") and args[0].is_floating_point():
            return _fill(args[0], func, args[1:], kwargs)
        return func(*args, **kwargs)

    def _seeding_global(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation that takes no generator, such as torch.randn."""
        seed = int(torch.randint(1 << 62, (), generator=self._generator))
        with _GLOBAL, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return func(*args, **kwargs)


def _draws_nothing(args: Sequence[Any]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].is_meta


def _fill(tensor: Tensor, draw: Callable[..., Tensor], rest: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Fill a tensor by an operation such as normal_, a chunk at a time."""
    if not tensor.is_contiguous():
        return tensor.copy_(_fill(torch.empty(tensor.shape, dtype=tensor.dtype), draw, rest, kwargs))
    buffer = torch.empty(min(CHUNK, tensor.numel())) if tensor.element_size() < 4 else None
    for part in tensor.view(-1).split(CHUNK):
        if buffer is None:
            draw(part, *rest, **kwargs)
        else:
            part.copy_(draw(buffer[: len(part)], *rest, **kwargs))
    return tensor
