"""Report a run to Prometheus through Ray, round by round.

Use it to follow a run live; the round log keeps the exact values. The only tag is the run's name, because one series
per device would be too many. `cluster/grafana` draws them as ray_fibec_<name>.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil

from fibec_ray.learning.run_totals import Row
from fibec_ray.reports import DeviceReport
from fibec_ray.runs.callbacks import Callback
from fibec_ray.types import Fleet

GAUGES = {
    "round": "the last round that ended; -1 is the initialisation phase",
    "device_rounds_per_s": "device-rounds per second of real time in the last round",
    "lanes": "devices that one actor trains in one pass",
    "actors": "number of device actors",
    "driver_memory_bytes": "resident memory of the driver process",
    "peak_gpu_memory_bytes": "highest GPU memory of any actor so far, with CUDA's context; none on CPUs",
    "train_loss": "mean over the last round's steps",
    "global_accuracy": "accuracy of the global model at the last evaluation",
    "personal_accuracy": "accuracy of the personal models at the last evaluation",
}
COUNTERS = {
    "rounds": "finished rounds",
    "device_rounds": "updates received",
    "lost_devices": "devices in cohorts whose update was lost",
    "bytes_up": "bytes sent by devices",
    "bytes_down": "bytes sent to devices",
}


class RunMetrics(Callback):
    """Creates the metrics once the fleet has started, because Ray's metrics need a running Ray."""

    def __init__(self, name: str):
        self._name = name
        self._gauges: dict[str, Any] = {}
        self._counters: dict[str, Any] = {}
        self._wall_time_s = 0.0
        self._peak_gpu_memory = 0

    def on_start(self, fleet: Fleet) -> None:
        from ray.util.metrics import Counter, Gauge

        tags, given = ("run",), {"run": self._name}
        self._gauges = {name: Gauge(f"fibec_{name}", doc, tags) for name, doc in GAUGES.items()}
        self._counters = {name: Counter(f"fibec_{name}", doc, tags) for name, doc in COUNTERS.items()}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags(given)
        self._set("lanes", fleet.lanes)
        placement = getattr(fleet, "placement", None)
        self._set("actors", placement.num_actors if placement is not None else None)

    def on_reports(self, reports: Sequence[DeviceReport]) -> None:
        found = [each.peak_gpu_memory_bytes for each in reports if each.peak_gpu_memory_bytes is not None]
        self._peak_gpu_memory = max([self._peak_gpu_memory, *found])
        self._set("peak_gpu_memory_bytes", self._peak_gpu_memory or None)

    def on_round_end(self, row: Row) -> None:
        seconds = row["wall_time_s"] - self._wall_time_s
        self._wall_time_s = row["wall_time_s"]
        arrived = row["num_devices"] - row["num_lost"]
        for name in ("round", "train_loss", "global_accuracy", "personal_accuracy"):
            self._set(name, row[name])
        self._set("device_rounds_per_s", arrived / seconds if seconds > 0 else None)
        self._set("driver_memory_bytes", psutil.Process().memory_info().rss)
        amounts = {"rounds": 1, "device_rounds": arrived, "lost_devices": row["num_lost"]}
        amounts |= {"bytes_up": row["bytes_up"], "bytes_down": row["bytes_down"]}
        for name, amount in amounts.items():
            if amount:
                self._counters[name].inc(amount)

    def _set(self, name: str, value: float | None) -> None:
        if value is not None:
            self._gauges[name].set(value)
