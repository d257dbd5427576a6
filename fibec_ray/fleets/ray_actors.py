"""The two kinds of actor: DeviceActor hosts federated devices, ServerActor holds the shared layers; made by RayFleet.

Constructors are cheap and never fail: what can go wrong happens in `ready`, whose error reaches the driver as it is.
After a restart Ray calls the constructor again, and the next call builds the worker anew from the run directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from fibec_ray.fleets.site import Site
from fibec_ray.fleets.wire import from_wire, to_wire
from fibec_ray.learning.checkpoint import read_state, write_state
from fibec_ray.learning.device import DeviceWorker
from fibec_ray.learning.job import Job
from fibec_ray.learning.server import Server
from fibec_ray.parts.sharing.base import Selection
from fibec_ray.reports import DeviceReport
from fibec_ray.types import Broadcast, LayerReport, Layout, Predictions, RoundPlan

GET_TIMEOUT_S = 300


class DeviceActor:
    """Hosts one device (per_device) or any (pooled); state between rounds is on disk, so any actor can take over."""

    def __init__(self, site: Site, name: str, gpu_share: float):
        self._site, self._name, self._gpu_share = site, name, gpu_share
        self._built: DeviceWorker | None = None

    def ready(self) -> str:
        """Builds the model if need be."""
        return self._name if self._worker else ""

    def describe(self) -> tuple[Any, Layout]:
        """P^0 (as arrays) and what its tensors are."""
        return to_wire(self._worker.initial), self._worker.layout

    def open(self, device: int, attempt: int) -> tuple[Any, DeviceReport]:
        layer_report, report = self._worker.open(device, attempt)
        return to_wire(layer_report), report

    def train(self, plan: RoundPlan, device: int, broadcast: Any, attempt: int) -> tuple[Any, DeviceReport]:
        update, report = self._worker.train(plan, device, from_wire(broadcast), attempt)
        return to_wire(update), report

    def evaluate_shared(self, chunks: Any, broadcast: Any) -> Any:
        parts: list[Predictions] = self._worker.evaluate_shared(from_wire(chunks), from_wire(broadcast))
        return to_wire(parts)

    def evaluate_personal(self, devices: list[int], broadcast: Any) -> Any:
        received: Broadcast = from_wire(broadcast)
        return to_wire([self._worker.evaluate_personal(device, received) for device in devices])

    @property
    def _worker(self) -> DeviceWorker:
        if self._built is None:
            self._built = self._site.worker(self._name, self._torch_device())
        return self._built

    def _torch_device(self) -> str:
        """The GPU that Ray assigned, never one that merely is there: num_gpus=0 does not hide GPUs from an actor."""
        if not ray.get_gpu_ids():
            return "cpu"
        import torch

        if 0 < self._gpu_share < 1:
            torch.cuda.set_per_process_memory_fraction(0.95 * self._gpu_share)
        return "cuda:0"


class ServerActor:
    """The federation's server. Updates go from device actors to it through the object store; the driver holds refs."""

    def __init__(self, job: Job, threads: int):
        import torch

        torch.set_num_threads(threads)
        self._job = job
        self._server: Server | None = None

    def start(self, initial: Any, layout: Layout) -> None:
        self._server = Server(self._job, from_wire(initial), layout)

    def open(self, reports: Any) -> tuple[frozenset[str], Any]:
        received: list[LayerReport] = from_wire(reports)
        selection: Selection = self._held.open(received)
        return selection.names, to_wire(selection.scores)

    def broadcast(self, round_: int) -> Any:
        return to_wire(self._held.broadcast(round_))

    def absorb(self, round_: int, updates: list[ray.ObjectRef]) -> None:
        """Refs of the round's updates in cohort order; fetched and summed one at a time."""
        self._held.absorb(round_, (from_wire(ray.get(ref, timeout=GET_TIMEOUT_S)) for ref in updates))

    def adapter(self) -> Any:
        return to_wire(self._held.adapter())

    def save(self, path: Path) -> str:
        return write_state(path, self._held.state())

    def restore(self, path: Path) -> tuple[frozenset[str], Any]:
        selection = self._held.restore(read_state(path))
        return selection.names, to_wire(selection.scores)

    def digest(self) -> str:
        return self._held.digest()

    @property
    def _held(self) -> Server:
        assert self._server is not None, "start comes first"
        return self._server
