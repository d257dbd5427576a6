"""The GPUs of this machine, and how much of them a process uses.

The driver's tool nvidia-smi lists them. A process itself would have to create a CUDA context to know their free memory,
which takes seconds and half a gigabyte of each.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fibec_ray.errors import ConfigError
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.models.backends import CONTEXT_BYTES

QUERY = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
TIMEOUT_S = 10


@dataclass(frozen=True)
class Gpu:
    """A GPU of this node."""

    index: str
    uuid: str
    free: int | None
    """bytes; None if unknown (unified memory, a MIG partition, no permission)"""


def visible(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """GPUs that processes started here may use, in CUDA's order."""
    return select(parse(_ask()), environment.get("CUDA_VISIBLE_DEVICES"))


def parse(listing: str) -> list[Gpu]:
    """Parse the output of nvidia-smi. Lines that do not describe a GPU are skipped."""
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    return [Gpu(row[0], row[1], _bytes(row[-1])) for row in rows if len(row) > 1 and row[0].isdecimal()]


def select(gpus: Sequence[Gpu], devices: str | None) -> list[Gpu]:
    """GPUs that CUDA shows under CUDA_VISIBLE_DEVICES=devices; None: it is not set.

    As CUDA does: numbers, the beginnings of UUIDs, and MIG partitions; the first entry that names nothing ends the
    list, and an entry that comes twice leaves none.
    """
    if devices is None:
        return list(gpus)
    found: list[Gpu] = []
    for entry in devices.split(","):
        gpu = _named(gpus, entry.strip())
        if gpu is None:
            break
        if gpu in found:
            return []
        found.append(gpu)
    return found


def torch_device(gpus: float | None, has_cuda: bool, wanted: str = "auto") -> str:
    """torch's device for a process. gpus: fleet.gpus_per_actor; None: a GPU if torch sees one. wanted: fleet.device.

    Raises ConfigError if a GPU is configured and torch sees none."""
    if wanted == "cuda" and not has_cuda:
        raise ConfigError(
            "fleet.device: cuda, but torch sees no GPU here; set it to auto or cpu to compute on CPUs, or install a "
            "torch that is built for this machine's GPU"
        )
    if gpus == 0 or (gpus is None and not has_cuda):
        return "cpu"
    if not has_cuda:
        raise ConfigError(
            f"fleet.gpus_per_actor: {gpus:g}, but torch sees no GPU here; set it to 0 to compute on CPUs, or install a "
            "torch that is built for this machine's GPU"
        )
    return "cuda:0"


def unusable(config: FleetConfig) -> bool:
    """Whether `fleet.device: auto` leaves this machine's GPUs alone, because torch is built for CPUs only."""
    return config.device == "auto" and config.gpu_shares == {None} and not torch.backends.cuda.is_built()


def memory_fraction(share: float, total: int) -> float:
    """The fraction of a GPU's memory that torch may allocate in an actor with this share of the GPU.

    Each process also needs a CUDA context. Raises ConfigError if the share has no room for more than that."""
    left = share - CONTEXT_BYTES / total
    if left <= 0:
        raise ConfigError(
            f"fleet.gpus_per_actor: {share:g} of a GPU with {total / 1e9:.1f} GB are {share * total / 1e9:.2f} GB, and "
            f"CUDA alone takes {CONTEXT_BYTES / 1e9:.2f} GB for each process; raise it, or leave it out and set "
            "fleet.placement=pooled"
        )
    return left


def smallest(gpus: Sequence[Gpu]) -> int | None:
    """Free bytes of the smallest GPU; None if unknown, or without a GPU."""
    known = [gpu.free for gpu in gpus if gpu.free is not None]
    return min(known) if known and len(known) == len(gpus) else None


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    if entry.startswith("MIG-"):
        return Gpu(entry, entry, None) if gpus else None  # a part of one of them; nvidia-smi lists whole GPUs
    if entry.startswith("GPU-"):
        matching = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        return matching[0] if len(matching) == 1 else None
    return next((gpu for gpu in gpus if entry.isdecimal() and int(gpu.index) == int(entry)), None)


def _ask() -> str:
    """Output of nvidia-smi; '' if it is not installed, fails or hangs."""
    try:
        english = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(
            QUERY, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=True, env=english
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _bytes(mebibytes: str) -> int | None:
    return int(mebibytes) * 2**20 if mebibytes.isascii() and mebibytes.isdecimal() else None
