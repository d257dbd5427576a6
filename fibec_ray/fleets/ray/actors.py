"""The two kinds of actor: DeviceActor hosts federated devices, ServerActor holds the shared layers.

Constructors are cheap and never fail. Everything that can fail happens in `ready`, whose error reaches the driver.
After a restart Ray calls the constructor again, and the next call builds the worker from the run directory.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

import ray

from fibec_ray.checkpoints.checkpoint import read_state, write_state
from fibec_ray.errors import FleetError
from fibec_ray.fleets.gpus import memory_fraction, torch_device
from fibec_ray.fleets.ray.nodes import SAME_BASE
from fibec_ray.fleets.ray.wire import from_wire, to_wire
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.faults import sent_by
from fibec_ray.learning.gpu_memory import forget_peak
from fibec_ray.learning.group_worker import GroupWorker
from fibec_ray.learning.job import Job
from fibec_ray.learning.planning import Group
from fibec_ray.learning.server import Server
from fibec_ray.parts.sharing.base import Selection
from fibec_ray.reports import DeviceReport
from fibec_ray.types import Broadcast, Calibration, DeviceUpdate, LayerReport, Layout, Predictions, RoundPlan, States

AT_ONCE = 8
"""Updates in one call of `feed`, and in the server's queue: the server holds at most twice as many at a time."""


class DeviceActor:
    """Hosts one device (per_device) or any (pooled). State is on disk between rounds, so any actor can take over."""

    def __init__(self, worker_spec: WorkerSpec, name: str, gpu_share: float):
        self._worker_spec, self._name, self._gpu_share = worker_spec, name, gpu_share
        self._built: GroupWorker | None = None

    def ready(self, base: str) -> str:
        """Build the model if there is none; returns the id of the node.

        base: digest that the base weights must have; '': not known yet. Raises FleetError for other weights, which a
        node that joined later may have."""
        if base and base != self.fingerprint():
            raise FleetError(
                f"backbone: node {platform.node()} has other base weights than the run began with; {SAME_BASE}, or "
                "take the node away, and resume"
            )
        node: str = ray.get_runtime_context().get_node_id()
        return node if self._worker else ""

    def describe(self) -> tuple[Any, Layout]:
        """P^0 (as arrays) and its layout."""
        return to_wire(self._worker.initial), self._worker.layout

    def backend_choice(self) -> tuple[str, str] | None:
        """The backend that holds base weights, and why; None without a base."""
        return self._worker.backend_choice

    def fingerprint(self) -> str:
        """Fingerprint of the base weights."""
        return self._worker_spec.base_fingerprint()

    def calibrate(self, most: int) -> Calibration:
        """Find the number of lanes by a short trial."""
        found = self._worker.calibrate(most)
        forget_peak()
        return found

    def setup(self, devices: Group, attempt: int) -> list[tuple[Any, DeviceReport]]:
        """Layer report and log row of each device."""
        opened = self._worker.setup_group(devices, attempt)
        return [(to_wire(layer_report), report) for layer_report, report in opened]

    def train(self, plan: RoundPlan, devices: Group, broadcast: Any, attempt: int) -> tuple[Any, ...]:
        """The update of each device, as separate objects, followed by the list of their reports."""
        trained = self._worker.train_group(plan, devices, from_wire(broadcast), attempt)
        return (*(to_wire(update) for update, _ in trained), [report for _, report in trained])

    def evaluate_shared(self, chunks: Any, broadcast: Any) -> Any:
        """Score chunks of the test set with the global model."""
        parts: list[Predictions] = self._worker.evaluate_shared(from_wire(chunks), from_wire(broadcast))
        return to_wire(parts)

    def evaluate_personal(self, groups: list[Group], broadcast: Any, states: States) -> Any:
        """Predictions of the devices of some groups, in order."""
        received: Broadcast = from_wire(broadcast)
        return to_wire([own for group in groups for own in self._worker.evaluate_group(group, received, states)])

    @property
    def _worker(self) -> GroupWorker:
        if self._built is None:
            self._built = self._worker_spec.worker(self._name, self._torch_device())
        return self._built

    def _torch_device(self) -> str:
        """The GPU that Ray assigned, or the CPU: with num_gpus=0 an actor still sees all GPUs."""
        if not ray.get_gpu_ids():
            return "cpu"
        import torch

        device = torch_device(self._gpu_share, torch.cuda.is_available(), self._worker_spec.fleet.device)
        if 0 < self._gpu_share < 1:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(memory_fraction(self._gpu_share, total), device)
        return device


class ServerActor:
    """The federation's server. Device actors' updates reach it through the object store; the driver holds refs only."""

    def __init__(self, job: Job, threads: int):
        import torch

        torch.set_num_threads(threads)
        self._job = job
        self._server: Server | None = None
        self._fed: Queue[Any] = Queue(AT_ONCE)

    def start(self, initial: Any, layout: Layout) -> None:
        """Make the server from initial values."""
        self._server = Server(self._job, from_wire(initial), layout)

    def setup(self, reports: Any) -> tuple[frozenset[str], Any]:
        """End the setup phase: select shared tensors. Returns their names and the layer scores."""
        received: list[LayerReport] = from_wire(reports)
        selection: Selection = self._held.setup(received)
        return selection.names, to_wire(selection.scores)

    def broadcast(self, round_: int) -> Any:
        """What devices of a round get."""
        return to_wire(self._held.broadcast(round_))

    def absorb(self, plan: RoundPlan, *updates: Any) -> tuple[dict[int, str], str]:
        """Aggregate a round's updates one at a time. Returns device -> why its update is bad, and the new digest.

        updates: in cohort order; None for a device that is left out. Without them, `feed` brings them.
        """
        arriving = self._arriving(plan.cohort, updates)
        bad = self._held.absorb(plan.round, arriving, plan.versions, plan.under_way.values())
        return bad, self._held.digest()

    @ray.method(concurrency_group="feed")
    def feed(self, *updates: Any) -> None:
        """Queue the next updates in cohort order; None for a device that is left out. Runs beside `absorb`, and waits
        while the queue is full."""
        for update in updates:
            self._fed.put(update)

    @ray.method(concurrency_group="feed")
    def fetch(self, update: Any) -> None:
        """Do nothing: the call fails if Ray cannot bring the update to this node."""

    def adapter(self) -> Any:
        """The global model's tensors."""
        return to_wire(self._held.adapter())

    def save(self, path: Path) -> str:
        """Write the server's state. Returns the file's digest."""
        return write_state(path, self._held.state())

    def restore(self, path: Path) -> tuple[frozenset[str], Any]:
        """Read the server's state. Returns shared names and layer scores."""
        selection = self._held.restore(read_state(path))
        return selection.names, to_wire(selection.scores)

    def digest(self) -> str:
        """Hash of the shared tensors."""
        return self._held.digest()

    @property
    def _held(self) -> Server:
        assert self._server is not None, "start comes first"
        return self._server

    def _arriving(self, cohort: Sequence[int], there: Sequence[Any]) -> Iterator[DeviceUpdate]:
        """The round's updates, without a time limit: the driver times devices, and ends this actor if it gives up."""
        for i, device in enumerate(cohort):
            update: DeviceUpdate | None = from_wire(there[i] if there else self._fed.get())
            if update is not None:
                yield sent_by(device, update)
