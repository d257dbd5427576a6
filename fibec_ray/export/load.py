"""Load the model that a run leaves, from its folder or its URL: `fibec_ray.load`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from fibec_ray.checkpoints import checkpoint
from fibec_ray.checkpoints.checkpoint import Checkpoint, read_state
from fibec_ray.environment import quiet_warnings
from fibec_ray.errors import ConfigError, RunDirError
from fibec_ray.export.predict import TrainedModel
from fibec_ray.export.saved import open_saved
from fibec_ray.files.run_dir import absolute
from fibec_ray.files.storage import Storage, is_url
from fibec_ray.fleets.gpus import torch_device
from fibec_ray.fleets.worker_spec import ONE_BY_ONE
from fibec_ray.learning.group_worker import GroupWorker
from fibec_ray.learning.server import Server
from fibec_ray.models.process_state import quiet_libraries, restored
from fibec_ray.runs.records import Record, products_of, read_record
from fibec_ray.runs.save import relative_base
from fibec_ray.runs.saved_model import describe
from fibec_ray.runs.simulation import label_names, worker_spec_of

TABLES = ("rounds/", "devices/", "layers/", "evaluations/")
"""Folders of the round log, which no model is in."""


@restored()
def load(run: Any, device: int | None = None, *, base: str | None = None, on: str | None = None) -> TrainedModel:
    """The trained model of a run, ready to predict.

    run: a run directory or its URL (s3://, gs://, ...), a folder that `fibec-ray export RUN DIR` wrote, or what
    `fibec_ray.run` returned. device: a federated device, for its personal model after the newest checkpoint; None: the
    global model. base: folder or hub id of the backbone, if it is not where the run had it. on: torch's device, such as
    "cpu" or "cuda:0"; None: a GPU if there is one.

    If the run used parts from files, this runs the Python files saved in RUN/parts. Raises RunDirError for a
    folder without a model, ModelError for a base that is missing or is another one, ConfigError for a device that the
    run or this machine does not have.
    """
    quiet()
    with local_copy(str(getattr(run, "folder", run)), device) as folder:
        if device is not None:
            model, _ = open_personal(folder, device, base, device_here(on))
            return model
        return open_saved(folder, base, device_here(on))


def quiet() -> None:
    """Silence what libraries announce while a model is built. `restored` brings their warnings back."""
    quiet_libraries()
    quiet_warnings()


def device_here(on: str | None) -> str:
    """torch's device; None: a GPU if there is one. Raises ConfigError for a device that is not here."""
    if on is None:
        return torch_device(None, torch.cuda.is_available())
    try:
        torch.zeros(1, device=on)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        why = str(error).splitlines()[0]
        raise ConfigError(
            f"--on {on}: torch cannot use this device ({why}); give cpu, or a GPU such as cuda:0"
        ) from error
    return on


@contextmanager
def local_copy(run: str, device: int | None) -> Iterator[Path]:
    """The run's folder. For a URL it is a copy of what a model needs, which is removed when the block ends."""
    if not is_url(run):
        yield absolute(Path(run).expanduser())
        return
    storage = Storage(run)
    names = [name for name in storage.files() if _is_needed(name, device)]
    if not names:
        raise RunDirError(f"{storage.shown}: no saved model here; give the URL of a run directory that has finished")
    with TemporaryDirectory(prefix="fibec-ray-") as folder:
        storage.download(Path(folder) / "run", names)
        yield Path(folder) / "run"


def _is_needed(name: str, device: int | None) -> bool:
    """Of a run's files: the saved model; for a personal one also settings, data, checkpoints and its own states."""
    if device is None:
        return name.startswith(("adapter/", "parts/")) or "/" not in name or name == "checkpoints/run.json"
    states = re.match(r"checkpoints/devices/(\d+)/", name)
    return not name.startswith(TABLES) and (states is None or int(states.group(1)) == device)


def open_personal(folder: Path, device: int, base: str | None, place: str) -> tuple[TrainedModel, GroupWorker]:
    """A device's own model after the newest checkpoint, and the worker that hosts it."""
    record = read_record(folder)
    num_devices = record.experiment.num_devices
    if not isinstance(device, int | np.integer) or not 0 <= device < num_devices:
        raise ConfigError(f"device {device!r}: the run has devices 0 to {num_devices - 1}")
    solver = record.experiment.method.solver
    if solver.num_references:
        raise ConfigError(
            f"device {device}: {solver.kind} mixes two adapters for each sample, so the device has no single model of "
            "its own; leave out the device for the shared model"
        )
    start = _newest(record)
    about = describe(record.experiment, record.identity, label_names(record.experiment))
    round_ = start.manifest.next_round
    about = about.model_copy(
        update={"device": device, "round": round_, "base_path": relative_base(about.backbone, record.folder)}
    )
    host = worker_spec_of(record.experiment, record.folder, record.identity)
    host = replace(host, device=place, fleet=ONE_BY_ONE).with_products(products_of(record))
    backbone = about.backbone.found_at(record.folder, base, about.base_path, place)
    host = replace(host, job=host.job.model_copy(update={"backbone": backbone}))
    tokenizer = backbone.preprocessor()
    start.refuse_other_base(host.base_fingerprint())
    worker = host.worker()
    server = Server(host.job, worker.initial, worker.layout)
    server.restore(read_state(start.server))
    worker.become(device, server.broadcast(round_), start.manifest.states)
    engine: Any = worker.model
    return TrainedModel(about, engine, tokenizer), worker


def _newest(record: Record) -> Checkpoint:
    rounds = checkpoint.rounds_kept(record.folder)
    if not rounds:
        raise RunDirError(
            f"{record.folder}: has no checkpoint, which devices' own models are in; a run fetched through a job's log "
            "leaves them out (`fibec-ray fetch --shared`, or submit with --out URL)"
        )
    return checkpoint.load(record.folder, rounds[-1])
