"""How a node holds a frozen base that may be larger than its GPU; called by torch_model.py.

plain     the base is where it computes: in the GPU, or on a CPU memory-mapped from disk and shared by all processes
stream    the weights of Linears stay memory-mapped; each is copied to the GPU for the moment that it is used
deepspeed ZeRO-3: a private copy in the host's memory, brought to the GPU module by module with prefetching
qlora     four bits a weight in the GPU (bitsandbytes)

Whichever it is, what is trained are ordinary tensors beside the base: DeepSpeed never sees an adapter, so changing from
one device's to another's is a copy, exact to the bit, and every method works on it as it does on `plain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import open_base
from fibec_ray.models.held import Held
from fibec_ray.models.kernels import speed_up
from fibec_ray.models.spec import Backbone, Backend

GPU_MARGIN = 3 * 10**9
"""Bytes of a GPU that the base must leave free, or it is not plain: context, activations, adapters."""
HOST_FACTOR = 1.3
"""What DeepSpeed's private copy takes of the host, in sizes of the base."""


@dataclass(frozen=True)
class Room:
    """Bytes that are free now; gpu: None without one."""

    gpu: int | None
    host: int


def choose(backend: Backend, base_bytes: int, room: Room) -> tuple[Backend, str]:
    """The backend that is meant, and why. Raises ModelError for one that cannot be had with so much room."""
    if backend == "auto":
        return _choose(base_bytes, room)
    if backend == "deepspeed" and HOST_FACTOR * base_bytes > room.host:
        raise ModelError(
            f"backbone.backend: deepspeed copies the base, {base_bytes / 1e9:.1f} GB, and this node has "
            f"{room.host / 1e9:.1f} GB free of the {HOST_FACTOR * base_bytes / 1e9:.1f} it needs; take stream or plain"
        )
    if backend == "qlora" and room.gpu is None:
        raise ModelError("backbone.backend: qlora needs a CUDA device, and this process has none; set it to plain")
    return backend, "as configured"


def _choose(base_bytes: int, room: Room) -> tuple[Backend, str]:
    size = f"the base has {base_bytes / 1e9:.1f} GB"
    if room.gpu is None:
        return "plain", f"no GPU; {size}, memory-mapped and shared"
    if base_bytes + GPU_MARGIN <= room.gpu:
        return "plain", f"{size}, the GPU {room.gpu / 1e9:.1f} GB free"
    if HOST_FACTOR * base_bytes <= room.host:
        return "deepspeed", f"{size}, the GPU {room.gpu / 1e9:.1f} GB free, the host {room.host / 1e9:.1f} GB"
    return "stream", f"{size}: neither the GPU nor a copy in the host's memory has room for it"


def room_on(device: torch.device) -> Room:
    gpu = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return Room(gpu, psutil.virtual_memory().available)


def hold(backend: Backend, spec: Backbone, folder: Path, device: torch.device) -> Held:
    """Opens the prepared base. backend: one that `choose` gave."""
    if backend == "deepspeed":
        from fibec_ray.models.deepspeed_base import Partitioned

        return Partitioned(lambda: open_base(spec, folder, device.type), spec.dtype, device)
    if backend == "stream":
        from fibec_ray.models.stream import stream

        return Held(open_base(spec, folder, device.type), stream)
    if backend == "qlora":
        return Held(open_base(spec, folder, device.type, four_bits=True), lambda module: None)
    return Held(open_base(spec, folder, device.type), speed_up)


def weights_bytes(folder: Path) -> int:
    """Of a prepared base."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
