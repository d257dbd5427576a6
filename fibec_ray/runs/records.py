"""Reads and checks a run directory: settings, data, rounds logged. Sets up a place to run parts of it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fibec_ray.checkpoints import checkpoint
from fibec_ray.checkpoints.identity import Identity, read_identity
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check, first_difference, load_saved, with_paths, without_old_settings
from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import absolute
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.models.products import NAMES, of_older_runs
from fibec_ray.roundlog.parts import parts, round_of
from fibec_ray.runs.callbacks import read_summary
from fibec_ray.runs.simulation import resolved, worker_spec_of
from fibec_ray.types import Products, States

BINDING = ("threads", "lanes", "products")
"""Settings of the fleet that results depend on."""


@dataclass(frozen=True)
class Record:
    """A run directory's contents, checked: its identity and its experiment."""

    folder: Path
    identity: Identity
    experiment: Experiment

    def computing(self, lanes: int, products: Products | None = None) -> Record:
        """The record with fleet.lanes and fleet.products as the run used them. products: None: as they are.

        Raises ConfigError if the fleet cannot have them.
        """
        settings = resolved(self.experiment) | {"method": self.experiment.method}
        settings["fleet"] |= {"lanes": lanes} | ({"products": products} if products else {})
        return replace(self, experiment=check(settings, str(self.folder / "config.yaml")))


def lanes_of(record: Record) -> int:
    """Number of devices that computed side by side in the run, from its checkpoints. Raises RunDirError if unknown."""
    rounds, known = checkpoint.rounds_kept(record.folder), record.experiment.fleet.known_lanes
    if rounds:
        return checkpoint.load(record.folder, rounds[-1]).manifest.lanes
    if known is None:
        raise RunDirError(
            f"{record.folder}: has no checkpoint, so the number of lanes it computed with is unknown; start a new run"
        )
    return known


def products_of(record: Record) -> Products | None:
    """What multiplied frozen layers in the run, from its checkpoints; None if it had none, as on GPUs.

    Runs from before `fleet.products` existed used those of `of_older_runs`.
    """
    if not record.experiment.backbone.has_products:
        return None
    rounds, configured = checkpoint.rounds_kept(record.folder), record.experiment.fleet.products
    kept = checkpoint.load(record.folder, rounds[-1]).manifest.products if rounds else None
    if kept is not None:
        return kept
    if configured != "auto":
        return configured
    summary = read_summary(record.folder)
    told, device = summary.get("products"), str(summary.get("device", "cpu"))
    if told in NAMES:
        return told
    return of_older_runs() if "cpu" in device else None


def read_record(folder: Path, overrides: Sequence[str] = ()) -> Record:
    """Read a run directory. Raises RunDirError for another folder, or if settings or data have changed since the start.

    overrides: of `fleet` and `checkpoint`, except threads, lanes and products, which results depend on.
    """
    folder = absolute(folder)
    identity = read_identity(folder)
    identity.refuse_other_files(folder)
    config = folder / "config.yaml"
    experiment = load_saved(config, overrides)
    began = check(without_old_settings(with_paths(identity.config, folder)), str(config))
    if binding(experiment) != binding(began):
        difference = first_difference(binding(began), binding(experiment))
        raise RunDirError(
            f"{config}: differs from the settings that the run began with ({difference}); only "
            "checkpoint and fleet may change, except fleet.threads, fleet.lanes and fleet.products; set it back, or "
            "start a new run"
        )
    identity.refuse_other_parts(experiment.sources, folder)
    identity.refuse_other_data(folder)
    return Record(folder, identity, experiment)


def binding(experiment: Experiment) -> dict[str, Any]:
    """The settings that results depend on."""
    settings = resolved(experiment)
    del settings["checkpoint"]
    return {**settings, "fleet": {name: settings["fleet"][name] for name in BINDING}}


def finished_digest(folder: Path) -> str | None:
    """The final adapter's digest; None if the run has not finished."""
    summary = read_summary(folder)
    finished = summary.get("status") == "finished" and "adapter_digest" in summary
    return str(summary["adapter_digest"]) if finished else None


def last_logged(folder: Path) -> int:
    """The newest round of the log; -2 if it has none, not even the setup phase."""
    return max((round_of(path) for path in parts(folder / "rounds")), default=-2)


@contextmanager
def staged(record: Record, lanes: int, states: States) -> Iterator[WorkerSpec]:
    """A temporary folder with the run's data and the given device states, to compute in with the run's products.

    Raises RunDirError if a state is missing, or if the run computed on a GPU and there is none.
    """
    with TemporaryDirectory(prefix="fibec-ray-") as name:
        worker_spec = worker_spec_of(record.experiment, Path(name), record.identity)
        worker_spec = replace(
            worker_spec,
            device=_device_of(record, worker_spec.device),
            fleet=worker_spec.fleet.model_copy(update={"lanes": lanes}),
        ).with_products(products_of(record))
        (worker_spec.run_dir / "data").symlink_to(record.folder / "data", target_is_directory=True)
        origin = worker_spec_of(record.experiment, record.folder, record.identity)
        for device, ref in states.items():
            state, link = (place.store.path(device, ref.version) for place in (origin, worker_spec))
            if not state.is_file():
                raise RunDirError(f"{state}: the device's state that the checkpoint counts on is missing")
            link.parent.mkdir(parents=True)
            link.symlink_to(state)
        yield worker_spec


def _device_of(record: Record, here: str) -> str:
    """The torch device on which to repeat rounds, of the same type as in the run. here: that of a new run."""
    ran = read_summary(record.folder).get("device")
    if ran == "cuda" and here == "cpu":
        raise RunDirError(
            f"{record.folder}: this run computed on a GPU, and on a CPU the last bits of its results differ; repeat "
            "its rounds on a machine where torch sees a GPU"
        )
    return "cpu" if ran == "cpu" else here
