"""Callbacks of a run, such as the progress bar and Ray's metrics, and the writer of RUN/summary.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from fibec_ray.config.experiment import Experiment
from fibec_ray.files.run_dir import write_json
from fibec_ray.learning.prepare import Prepared
from fibec_ray.learning.run_totals import Row
from fibec_ray.reports import DeviceReport
from fibec_ray.types import Fleet

NAME = "summary.json"


class Callback:
    """Base class for code that follows a run: override the methods that you need, the others do nothing.

        class Stop(fibec_ray.Callback):
            def on_round_end(self, row):
                if (row["global_accuracy"] or 0) > 0.9:
                    raise KeyboardInterrupt

    An exception stops the run, which can be resumed.
    """

    def on_data(self, prepared: Prepared) -> None:
        """Called when the data have been loaded and dealt to devices.

        prepared: scores of trivial predictors (`anchors`), facts about the shards (`heterogeneity`).
        """

    def on_start(self, fleet: Fleet) -> None:
        """Called when the fleet is ready and the setup phase is over, before the first round.

        fleet: its attributes `device`, `lanes`, `products` and `backend_choice` say where and how devices compute.
        """

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """Called as devices complete a stage of a round: start, setup, train or evaluate."""

    def on_round_end(self, row: Row) -> None:
        """Called when a round has ended and is in the round log.

        row: the round's row of the `rounds` table; scores are None in rounds without evaluation. The setup phase is
        round -1.
        """

    def on_reports(self, reports: Sequence[DeviceReport]) -> None:
        """Called with a round's rows of the `devices` table, just before `on_round_end`."""

    def on_message(self, text: str) -> None:
        """Called with a line that the user should know, such as a lost device."""


class CallbackList(Callback):
    """Several callbacks as one: each call goes to all of them, in order."""

    def __init__(self, *callbacks: Callback):
        for name in (name for name in vars(Callback) if not name.startswith("_")):
            setattr(self, name, partial(_tell, [getattr(callback, name) for callback in callbacks]))


def _tell(calls: Sequence[Callable[..., None]], *what: Any) -> None:
    for call in calls:
        call(*what)


def read_summary(folder: Path) -> dict[str, Any]:
    """Read RUN/summary.json: a run's settings in short, where its devices compute, and its status. {} if unreadable."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class Summary(Callback):
    """Writes RUN/summary.json: at the start, when the fleet is ready, and at the end."""

    def __init__(
        self, folder: Path, experiment: Experiment, prepared: Prepared, note: Callable[[str], None], version: str = ""
    ):
        """note: tells the user something. version: of fibec_ray, when the run began."""
        self._path, self._note = folder / NAME, note
        self._known = {
            "name": experiment.name,
            "method": experiment.method.name,
            "task": experiment.task.name,
            "metric": experiment.task.metric,
            "seed": experiment.seed,
            "rounds": experiment.rounds,
            "num_devices": experiment.num_devices,
            "cohort_size": experiment.cohort_size,
            "anchors": prepared.anchors,
            "heterogeneity": prepared.heterogeneity,
        }
        earlier = read_summary(folder)
        if earlier.get("device") is not None:
            self._known["device"] = str(earlier["device"])
        if "lanes_trial" in earlier:  # a resumed run keeps its lanes, without another trial
            self._known["lanes_trial"] = earlier["lanes_trial"]
        self._known |= {
            "started": str(earlier.get("started") or datetime.now(UTC).isoformat(timespec="seconds")),
            "version": version,
        }

    def write(self, status: str, fleet: Fleet | None = None, **more: Any) -> None:
        """Replace the file. status: running, finished or failed. fleet: None before there is one."""
        device = _where(fleet) if fleet and fleet.device else {}
        backend_choice = dict(
            zip(("backend", "backend_reason"), fleet.backend_choice or () if fleet else (), strict=False)
        )
        products = {"products": fleet.products} if fleet and fleet.products else {}
        write_json(self._path, {**self._known, "status": status, **device, **backend_choice, **products, **more})

    def on_start(self, fleet: Fleet) -> None:
        self.write("running", fleet, lanes=fleet.lanes)
        earlier = self._known.get("device", fleet.device)
        if earlier != fleet.device:
            self._note(
                f"this run computed on {earlier} before and computes on {fleet.device} now: results differ by rounding "
                "from those of one device type"
            )


def _where(fleet: Fleet) -> dict[str, Any]:
    """The device type, and the rates that chose the lanes: device-steps per second by number of lanes."""
    found = fleet.calibration
    if found is None or not (found.rates or found.limit):
        return {"device": fleet.device}
    rates = {str(lanes): rate for lanes, rate in found.rates.items()}
    return {"device": fleet.device, "lanes_trial": {"rates": rates, "limit": found.limit}}
