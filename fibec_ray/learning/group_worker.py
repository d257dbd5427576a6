"""A worker that trains and evaluates groups of devices side by side, in lanes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

from fibec_ray.errors import ConfigError
from fibec_ray.learning.calibration import find_lanes, step_seconds
from fibec_ray.learning.device import DeviceWorker
from fibec_ray.learning.host import Workplace
from fibec_ray.learning.lanes import Lanes
from fibec_ray.model_types import LanedModel, LocalModel, Shard
from fibec_ray.reports import DeviceReport
from fibec_ray.types import Broadcast, Calibration, DeviceUpdate, LayerReport, Predictions, RoundPlan, States

T = TypeVar("T")


class GroupWorker(DeviceWorker):
    """Hosts lane groups. lanes: most devices in a group. Raises ConfigError if the model does not support lanes."""

    def __init__(self, place: Workplace, model: LocalModel, lanes: int = 1):
        super().__init__(place, model)
        self._lanes: Lanes | None = None
        self._workers: list[DeviceWorker] = []
        solver = place.job.method.solver
        if solver.num_references and (why := obstacle_to_lanes(model)):
            raise ConfigError(
                f"method.solver: {solver.kind} computes with another mix of adapters for each sample, which does not "
                f"work here, because {why}; use plain lora, without dropout, on a transformer"
            )
        if lanes > 1 and (why := obstacle_to_lanes(model)):
            raise ConfigError(
                f"fleet.lanes: {lanes} devices cannot train in one pass here, because {why}; set it to 1, or to auto"
            )

    @property
    def backend_choice(self) -> tuple[str, str] | None:
        """The backend that holds the base and the reason; None without a base."""
        return getattr(self.model, "backend_choice", None)

    def calibrate(self, most: int) -> Calibration:
        """Find the best number of lanes on this machine for `fleet.lanes: auto`, at most `most`."""
        model, shard = cast(LanedModel, self.model), self._largest_shard()
        if most == 1 or obstacle_to_lanes(self.model) or not model.gains_from_lanes:
            return Calibration(1, {})
        on_gpu = any(value.device.type != "cpu" for value in model.trainable.values())
        return find_lanes(partial(step_seconds, model, shard, self.job.local), most, prefer_more=on_gpu)

    def setup_group(self, devices: Sequence[int], attempt: int = 0) -> list[tuple[LayerReport, DeviceReport]]:
        """Run `setup` for a lane group (see `lane_groups`), in its order."""
        started = time.perf_counter()
        found = self._side_by_side(devices, lambda worker, device: worker.setup(device, attempt))
        return _with_shares_of(time.perf_counter() - started, found)

    def train_group(
        self, plan: RoundPlan, devices: Sequence[int], broadcast: Broadcast, attempt: int = 0
    ) -> list[tuple[DeviceUpdate, DeviceReport]]:
        """Run `train` for a lane group, in its order."""
        started = time.perf_counter()
        found = self._side_by_side(devices, lambda worker, device: worker.train(plan, device, broadcast, attempt))
        return _with_shares_of(time.perf_counter() - started, found)

    def evaluate_group(self, devices: Sequence[int], broadcast: Broadcast, states: States) -> list[Predictions]:
        """Run `evaluate_personal` for a lane group, in its order."""
        return self._side_by_side(devices, lambda worker, device: worker.evaluate_personal(device, broadcast, states))

    def _side_by_side(self, devices: Sequence[int], work: Callable[[DeviceWorker, int], T]) -> list[T]:
        """Run the work of a group; a group of one runs without lanes."""
        if len(devices) == 1:
            return [work(self, device) for device in devices]
        lanes = self._at_least(len(devices))
        pieces = [partial(work, worker, device) for worker, device in zip(self._workers, devices, strict=False)]
        return lanes.run(pieces)

    def _at_least(self, size: int) -> Lanes:
        """Create the lanes when they are first needed."""
        if self._lanes is None or len(self._workers) < size:
            self._lanes = Lanes(cast(LanedModel, self.model), size)
            self._workers = [DeviceWorker(self.place, each, self.initial) for each in self._lanes.models]
        return self._lanes

    def _largest_shard(self) -> Shard:
        sizes = self.data.num_train(range(self.data.num_devices))
        return self.data.train_shard(sizes.index(max(sizes)))


def obstacle_to_lanes(model: LocalModel) -> str | None:
    """Why the model computes for only one device at a time; None if it supports lanes."""
    return model.obstacle_to_lanes() if hasattr(model, "obstacle_to_lanes") else "a network from scratch has no lanes"


def _with_shares_of(seconds: float, found: list[tuple[T, DeviceReport]]) -> list[tuple[T, DeviceReport]]:
    """Divide the time of a group among its devices, in proportion to their operations."""
    total = sum(report.flops for _, report in found)
    if len(found) == 1 or not total:
        return found
    return [(result, replace(report, compute_s=seconds * report.flops / total)) for result, report in found]
