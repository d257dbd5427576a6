"""fibec_ray.json in a saved model's folder: what `fibec_ray.load` needs beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, model_validator

from fibec_ray.answers import Answers
from fibec_ray.checkpoints.identity import Identity
from fibec_ray.config.experiment import Experiment
from fibec_ray.data.instructions import InstructionFormat
from fibec_ray.errors import RunDirError
from fibec_ray.files.sealed import file_digest, read_sealed
from fibec_ray.models.kinds import OneBackbone

NAME = "fibec_ray.json"
FORMAT = 1

Predicts = Literal["classes", "texts", "values"]
"""One of several classes, a text, or a number."""


class Prompts(BaseModel, frozen=True, extra="forbid"):
    """How a model's inputs become tokens (`data/encode.py`)."""

    task: str
    """name, for messages"""
    text_columns: tuple[str, ...] = ()
    """one or two; empty where inputs are not text"""
    template: str = ""
    causal_template: str = ""
    instructions: InstructionFormat | None = None
    max_length: int

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task

    @property
    def verbaliser(self) -> tuple[str, ...]:
        """None: the tokens of its words are known."""
        return ()


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
    prompts: Prompts
    batch_size: int
    """`evaluation.batch_size`"""
    digests: dict[str, str] = {}
    """of the files with weights; empty where the model has not been written yet"""
    format: int = FORMAT

    @model_validator(mode="before")
    @classmethod
    def _of_older_files(cls, raw: Any) -> Any:
        """Files of earlier versions have `num_classes` (1 in a regression, 0 for text answers) and `label_words`."""
        if not isinstance(raw, dict) or "num_classes" not in raw:
            return raw
        count, words = raw["num_classes"], raw.get("label_words")
        answers: dict[str, Any] = {"likelihood": "normal" if count == 1 else "categorical", "num_scores": count}
        if count == 0:
            answers |= {"likelihood": "tokens", "readout": "response"}
        rest = {name: value for name, value in raw.items() if name not in ("num_classes", "label_words")}
        return rest | {"answers": answers | {"label_words": words}}

    @property
    def predicts(self) -> Predicts:
        """What the model predicts: classes, texts or values."""
        if self.answers.readout == "response":
            return "texts"
        return "values" if self.answers.likelihood == "normal" else "classes"

    @property
    def is_text(self) -> bool:
        """True if the model is a language model, so that inputs are texts."""
        return self.backbone.reads == "text"


def describe(experiment: Experiment, identity: Identity, label_names: Sequence[str], base: str = "") -> SavedModel:
    """The global model of a run. base: fingerprint of its frozen weights."""
    task, prepared = experiment.task.effective(experiment.data), identity.prepared
    prompts = Prompts(
        task=task.name,
        text_columns=getattr(task, "text_columns", ()),
        template=getattr(task, "template", ""),
        causal_template=getattr(task, "causal_template", ""),
        instructions=getattr(task, "format", None),
        max_length=experiment.data.max_length,
    )
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
        prompts=prompts,
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
