"""How a node holds a frozen base that may be larger than its GPU.

plain     the base is where it computes: in the GPU, or on a CPU memory-mapped from disk and shared by all processes
spread    over the GPUs of an actor that has several: the first one computes, what has no room there visits it
stream    the weights of Linears stay memory-mapped; each is copied to the GPU for the moment that it is used
deepspeed ZeRO-3: a private copy in the host's memory, brought to the GPU module by module with prefetching
qlora     four bits a weight in the GPU (bitsandbytes)

Whichever it is, what is trained are ordinary tensors beside the base: DeepSpeed never sees an adapter, so changing from
one device's to another's is a copy, exact to the bit, and every method works on it as it does on `plain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import open_base
from fibec_ray.models.base_weights import BaseWeights
from fibec_ray.models.kernels import speed_up
from fibec_ray.models.spec import Backbone, Backend, BackendChoice
from fibec_ray.models.stream import MultiGpu, bytes_that_stay, stream

CONTEXT_BYTES = 545_000_000
"""GPU memory that CUDA takes for each process, before its first tensor (measured: 518 MiB on an H200)."""
GPU_MARGIN = 3 * 10**9
"""Bytes of the GPU that the base must leave free for activations and adapters, where no plan says how many they take;
at most half of what there is."""
SHELF_MARGIN = 10**9
"""The same of an actor's other GPUs, which hold weights and nothing else."""
CONFIGURED = "as configured"
HOST_FACTOR = 1.3
"""What DeepSpeed's private copy takes of the host, in sizes of the base."""


@dataclass(frozen=True)
class Room:
    """Free bytes. gpu: of the GPU that computes, after CUDA's context; None without a GPU. others: of each further GPU
    of the process. beside: what activations and adapters will take of the first GPU; None: it was not planned."""

    gpu: int | None
    host: int
    others: tuple[int, ...] = ()
    beside: int | None = None

    @property
    def first(self) -> int:
        """What the base may take of the GPU that computes."""
        gpu = self.gpu or 0
        return max(0, gpu - (min(GPU_MARGIN, gpu // 2) if self.beside is None else self.beside))

    @property
    def more_gpus(self) -> tuple[int, ...]:
        """What it may take of each of the others."""
        return tuple(max(0, free - SHELF_MARGIN) for free in self.others)


def choose(backend: Backend, base_bytes: int, room: Room) -> BackendChoice:
    """The backend that is meant, and why. Raises ModelError for one that cannot be had with so much room."""
    if backend == "auto":
        chosen, why = _choose(base_bytes, room)
        return BackendChoice(chosen, f"auto: {why}")
    if backend == "deepspeed" and HOST_FACTOR * base_bytes > room.host:
        raise ModelError(
            f"backbone.backend: deepspeed copies the base, {base_bytes / 1e9:.1f} GB, and this node has "
            f"{room.host / 1e9:.1f} GB free of the {HOST_FACTOR * base_bytes / 1e9:.1f} it needs; take stream or plain"
        )
    if backend in ("qlora", "spread") and room.gpu is None:
        raise ModelError(f"backbone.backend: {backend} needs a CUDA device, and this process has none; set it to plain")
    if backend == "spread" and base_bytes > room.first + sum(room.more_gpus):
        raise ModelError(
            f"backbone.backend: spread has {(room.first + sum(room.more_gpus)) / 1e9:.1f} GB for a base of "
            f"{base_bytes / 1e9:.1f} on this process's GPUs ({1 + len(room.others)}); raise "
            "fleet.gpus_per_actor, or take stream or deepspeed with one"
        )
    return BackendChoice(backend, CONFIGURED)


def _choose(base_bytes: int, room: Room) -> tuple[Backend, str]:
    size = f"the base has {base_bytes / 1e9:.1f} GB"
    if room.gpu is None:
        return "plain", f"no GPU; {size}, memory-mapped and shared"
    if base_bytes <= room.first:
        idle = "; the others have nothing to do, fleet.gpus_per_actor=1 is enough" if room.others else ""
        return "plain", f"{size}, the GPU {room.gpu / 1e9:.1f} GB free{idle}"
    if room.others and base_bytes <= room.first + sum(room.more_gpus):
        free = (room.gpu + sum(room.others)) / 1e9
        return "spread", f"{size}, the GPU {room.gpu / 1e9:.1f} GB free, all {1 + len(room.others)} of them {free:.1f}"
    if HOST_FACTOR * base_bytes <= room.host:
        return "deepspeed", f"{size}, the GPU {room.gpu / 1e9:.1f} GB free, the host {room.host / 1e9:.1f} GB"
    return "stream", f"{size}: neither the GPU nor a copy in the host's memory has room for it"


def room_on(device: torch.device, beside: int | None = None) -> Room:
    """Ray shows a process no GPUs but its own; of one that it shares, it has the part that its actor was limited to."""
    host = psutil.virtual_memory().available
    if device.type != "cuda":
        return Room(None, host)
    free = [_free(number) for number in range(torch.cuda.device_count())]
    return Room(free[0], host, tuple(free[1:]), beside)


def _free(number: int) -> int:
    free, total = torch.cuda.mem_get_info(number)
    return min(free, int(torch.cuda.get_per_process_memory_fraction(number) * total))


def hold(
    backend: Backend, spec: Backbone, folder: Path, device: torch.device, beside: int | None = None
) -> BaseWeights:
    """Opens the prepared base. backend: one that `choose` gave. beside: see `Room`."""
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
    return BaseWeights(open_base(spec, folder, device.type), partial(speed_up, device=device))


def weights_bytes(folder: Path) -> int:
    """Of a prepared base."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
