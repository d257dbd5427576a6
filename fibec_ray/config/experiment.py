"""The experiment: one checked value that says everything about a run."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from fibec_ray.checkpoints.checkpoint import CheckpointConfig
from fibec_ray.data.partition import PARTITIONS, DirichletLabel, Partition
from fibec_ray.data.source import DataConfig
from fibec_ray.data.tasks import Task
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.learning.costs import System
from fibec_ray.learning.job import Job, LocalTraining, ServerConfig
from fibec_ray.method import Method
from fibec_ray.models.nets import NETS, Net, is_net
from fibec_ray.models.spec import Backbone
from fibec_ray.parts.curriculum.length_warmup import LengthWarmup
from fibec_ray.parts.part import Need, kind_of
from fibec_ray.parts.peft.full import Full
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.sharing.gal import GlobalLayers


def _partition(value: Any) -> Any:
    """`iid`, or a mapping with `kind`."""
    if isinstance(value, BaseModel):
        return value
    spec = {"kind": value} if isinstance(value, str) else value
    return PARTITIONS[kind_of(spec, PARTITIONS)].model_validate(spec)


ONE_BACKBONE = (
    "a federation has one, and several were found: the server averages adapters entry by entry, and those of different "
    "backbones have no common entries; give one, and for devices that have less room set method.peft.ranks, or "
    "backbone.backend and backbone.checkpointing (docs/llama7b.md)"
)


def _is_mixture(value: Any) -> bool:
    """A list, or a mapping from groups of devices to backbones."""
    if not isinstance(value, dict):
        return isinstance(value, list | tuple)
    keys = {"kind", *Backbone.model_fields}
    misspelt = any(key in keys or get_close_matches(str(key), keys) for key in value)
    return len(value) > 1 and not misspelt and all(isinstance(group, dict | str) for group in value.values())


def _backbone(value: Any) -> Any:
    """A mapping with `kind` is a network from scratch."""
    if isinstance(value, BaseModel):
        return value
    if _is_mixture(value):
        raise ValueError(ONE_BACKBONE)
    return (NETS[kind_of(value, NETS)] if is_net(value) else Backbone).model_validate(value)


LACKS: dict[Need, str] = {
    "text": "looks at tokens, and the samples of this task are no text; choose another kind",
    "transformer": "adapts a pretrained transformer, and this backbone is trained from scratch; set method.peft=full",
    "classes": "takes the expectation over all labels, and texts have too many; set its label to sampled, or observed",
    "lora": "is for the matrices of LoRA, which method.peft is not; choose another kind, or peft lora on a transformer",
}
"""What is said of a part that lacks something, by what it lacks."""


class Evaluation(BaseModel):
    """When and how models are scored on test data. Round T - 1 is always scored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    every: int = Field(5, ge=1, description="rounds between evaluations")
    batch_size: int = Field(64, ge=1)


