"""fibec_ray.json in a saved model's folder: what `fibec_ray.load` needs beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, model_validator

from fibec_ray.answers import Answers
from fibec_ray.checkpoints.identity import Identity
from fibec_ray.config.experiment import Experiment
from fibec_ray.errors import RunDirError
from fibec_ray.files.sealed import file_digest, read_sealed
from fibec_ray.models.kinds import OneBackbone
from fibec_ray.runs.older_models import of_older_file
from fibec_ray.tasks import AnyTask

NAME = "fibec_ray.json"
FORMAT = 1


class SavedModel(BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """Everything that it takes to load a saved model and to predict as the run's evaluation does."""

    name: str
    method: str
    round: int
    """rounds that the model was trained for"""
    device: int | None = None
    """federated device of a personal model; None: the global model"""
    created: str
    """UTC, ISO 8601"""
    versions: dict[str, str]
    backbone: OneBackbone
    base_path: str | None = None
    """a local backbone's folder, relative to this file's"""
    base_fingerprint: str = ""
    """of the frozen weights in the run; '': unknown"""
    peft: dict[str, Any]
    seed: int
    answers: Answers
    """what the model gives for a sample"""
    label_names: tuple[str, ...] = ()
    has_global: bool = True
    """False if the head, or all of the model, is trained on devices only"""
    task: AnyTask
    """as it was trained"""
    max_length: int
    """most tokens of a sample"""
    batch_size: int
    """`evaluation.batch_size`"""
    digests: dict[str, str] = {}
    """of the files with weights; empty where the model has not been written yet"""
    format: int = FORMAT

    @model_validator(mode="before")
    @classmethod
    def _of_older_files(cls, raw: Any) -> Any:
        return of_older_file(raw) if isinstance(raw, dict) else raw


def describe(experiment: Experiment, identity: Identity, label_names: Sequence[str], base: str = "") -> SavedModel:
    """The global model of a run. base: fingerprint of its frozen weights."""
    task, prepared = experiment.task.effective(experiment.data), identity.prepared
    return SavedModel(
        name=experiment.name,
        method=experiment.method.name,
        round=experiment.rounds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=identity.versions,
        backbone=experiment.backbone,
        base_fingerprint=base,
        peft=experiment.method.peft.model_dump(mode="json"),
        seed=experiment.seed,
        answers=prepared.answers(task),
        label_names=tuple(label_names),
        task=task,
        max_length=experiment.data.max_length,
        batch_size=experiment.evaluation.batch_size,
    )


def read_saved_model(folder: Path) -> SavedModel:
    """Raises RunDirError if the folder has no such model, or if its weights are not those that were saved."""
    about = read_sealed(folder / NAME, SavedModel, "a model that fibec_ray saved")
    for name, digest in about.digests.items():
        if not (folder / name).is_file():
            raise RunDirError(f"{folder / name}: is missing; copy the whole folder again")
        if file_digest(folder / name) != digest:
            raise RunDirError(
                f"{folder / name}: has changed since the run saved it; copy the folder again, or load it with "
                "transformers and PEFT if the change is yours"
            )
    return about
