"""A GPU that does not exist: real tensors in host memory, some of which count as being on `cuda:0`.

It finds what a machine without a GPU hides: tensors made on the wrong device, kernels that only CPUs have, and random
numbers that a CPU generator draws on the GPU. CPU kernels compute the values, so whole runs work, and their results can
be compared with those of the same run on the CPU.

A tensor is on the GPU if its storage is. `_Below` is a dispatch mode under autograd, so it sees every operation of the
forward and backward passes: mixing devices raises an error as on CUDA, and outputs are where the inputs are. `_Above`
is a function mode that serves requests for CUDA memory with host memory. Tensors say where they are by properties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
MEMORY = 80 * 10**9
COPIES = {"copy_", "_to_copy"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operations on a GPU tensor that accept indices from the host."""
JOINS = {"cat", "stack"}
"""Operations that do not accept host tensors without dimensions beside GPU tensors, as elementwise ones do."""
PROPERTIES = {"device": GPU, "is_cuda": True, "is_cpu": False}


class MixedDevices(RuntimeError):
    """An operation that CUDA would refuse."""


class _Storages:
    """The storages on the GPU. Weak references keep their addresses from being used again."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def __contains__(self, tensor: Tensor) -> bool:
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return tensor.untyped_storage()._cdata in self._known


class _Below(TorchDispatchMode):
    """Checks and follows devices."""

    def __init__(self, on_gpu: _Storages):
        super().__init__()
        self._on_gpu = on_gpu
        self.num_operations = 0
        """operations on the GPU"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        gpu = [tensor in self._on_gpu for tensor in tensors]
        if not any(gpu):
            return func(*args, **kwargs)
        self.num_operations += 1
        namespace, _, name = func._schema.name.partition("::")
        _check(namespace, name, tensors, gpu)
        if kwargs.get("generator") is not None:
            raise MixedDevices(f"{namespace}::{name}: expected a 'cuda' device type for generator but found 'cpu'")
        found = func(*args, **kwargs)
        if gpu[0] or name not in COPIES:  # a copy to a host tensor stays there
            for leaf in tree_leaves(found):
                if isinstance(leaf, Tensor):
                    self._on_gpu.add(leaf)
        return found


def _check(namespace: str, name: str, tensors: Sequence[Tensor], gpu: Sequence[bool]) -> None:
    """Raise MixedDevices where CUDA raises an error."""
    if namespace == "mkldnn":
        raise MixedDevices(f"{namespace}::{name} has no kernel for CUDA")
    if name in COPIES or (name in INDEXING and gpu[0]):
        return
    host = [tensor for tensor, on in zip(tensors, gpu, strict=True) if not on]
    into_host = name.endswith("_") and not gpu[0]
    if into_host or any(tensor.dim() or name in JOINS for tensor in host):
        where = [f"{tuple(t.shape)} on {'cuda:0' if on else 'cpu'}" for t, on in zip(tensors, gpu, strict=True)]
        raise MixedDevices(f"{namespace}::{name}: expected all tensors to be on one device, but found {where}")


class _Above(TorchFunctionMode):
    """Serves requests for tensors on a device."""

    def __init__(self, on_gpu: _Storages):
        super().__init__()
        self._on_gpu = on_gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "numpy" and args[0] in self._on_gpu:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if name == "pin_memory":
            return args[0]
        kwargs.pop("pin_memory", None)
        wanted = self._like(name, args) or _wanted(args, kwargs)
        if wanted is None or func is torch.device or name == "_parse_to":
            return func(*args, **kwargs)
        if wanted == "cuda" and kwargs.get("generator") is not None:
            raise MixedDevices(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
        found = (
            args[0]
            if name in ("cpu", "cuda")
            else func(*map(_on_host, args), **{key: _on_host(value) for key, value in kwargs.items()})
        )
        return self._moved(found, wanted) if isinstance(found, Tensor) else found

    def _like(self, name: str, args: Sequence[Any]) -> str | None:
        """The type of the device that a method is named after, or of the tensor whose device is wanted."""
        if name in ("cpu", "cuda"):
            return name
        if name in ("to", "type_as") and isinstance(args[1] if len(args) > 1 else None, Tensor):
            return "cuda" if args[1] in self._on_gpu else "cpu"
        return None

    def _moved(self, found: Tensor, wanted: str) -> Tensor:
        """The tensor, or a copy if it is on the other device."""
        if (found in self._on_gpu) == (wanted == "cuda"):
            return found
        if wanted == "cuda":
            return self._on_gpu.add(found.clone())
        return torch.empty(found.shape, dtype=found.dtype).copy_(found)


def _type(value: Any) -> str | None:
    """The type of the device that an argument names."""
    if isinstance(value, torch.device):
        return value.type
    word = value.partition(":")[0] if isinstance(value, str) else None
    return word if word in ("cpu", "cuda") else None


def _wanted(args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
    """The type of the device that a call names."""
    return next((found for value in (kwargs.get("device"), *args) if (found := _type(value))), None)


def _on_host(value: Any) -> Any:
    return torch.device("cpu") if _type(value) == "cuda" else value


class _Stream:
    """A CUDA stream, or an event on it. Operations end in the order in which they start, so there is no waiting."""

    def __init__(self, device: Any = None):
        self.device = device

    def __getattr__(self, name: str) -> Callable[..., _Stream]:
        return lambda *args, **kwargs: self


ANSWERS: dict[str, Any] = {
    "is_available": True,
    "is_initialized": True,
    "device_count": 1,
    "current_device": 0,
    "mem_get_info": (MEMORY, MEMORY),
    "get_device_name": "pretended GPU",
    "get_device_properties": SimpleNamespace(total_memory=MEMORY),
    "get_device_capability": (9, 0),
    "get_per_process_memory_fraction": 1.0,
    **dict.fromkeys(("memory_allocated", "max_memory_allocated", "max_memory_reserved"), 10**6),
    **dict.fromkeys(("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all")),
    **dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats", "set_per_process_memory_fraction")),
}
"""What functions of torch.cuda return."""


@contextmanager
def pretend_gpu() -> Iterator[_Below]:
    """Within it, torch computes as if there were one GPU. Yields the mode that counts its operations."""
    on_gpu = _Storages()
    below = _Below(on_gpu)
    above, run_backward = _Above(on_gpu), torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        """A function mode is off within its own calls, such as torch.autograd.grad."""
        with above:
            return run_backward(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, below, above:
        patch.setattr(torch.autograd, "_engine_run_backward", backward)
        for name, answer in PROPERTIES.items():
            patch.setattr(Tensor, name, _property(name, answer, on_gpu), raising=False)
        for name, answer in ANSWERS.items():
            patch.setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
        for name in ("Stream", "current_stream", "Event"):
            patch.setattr(torch.cuda, name, _Stream)
        patch.setattr(torch.cuda, "stream", nullcontext)
        yield below


def _property(name: str, answer: Any, on_gpu: _Storages) -> property:
    own = getattr(torch._C.TensorBase, name)
    return property(lambda tensor: answer if tensor in on_gpu else own.__get__(tensor))