class Experiment(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=100, description="names the run directory")
    seed: int = Field(0, ge=0)
    rounds: int = Field(ge=1, le=10_000_000)
    num_devices: int = Field(ge=1, le=10_000_000)
    cohort_size: int = Field(ge=1, description="devices drawn for each round")
    task: Task
    method: Method = Method()
    data: DataConfig = DataConfig()
    partition: Annotated[SerializeAsAny[Partition], BeforeValidator(_partition)] = DirichletLabel()
    backbone: Annotated[SerializeAsAny[Backbone | Net], BeforeValidator(_backbone)] = Backbone()
    local: LocalTraining = LocalTraining()
    server: ServerConfig = ServerConfig()
    evaluation: Evaluation = Evaluation()
    system: System = System()
    fleet: FleetConfig = FleetConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if name in (".", "..") or any(char in "/\\" or not char.isprintable() for char in name):
            raise ValueError(f"{name!r} names no folder; leave out slashes and line ends")
        return name

    def evaluates(self, round_: int) -> bool:
        return (round_ + 1) % self.evaluation.every == 0 or round_ == self.rounds - 1

    def job(self, num_classes: int, label_words: tuple[int, ...] | None) -> Job:
        return Job(
            seed=self.seed,
            rounds=self.rounds,
            num_devices=1 if self.method.pooled else self.num_devices,
            cohort_size=1 if self.method.pooled else self.cohort_size,
            method=self.method,
            backbone=self.backbone,
            local=self.local,
            system=self.system,
            num_classes=num_classes,
            label_words=label_words,
            eval_batch_size=self.evaluation.batch_size,
            max_length=self.data.max_length,
            server=self.server,
            stands_for=(self.cohort_size, self.num_devices) if self.method.pooled else None,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.cohort_size > self.num_devices:
            raise ValueError(f"cohort_size {self.cohort_size} is more than num_devices {self.num_devices}; lower it")
        aggregator = self.method.aggregator
        if self.cohort_size < aggregator.least_cohort:
            raise ValueError(
                f"cohort_size {self.cohort_size} is too small for method.aggregator {aggregator.kind}, which needs "
                f"{aggregator.least_cohort} as it is set; raise it, or change the aggregator's settings"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _networks_are_trained_whole(cls, raw: Any) -> Any:
        """method.peft is `full` for a network from scratch, unless it is set: there is nothing frozen to adapt."""
        if not isinstance(raw, dict) or not is_net(raw.get("backbone")):
            return raw
        method = raw.get("method", {})
        if isinstance(method, Method) and "peft" not in method.model_fields_set:
            return {**raw, "method": method.model_copy(update={"peft": Full()})}
        if isinstance(method, dict) and "peft" not in method:
            return {**raw, "method": {**method, "peft": "full"}}
        return raw

    @model_validator(mode="after")
    def _task_fits(self) -> Experiment:
        if isinstance(self.backbone, Net) and self.task.is_text:
            raise ValueError(
                f"backbone {self.backbone.kind} takes numbers, and task {self.task.name} is text; set backbone=minilm"
            )
        if isinstance(self.backbone, Backbone) and not self.task.is_text:
            raise ValueError(
                f"task {self.task.name} has no text, and a pretrained backbone reads nothing else; set backbone to "
                "{kind: mlp} or, for images, {kind: cnn}"
            )
        if isinstance(self.backbone, Backbone) and self.task.answers_in_text and self.backbone.head != "causal_lm":
            raise ValueError(
                f"task {self.task.name} is answered in text, and backbone.head {self.backbone.head} writes none; set "
                "backbone.head=causal_lm, with a decoder, or backbone=tiny-llama"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Experiment:
        """Every part has what it needs."""
        there: dict[Need, bool] = {
            "text": self.task.is_text,
            "classes": not self.task.answers_in_text,
            "transformer": isinstance(self.backbone, Backbone),
            "lora": isinstance(self.method.peft, Lora),
        }
        for axis, part in self.method.parts.items():
            for need in part.needs:
                if not there[need]:
                    raise ValueError(f"method.{axis}: {part.kind} {LACKS[need]}")
        return self

    @model_validator(mode="after")
    def _backbone_fits(self) -> Experiment:
        backbone, sharing = self.backbone, self.method.sharing
        if isinstance(backbone, Net):
            if isinstance(sharing, GlobalLayers) and not backbone.num_layers:
                raise ValueError("method.sharing: gal chooses among layers, and backbone.hidden has none; give some")
            return self
        if backbone.dtype == "bfloat16" and self.method.peft.trains_base:
            raise ValueError("method.peft: full trains the base itself, in float32; set backbone.dtype=float32")
        if backbone.dtype == "bfloat16" and isinstance(sharing, GlobalLayers) and not sharing.relative:
            raise ValueError(
                "method.sharing.budget is an absolute noise norm, too small to show in a bfloat16 base; "
                "set method.sharing.relative=true, or backbone.dtype=float32"
            )
        return self

    @model_validator(mode="after")
    def _gpus_fit(self) -> Experiment:
        """Several GPUs of an actor are for one thing: a base that has no room on the first of them."""
        shares = [share or 0 for share in self.fleet.gpu_shares]
        gpus, least = max(shares), min(shares)
        backend = self.backbone.backend if isinstance(self.backbone, Backbone) else "plain"
        if gpus > 1 and backend not in ("auto", "spread"):
            what = f"backbone.backend {backend}" if isinstance(self.backbone, Backbone) else "a network from scratch"
            raise ValueError(
                f"fleet.gpus_per_actor is {gpus:g}, and {what} uses one GPU of an actor; set it to 1, for more actors "
                "that train at the same time, or, for a base that one GPU has no room for, backbone.backend=spread"
            )
        if backend == "spread" and least <= 1:
            raise ValueError(
                "backbone.backend: spread lays the base over several GPUs of an actor, and fleet.gpus_per_actor is "
                f"{'not set' if None in self.fleet.gpu_shares else f'{least:g}'}; set it to 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _optimiser_fits(self) -> Experiment:
        kind, local = self.method.objective.kind, self.local
        if not self.method.objective.needs_plain_sgd:
            return self
        if local.optimizer != "sgd":
            raise ValueError(
                f"method.objective {kind} reads gradients off the steps of plain SGD; set local.optimizer=sgd and a "
                f"local.learning_rate that suits it, found {local.optimizer}"
            )
        if local.momentum:
            raise ValueError(
                f"method.objective {kind} reads gradients off the steps of plain SGD; set local.momentum=0, "
                f"found {local.momentum}"
            )
        return self

    @model_validator(mode="after")
    def _lengths_grow(self) -> Experiment:
        curriculum = self.method.curriculum
        if isinstance(curriculum, LengthWarmup) and curriculum.start >= self.data.max_length:
            raise ValueError(
                f"method.curriculum.start {curriculum.start} leaves nothing to warm up, as samples have at most "
                f"{self.data.max_length} tokens; lower it, or raise data.max_length"
            )
        return self

    @model_validator(mode="after")
    def _pooled_visits_are_known(self) -> Experiment:
        if self.method.pooled and self.local.max_steps is not None:
            raise ValueError(
                f"local.max_steps {self.local.max_steps} limits a device's steps, and method.pooled takes as many as a "
                "whole cohort; leave out one of them"
            )
        return self
