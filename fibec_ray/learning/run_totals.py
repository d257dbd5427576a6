"""Running totals of a run, and the rows of the round log made from them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import BaseModel

from fibec_ray.learning.evaluation import pooled
from fibec_ray.reports import DeviceReport
from fibec_ray.tasks import Task
from fibec_ray.types import (
    NOTHING_DROPPED,
    SETUP_ROUND,
    DroppedWork,
    EvaluationResult,
    Layout,
    Predictions,
    RoundPlan,
    RoundResult,
    SetupResult,
)

Row = dict[str, Any]


class RunTotalsState(BaseModel, frozen=True, extra="forbid"):
    """The totals at the end of a round, for a checkpoint; floats survive JSON bit for bit."""

    sim_time_s: float
    wall_time_s: float
    bytes_total: int
    num_samples_total: int
    trained: list[int]
    """devices that have trained at least once"""
    energy_total_j: float | None = None
    """None in checkpoints of earlier releases"""


class RunTotals:
    """Turns a fleet's results into log rows, and keeps running totals.

    task: scores predictions. batch_size: of local training, to count a device's batches. classify: returns the speed
    class of each of all devices; empty if they are alike. epsilon_after: round -> epsilon of all rounds up to it; None
    without a privacy guarantee.
    """

    def __init__(
        self,
        task: Task,
        batch_size: int,
        classify: Callable[[Iterable[int]], Mapping[int, str]] = lambda devices: {},
        epsilon_after: Callable[[int], float | None] = lambda round_: None,
    ):
        self._task, self._batch_size, self._classify = task, batch_size, classify
        self._epsilon_after = epsilon_after
        self._speed_classes: Mapping[int, str] | None = None
        """known from the first evaluation on"""
        self._started = time.monotonic()
        self.sim_time_s, self.bytes_total, self.num_samples_total = 0.0, 0, 0
        self.energy_total_j: float | None = 0.0
        self.trained: set[int] = set()
        self._layers: SetupResult

    @property
    def layout(self) -> Layout:
        """The layout of the trainable tensors, known after the fleet's setup."""
        return self._layers.layout

    def setup(self, opened: SetupResult, evaluation: EvaluationResult | None = None) -> tuple[Row, list[Row]]:
        """The row of round -1 and its layer rows."""
        self._layers = opened
        return self._row(SETUP_ROUND, opened.reports, 0, evaluation), self._layer_rows(SETUP_ROUND, [])

    def state(self) -> RunTotalsState:
        """The current totals."""
        return RunTotalsState(
            sim_time_s=self.sim_time_s,
            wall_time_s=time.monotonic() - self._started,
            bytes_total=self.bytes_total,
            num_samples_total=self.num_samples_total,
            trained=sorted(self.trained),
            energy_total_j=self.energy_total_j,
        )

    def restore(self, opened: SetupResult, state: RunTotalsState) -> None:
        """Continue from saved totals instead of calling `setup`. The time between the two runs does not count."""
        self._layers = opened
        self._started = time.monotonic() - state.wall_time_s
        self.sim_time_s, self.bytes_total = state.sim_time_s, state.bytes_total
        self.num_samples_total, self.trained = state.num_samples_total, set(state.trained)
        self.energy_total_j = state.energy_total_j

    def round(
        self,
        plan: RoundPlan,
        result: RoundResult,
        evaluation: EvaluationResult | None,
    ) -> tuple[Row, list[Row]]:
        """The row of a round and its layer rows."""
        self.trained |= {report.device for report in _sound(result.reports) if report.num_steps}
        row = self._row(plan.round, result.reports, len(result.lost), evaluation, plan)
        return row, self._layer_rows(plan.round, result.reports)

    def evaluations(self, round_: int, evaluation: EvaluationResult | None) -> list[Row]:
        """One row per device with the scores of its own model; none in a round without evaluation."""
        personal = evaluation.personal if evaluation else {}
        if personal and self._speed_classes is None:
            self._speed_classes = self._classify(sorted(personal))
        return [self._evaluation_row(round_, device, personal[device]) for device in sorted(personal)]

    def _evaluation_row(self, round_: int, device: int, predictions: Predictions) -> Row:
        known = len(predictions.labels) > 0
        return {
            "round": round_,
            "device": device,
            "num_samples": len(predictions.labels),
            "trained": device in self.trained,
            "accuracy": self._task.accuracy(predictions) if known else None,
            "loss": float(predictions.losses.double().mean()) if known else None,
            "speed_class": (self._speed_classes or {}).get(device),
        }

    def _row(
        self,
        round_: int,
        reports: Sequence[DeviceReport],
        num_lost: int,
        evaluation: EvaluationResult | None,
        plan: RoundPlan | None = None,
    ) -> Row:
        """A row. plan: None in the setup phase."""
        seconds = plan.seconds if plan else None
        up, down = sum(r.bytes_up for r in reports), sum(r.bytes_down for r in reports)
        num_samples, sound = sum(r.num_samples_seen for r in reports), _sound(reports)
        energy_j = math.fsum(r.energy_j or 0.0 for r in reports)
        # Devices work in parallel and the server waits for the slowest; the server's time is not modelled.
        self.sim_time_s += max((r.sim_time_s for r in reports), default=0.0) if seconds is None else seconds
        self.bytes_total += up + down
        self.num_samples_total += num_samples
        if self.energy_total_j is not None:
            self.energy_total_j += energy_j
        return {
            "round": round_,
            "sim_time_s": self.sim_time_s,
            "wall_time_s": time.monotonic() - self._started,
            "bytes_up": up,
            "bytes_down": down,
            "bytes_total": self.bytes_total,
            "num_devices": len(reports) + num_lost,
            "num_lost": num_lost,
            "num_samples": num_samples,
            "num_samples_total": self.num_samples_total,
            "num_batches": sum(r.num_batches_seen for r in reports),
            "num_steps": sum(r.num_steps for r in reports),
            "flops": math.fsum(r.flops for r in reports),
            "learning_rate": _mean(r.learning_rate for r in sound),
            "train_loss": _mean_over_steps(sound),
            "data_fraction": _mean(self._data_fraction(r) for r in sound),
            "kept_fraction": _mean(r.kept_fraction for r in sound),
            "mask_overlap": _mean(r.mask_overlap for r in sound),
            "num_quarantined": len(reports) - len(sound),
            "energy_j": energy_j,
            "energy_total_j": self.energy_total_j,
            **_dropped(len(plan.dropped) if plan else 0, plan.dropped_work if plan else NOTHING_DROPPED),
            "mean_staleness": _mean(float(r.staleness or 0) for r in sound) if round_ != SETUP_ROUND else None,
            "num_late": sum((r.staleness or 0) > 0 for r in reports),
            "epsilon": self._epsilon_after(round_),
            **self._scores(evaluation),
        }

    def _data_fraction(self, report: DeviceReport) -> float | None:
        if report.round == SETUP_ROUND:
            return None
        return report.num_batches_seen / math.ceil(report.num_samples / self._batch_size)

    def _scores(self, evaluation: EvaluationResult | None) -> Row:
        names = ("accuracy", "loss", "metric", "perplexity", "metrics")
        empty = {f"{model}_{name}": None for model in ("global", "personal") for name in names}
        row: Row = {**empty, "personal_accuracy_trained": None, "num_devices_trained": len(self.trained)}
        if evaluation is None:
            return row
        shared = self._task.score(evaluation.shared) if self._layers.has_global_model else None
        personal = self._task.score(pooled(evaluation.personal, evaluation.personal))
        trained = self._task.score(pooled(evaluation.personal, self.trained))
        for model, scores in (("global", shared), ("personal", personal)):
            row |= {f"{model}_{name}": getattr(scores, name) for name in names} if scores else {}
        row["personal_accuracy_trained"] = trained.accuracy if trained else None
        return row

    def _layer_rows(self, round_: int, reports: Sequence[DeviceReport]) -> list[Row]:
        opened, reports = self._layers, _sound(reports)
        shared = {layer for name, layer in opened.layout.layers.items() if name in opened.shared_names}
        return [
            {
                "round": round_,
                "layer": layer,
                "sensitivity": None if opened.layer_scores is None else float(opened.layer_scores[layer]),
                "shared": layer in shared,
                "fisher_mass": _mean(r.layer_fisher[layer] for r in reports if r.layer_fisher is not None),
                "kept_neurons": _mean(float(r.kept_neurons[layer]) for r in reports if r.kept_neurons is not None),
            }
            for layer in range(opened.layout.num_layers)
        ]


def _dropped(num_dropped: int, work: DroppedWork | None) -> Row:
    """Devices whose work does not count, and its predicted cost; None if that is unknown."""
    return {
        "num_dropped": num_dropped,
        "dropped_bytes": None if work is None else work.num_bytes,
        "dropped_flops": None if work is None else work.flops,
        "dropped_energy_j": None if work is None else work.energy_j,
    }


def _sound(reports: Sequence[DeviceReport]) -> list[DeviceReport]:
    """The reports of devices whose update was combined."""
    return [report for report in reports if report.quarantined is None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _mean_over_steps(reports: Sequence[DeviceReport]) -> float | None:
    losses = [(r.train_loss, r.num_steps) for r in reports if r.train_loss is not None]
    steps = sum(count for _, count in losses)
    return math.fsum(loss * count for loss, count in losses) / steps if steps else None
