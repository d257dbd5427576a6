"""The experiment: one validated value with all settings of a run."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from fibec_ray.answers import Answers
from fibec_ray.checkpoints.checkpoint import CheckpointConfig
from fibec_ray.data.partition import PARTITIONS, DirichletLabel
from fibec_ray.data.partition_base import Partition
from fibec_ray.data.settings import DataConfig
from fibec_ray.devices import AnySystem, Simple
from fibec_ray.encoder import Reads
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.learning.budget import calibrated, sampling_of
from fibec_ray.learning.job import AnySampler, AnySchedule, Job, LocalTraining, ServerConfig
from fibec_ray.method import AXES, Method
from fibec_ray.models.base import AnyBackbone
from fibec_ray.models.kinds import BACKBONES, OneBackbone, class_of, parse
from fibec_ray.models.products import unfit
from fibec_ray.parts.own import Source
from fibec_ray.parts.part import LACKING, Setting, kind_of, sources_of
from fibec_ray.samplers.base import Sampler
from fibec_ray.schedules import SCHEDULES
from fibec_ray.schedules.base import Schedule
from fibec_ray.tasks import AnyTask
from fibec_ray.types import SETUP_ROUND


def _partition(value: Any) -> Any:
    """Parse `iid`, or a mapping with `kind`."""
    if isinstance(value, BaseModel):
        return value
    spec = {"kind": value} if isinstance(value, str) else value
    if isinstance(spec, dict) and "column" in spec and "kind" not in spec:
        spec = {"kind": "by_column", **spec}
    return PARTITIONS[kind_of(spec, PARTITIONS)].model_validate(spec)


ONE_BACKBONE = (
    "a federation has one backbone, found several: the server averages adapters entry by entry, so all devices need "
    "the same backbone; give one, and for devices with less memory set method.peft.ranks, or "
    "backbone.backend and backbone.checkpointing (docs/llama7b.md)"
)


def _is_mixture(value: Any) -> bool:
    """Whether a value is a list, or a mapping from device groups to backbones."""
    if not isinstance(value, dict):
        return isinstance(value, list | tuple)
    keys = {"kind", *BACKBONES[""].model_fields}
    misspelt = any(key in keys or get_close_matches(str(key), keys) for key in value)
    return len(value) > 1 and not misspelt and all(isinstance(group, dict | str) for group in value.values())


def _backbone(value: Any) -> AnyBackbone:
    """Parse a backbone. Raises ValueError."""
    if _is_mixture(value):
        raise ValueError(ONE_BACKBONE)
    return parse(value)


READERS: dict[Reads, str] = {
    "text": "is text; set backbone=minilm",
    "image": "has images; set backbone to {kind: cnn} or, for a pretrained model, {kind: image, name: HUB_ID}",
    "numbers": "has no text; set backbone to {kind: mlp} or, for images, {kind: cnn}",
}
"""What the samples of a task are, and how to choose a backbone for them."""


class Evaluation(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """When and how models are scored on test data. They are always scored after the last round."""

    every: int = Field(5, ge=1, description="rounds between evaluations")
    before_training: bool = Field(False, description="also score the models before round 1")
    batch_size: int = Field(64, ge=1, description="samples of a forward pass")


class Experiment(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """All settings of a run, checked. docs/settings.md describes each.

    Load one with `fibec_ray.config.load.load_experiment`, or pass names, dicts or paths to `fibec_ray.run`.
    """

    name: str = Field(min_length=1, max_length=100, description="names the run directory")
    seed: int = Field(0, ge=0, description="decides every random number of the run")
    rounds: int = Field(ge=1, le=10_000_000, description="communication rounds")
    num_devices: int = Field(ge=1, le=10_000_000, description="devices (clients) of the federation")
    cohort_size: int = Field(ge=1, description="devices drawn for each round")
    task: AnyTask
    method: Method = Method()
    data: DataConfig = DataConfig()
    partition: Annotated[SerializeAsAny[Partition], BeforeValidator(_partition)] = DirichletLabel()
    backbone: Annotated[OneBackbone, BeforeValidator(_backbone)] = BACKBONES[""]()
    local: LocalTraining = LocalTraining()
    sampler: AnySampler = Sampler()
    schedule: AnySchedule = Schedule()
    server: ServerConfig = ServerConfig()
    evaluation: Evaluation = Evaluation()
    system: AnySystem = Simple()
    fleet: FleetConfig = FleetConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if name in (".", "..") or any(char in "/\\" or not char.isprintable() for char in name):
            raise ValueError(f"{name!r} cannot be a folder name; remove slashes and line ends")
        return name

    @property
    def sources(self) -> dict[str, Source]:
        """Files and modules of the user's own parts, by name."""
        return sources_of(*self.method.parts.values(), self.sampler, self.schedule)

    def evaluates(self, round_: int) -> bool:
        """Whether models are scored after this round of the log: -1 is setup, before training."""
        if round_ == SETUP_ROUND:
            return self.evaluation.before_training
        return (round_ + 1) % self.evaluation.every == 0 or round_ == self.rounds - 1

    def job(self, answers: Answers) -> Job:
        """Return the settings that learning depends on. Pooled data belong to one device. A target of the privacy rule
        becomes the noise that meets it.

        answers: what a model gives for a sample; `Prepared.answers` of the prepared data.
        """
        federation = (self.cohort_size, self.num_devices)
        cohort_size, num_devices = (1, 1) if self.method.pooled else federation
        job = Job(
            **{name: getattr(self, name) for name in SHARED},
            cohort_size=cohort_size,
            num_devices=num_devices,
            pooled_cohort=federation if self.method.pooled else None,
            answers=answers,
            eval_batch_size=self.evaluation.batch_size,
            max_length=self.data.max_length,
        )
        return calibrated(job)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.cohort_size > self.num_devices:
            raise ValueError(f"cohort_size {self.cohort_size} is more than num_devices {self.num_devices}; lower it")
        if self.method.pooled and self.local.max_steps is not None:
            raise ValueError(
                f"local.max_steps {self.local.max_steps} limits a device's steps, but method.pooled takes as many as a "
                "whole cohort; leave out one of them"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _networks_are_trained_whole(cls, raw: Any) -> Any:
        """Set method.peft to full training for a network from scratch, which has no frozen base to adapt."""
        kind = class_of(raw.get("backbone")) if isinstance(raw, dict) else None
        if kind is None or kind.has_base:
            return raw
        method = raw.get("method", {})
        whole = next(kind for kind, cls in AXES["peft"].items() if cls.trains_base)
        if isinstance(method, Method) and "peft" not in method.model_fields_set:
            return {**raw, "method": method.model_copy(update={"peft": AXES["peft"][whole]()})}
        if isinstance(method, dict) and "peft" not in method:
            return {**raw, "method": {**method, "peft": whole}}
        return raw

    @model_validator(mode="after")
    def _task_fits(self) -> Experiment:
        if not self.backbone.can_read(self.task.reads):
            raise ValueError(
                f"{self.backbone.title} takes {self.backbone.reads}, but task {self.task.name} "
                f"{READERS[self.task.reads]}"
            )
        if why := self.backbone.unfit_for(self.task.readout):
            raise ValueError(f"task {self.task.name} {why}")
        if why := self.task.unfit_for(self.backbone):
            raise ValueError(why)
        if self.task.needs_base and not self.method.peft.can_switch_off:
            able = ", ".join(kind for kind, cls in AXES["peft"].items() if cls.can_switch_off)
            raise ValueError(
                f"method.peft: {self.method.peft.kind} cannot be switched off, but task {self.task.name} compares the "
                f"model with its frozen base; set method.peft to one of: {able}"
            )
        has = {"has_columns": self.task.has_columns, "has_texts": self.task.has_texts}
        if why := self.partition.unfit_for(f"task {self.task.name}", **has):
            raise ValueError(f"partition.{why}")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Experiment:
        """Check that each part fits the task, the backbone and the other settings; parts declare this themselves."""
        task = f"task {self.task.name}"
        lacking = {} if self.task.reads == "text" else {"text": task}
        lacking |= {} if self.task.has_countable_answers else {"classes": task}
        lacking |= dict.fromkeys(self.backbone.lacks, self.backbone.title)
        lacking |= dict.fromkeys(self.schedule.lacks, f"schedule {self.schedule.kind}")
        setting = Setting(
            cohort_size=self.schedule.num_updates(self.cohort_size),
            max_length=self.data.max_length,
            optimizer=self.local.optimizer,
            momentum=self.local.momentum,
            dtype=self.backbone.base_dtype,
            num_layers=self.backbone.num_layers,
            adapter_dtype=self.backbone.adapter_products,
            dropout=self.backbone.has_dropout or self.method.peft.drops_out,
            weight_decay=self.local.weight_decay,
            sampling=sampling_of(self),
        )
        for axis, part in self.method.all_parts:
            # What a device received is not what the server has, if the device started from an older model.
            needs = (*part.needs, "fresh") if "received" in part.needs else part.needs
            for need in needs:
                if need in lacking:
                    raise ValueError(f"method.{axis}: {part.kind} {LACKING[need].format(other=lacking[need])}")
            if why := part.unfit_for(setting):
                raise ValueError(f"method.{axis}: {why}")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Experiment:
        schedule, default = self.schedule, Schedule()
        if why := schedule.unfit_for_cohorts(self.cohort_size, self.num_devices):
            raise ValueError(f"schedule.{why}")
        if self.method.pooled and schedule != default:
            raise ValueError(
                f"schedule {schedule.kind} has no effect with method.pooled, which trains in one place; leave it out"
            )
        if self.method.pooled and self.sampler != Sampler():
            raise ValueError(
                f"sampler {self.sampler.kind} has no effect with method.pooled, which trains in one place; leave it out"
            )
        if schedule != default and not self.sampler.has_fixed_size:
            raise ValueError(
                f"sampler {self.sampler.kind} draws cohorts of any size, but schedule {schedule.kind} asks for a "
                f"number of devices; set schedule={default.kind}, or choose another sampler"
            )
        for axis, part in self.method.all_parts:
            for need in (need for need in schedule.needs if need in part.lacks):
                able = [kind for kind, cls in SCHEDULES.items() if need not in cls().needs]
                words = {"other": f"method.{axis} '{part.kind}'", "axis": "schedule", "neutral": default.kind}
                raise ValueError(f"schedule {schedule.kind} {LACKING[need].format(**words, able=', '.join(able))}")
        return self

    @model_validator(mode="after")
    def _own_files_differ_in_name(self) -> Experiment:
        _ = self.sources  # raises ValueError for two of one name
        return self

    @model_validator(mode="after")
    def _system_fits(self) -> Experiment:
        system = self.system
        if self.method.pooled and not system.is_always_available:
            idle = "dropout" if system.dropout else "availability"
            raise ValueError(
                f"system.{idle} has no effect with method.pooled, which trains in one place; leave out one of them"
            )
        if why := system.unfit_for(1 if self.method.pooled else self.num_devices):
            raise ValueError(f"system.{why}")
        return self

    @model_validator(mode="after")
    def _products_fit(self) -> Experiment:
        products = self.fleet.products
        if products != "auto" and not self.backbone.has_base:
            raise ValueError(
                f"fleet.products: {products} multiplies frozen layers, but {self.backbone.title} has none; leave it out"
            )
        if products != "auto" and not self.backbone.has_products:
            raise ValueError(
                f"fleet.products: {products} has no effect with backbone.backend {self.backbone.base_backend}, which "
                "uses PyTorch's products; leave it out, or set backbone.backend=plain"
            )
        if why := unfit(products, self.backbone.base_dtype):
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _tf32_fits(self) -> Experiment:
        if self.fleet.device == "cpu" and self.backbone.uses_tf32:
            raise ValueError(
                "backbone.tf32 has an effect only on a GPU, but fleet.device is cpu; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _gpus_fit(self) -> Experiment:
        """Allow several GPUs per actor only for a base that does not fit on one of them."""
        shares = [share or 0 for share in self.fleet.gpu_shares]
        gpus, least = max(shares), min(shares)
        backend = self.backbone.base_backend
        if gpus > 1 and backend not in ("auto", "spread"):
            what = f"backbone.backend {backend}" if self.backbone.has_base else "a network from scratch"
            raise ValueError(
                f"fleet.gpus_per_actor is {gpus:g}, and {what} uses one GPU of an actor; set it to 1 to run more "
                "actors at a time or, if the base does not fit on one GPU, set backbone.backend=spread"
            )
        if backend == "spread" and self.fleet.device == "cpu":
            raise ValueError(
                "backbone.backend: spread splits the base over several GPUs of an actor, but fleet.device is cpu; set "
                "backbone.backend=plain, or fleet.device=cuda and fleet.gpus_per_actor to 2 or more"
            )
        if backend == "spread" and least <= 1:
            raise ValueError(
                "backbone.backend: spread splits the base over several GPUs of an actor, but fleet.gpus_per_actor is "
                f"{'not set' if None in self.fleet.gpu_shares else f'{least:g}'}; set it to 2 or more"
            )
        return self


SHARED = (Job.model_fields.keys() & Experiment.model_fields.keys()) - {"cohort_size", "num_devices"}
"""Fields that Experiment and Job share."""
