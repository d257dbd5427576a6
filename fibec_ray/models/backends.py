"""Backends: where a node keeps a frozen base that may be larger than its GPU.

plain     where it computes: in GPU memory, or on a CPU memory-mapped from disk and shared by all processes
spread    over the GPUs of an actor with several: the first computes, and weights on the others are copied when used
stream    weights of Linears stay memory-mapped; each is copied to the GPU when it is used
deepspeed ZeRO-3: a private copy in host memory, copied to the GPU module by module with prefetching
qlora     four bits per weight in GPU memory (bitsandbytes)

With any backend the trained tensors are ordinary tensors beside the base. DeepSpeed never sees an adapter, so switching
devices is an exact copy, and every method works as with `plain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
import torch

from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import open_base
from fibec_ray.models.base_weights import BaseWeights
from fibec_ray.models.kernels import speed_up
from fibec_ray.models.settings import Backend, BackendChoice, PretrainedSettings
from fibec_ray.models.stream import MultiGpu, bytes_that_stay, stream
from fibec_ray.types import Products

CONTEXT_BYTES = 545_000_000
"""GPU memory that CUDA takes for each process, before its first tensor (measured: 518 MiB on an H200)."""
GPU_MARGIN = 3 * 10**9
"""Bytes of GPU memory to leave free for activations and adapters if no plan gives their size; at most half of the
free memory.
"""
OTHER_GPU_MARGIN = 10**9
"""Bytes to leave free on an actor's other GPUs, which only hold weights."""
CONFIGURED = "as configured"
HOST_FACTOR = 1.3
"""Host memory of DeepSpeed's private copy, relative to the base."""


@dataclass(frozen=True)
class Room:
    """Free bytes for a base.

    gpu: of the GPU that computes, after CUDA's context; None without a GPU. others: of each further GPU of the process.
    beside: planned GPU memory of activations and adapters; None: not planned.
    """

    gpu: int | None
    host: int
    others: tuple[int, ...] = ()
    beside: int | None = None

    @property
    def first(self) -> int:
        """Bytes that the base may use on the GPU that computes."""
        gpu = self.gpu or 0
        return max(0, gpu - (min(GPU_MARGIN, gpu // 2) if self.beside is None else self.beside))

    @property
    def more_gpus(self) -> tuple[int, ...]:
        """Bytes that the base may use on each further GPU."""
        return tuple(max(0, free - OTHER_GPU_MARGIN) for free in self.others)


def choose(backend: Backend, base_bytes: int, room: Room) -> BackendChoice:
    """The backend to use, and why. Raises ModelError for a backend that does not fit or is not available."""
    if backend == "auto":
        chosen, why = _choose(base_bytes, room)
        return BackendChoice(chosen, f"auto: {why}")
    if backend == "deepspeed" and HOST_FACTOR * base_bytes > room.host:
        raise ModelError(
            f"backbone.backend: deepspeed needs {HOST_FACTOR * base_bytes / 1e9:.1f} GB of host memory for a base of "
            f"{base_bytes / 1e9:.1f} GB, but this node has {room.host / 1e9:.1f} GB free; set it to stream or plain"
        )
    if backend in ("qlora", "spread") and room.gpu is None:
        raise ModelError(f"backbone.backend: {backend} needs a CUDA device, but this process has none; set it to plain")
    if backend == "spread" and base_bytes > room.first + sum(room.more_gpus):
        raise ModelError(
            f"backbone.backend: spread needs {base_bytes / 1e9:.1f} GB for the base, but this process's GPUs "
            f"({1 + len(room.others)}) have {(room.first + sum(room.more_gpus)) / 1e9:.1f} GB for it; raise "
            "fleet.gpus_per_actor, or set backbone.backend to stream or deepspeed"
        )
    return BackendChoice(backend, CONFIGURED)


def _choose(base_bytes: int, room: Room) -> tuple[Backend, str]:
    size = f"the base has {base_bytes / 1e9:.1f} GB"
    if room.gpu is None:
        return "plain", f"no GPU; {size}, memory-mapped and shared"
    if base_bytes <= room.first:
        idle = "; the other GPUs are idle, fleet.gpus_per_actor=1 is enough" if room.others else ""
        return "plain", f"{size}, the GPU {room.gpu / 1e9:.1f} GB free{idle}"
    if room.others and base_bytes <= room.first + sum(room.more_gpus):
        free = (room.gpu + sum(room.others)) / 1e9
        return "spread", f"{size}, the GPU {room.gpu / 1e9:.1f} GB free, all {1 + len(room.others)} of them {free:.1f}"
    if HOST_FACTOR * base_bytes <= room.host:
        return "deepspeed", f"{size}, the GPU {room.gpu / 1e9:.1f} GB free, the host {room.host / 1e9:.1f} GB"
    return "stream", f"{size}: it fits neither the GPU nor, as a copy, the host's memory"


def room_on(device: torch.device, beside: int | None = None) -> Room:
    """Free bytes on this process's devices. Ray shows a process only its own GPUs; of a shared one, its actor's
    part counts.
    """
    host = psutil.virtual_memory().available
    if device.type != "cuda":
        return Room(None, host)
    free = [_free(number) for number in range(torch.cuda.device_count())]
    return Room(free[0], host, tuple(free[1:]), beside)


def _free(number: int) -> int:
    free, total = torch.cuda.mem_get_info(number)
    return min(free, int(torch.cuda.get_per_process_memory_fraction(number) * total))


def hold(
    backend: Backend,
    spec: PretrainedSettings,
    folder: Path,
    device: torch.device,
    beside: int | None = None,
    products: Products | Literal["auto"] = "auto",
) -> BaseWeights:
    """Open the prepared base. backend: from `choose`. beside: see `Room`. products: for a plain base on a CPU."""
    if backend == "deepspeed":
        from fibec_ray.models.deepspeed_base import Partitioned

        return Partitioned(lambda: open_base(spec, folder, device.type), spec.dtype, device)
    if backend == "stream":
        return BaseWeights(open_base(spec, folder, device.type), partial(stream, device=device))
    if backend == "spread":
        room, base = room_on(device, beside), open_base(spec, folder, device.type)
        multi_gpu = MultiGpu(room.first - bytes_that_stay(base), room.more_gpus)
        return BaseWeights(base, partial(stream, device=device, place=multi_gpu.place))
    if backend == "qlora":
        return BaseWeights(open_base(spec, folder, device.type, four_bits=True), lambda module: None)
    return BaseWeights(open_base(spec, folder, device.type), partial(speed_up, device=device, products=products))


def weights_bytes(folder: Path) -> int:
    """Bytes of a prepared base."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
