"""The experiment's `fleet` section: where devices run, and what happens when something is lost."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from fibec_ray.effects import OnlyWith, refuse_idle
from fibec_ray.errors import DeviceError, FleetError, round_name
from fibec_ray.types import Products, RoundPlan


class ActorClass(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Actors of a pooled fleet with the same resources, and the share of devices that they host."""

    share: float = Field(gt=0, le=1, description="share of the devices; all shares add up to 1")
    num_actors: int = Field(ge=1, description="actors of this class")
    cpus_per_actor: float = Field(1.0, gt=0, description="CPUs that an actor asks Ray for")
    gpus_per_actor: float = Field(0.0, ge=0, description="GPUs that an actor asks for; fractions are possible")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="custom resources, as in `ray start --resources`"
    )
    labels: dict[str, str] = Field({}, description="labels that the node must have, as in `ray start --labels`")

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of one of its actors."""
        amounts = {"CPU": self.cpus_per_actor, "GPU": self.gpus_per_actor, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}


OnRay = OnlyWith("kind", "ray")


class FleetConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Where devices run, on how many actors, and what happens when something is lost."""

    kind: Literal["ray", "local"] = Field("ray", description="Ray actors, or this process alone")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="where models compute. auto: on a GPU if there is one; cpu: never on a GPU; cuda: on GPUs, and a "
        "run without one is rejected",
    )
    threads: int = Field(1, ge=1, description="torch threads of each process; changes the last bits of results")
    lanes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="devices that share one forward pass; changes the last bits of results. auto: 1 for a float32 "
        "base on a CPU, otherwise found by a short trial at the start (kept in summary.json)",
    )
    products: Products | Literal["auto"] = Field(
        "auto",
        description="what multiplies frozen layers on a CPU; changes the last bits of results. auto: the fastest in a "
        "short trial at the start (kept in summary.json); torch: PyTorch's Linear; onednn: oneDNN; torch_float32, "
        "onednn_float32: the same in float32, for a bfloat16 base, casting weights block by block. No effect on a GPU",
    )
    placement: Annotated[Literal["per_device", "pooled", "auto"], OnRay] = Field(
        "auto",
        description="per_device: one actor for each device; pooled: actors host many devices. auto: per_device if all "
        "actors fit, with GPUs only if each device can have one",
    )
    num_actors: Annotated[int | None, OnRay] = Field(
        None, ge=1, description="actors of a pooled fleet; null: one for each CPU or GPU"
    )
    cpus_per_actor: Annotated[float | None, OnRay] = Field(
        None, gt=0, description="CPUs that an actor asks for; null: 1 if pooled, an equal share if per_device"
    )
    gpus_per_actor: float | None = Field(
        None,
        ge=0,
        description="GPUs that an actor asks for; null: an equal share, at most 1; 0: CPUs only, as with device: cpu; "
        "2 or more: for backbone.backend spread. With kind: local, null uses a GPU if there is one",
    )
    classes: Annotated[tuple[ActorClass, ...], OnRay] = Field(
        (),
        description="groups of actors with different resources, instead of num_actors, cpus_per_actor and "
        "gpus_per_actor; devices belong to them in order of their numbers",
    )
    address: Annotated[str | None, OnRay] = Field(
        None, description="HOST:PORT of a running cluster, or 'auto'; null: start a local one for this run"
    )
    object_store_mb: Annotated[int, OnRay] = Field(500, ge=80, description="object store of a local cluster, 1e6 bytes")
    startup_timeout_s: Annotated[float, OnRay] = Field(300, gt=0, description="limit for actors to start and answer")
    device_timeout_s: Annotated[float, OnRay] = Field(
        1800, gt=0, description="limit for one device-round, times the devices of a call; a slower actor counts as hung"
    )
    max_retries: Annotated[int, OnRay] = Field(
        3,
        ge=0,
        description="most re-runs of a lost device-round, restarts of an actor, and recoveries of the server",
    )
    on_lost: Annotated[Literal["retry", "drop", "abort"], OnRay] = Field(
        "retry",
        description="if a device-round is lost with its actor, node or update. retry: run it again up to max_retries "
        "times, then end the run with an error; drop: then continue without the device, if there is a quorum; "
        "abort: end the run at once",
    )
    on_bad_update: Literal["quarantine", "error"] = Field(
        "quarantine",
        description="if an update is not finite, too large (server.max_update_norm) or not what the method sends. It "
        "is never averaged. quarantine: log the reason and continue, if there is a quorum; error: end the run",
    )
    quorum: float = Field(
        0.5, gt=0, le=1, description="share of the cohort that must send a sound update; with fewer the run ends"
    )
    auto_startup_s: Annotated[float, OnRay] = Field(
        20, ge=0, description="auto uses per_device only if its actors can start within this time"
    )

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> FleetConfig:
        refuse_idle(self)
        if self.kind == "local" and 0 < (self.gpus_per_actor or 0) < 1:
            raise ValueError(
                f"gpus_per_actor {self.gpus_per_actor:g} has no effect with kind: local, which is one process; leave "
                "it out for a whole GPU, or set it to 0 for the CPU"
            )
        if self.placement == "per_device" and self.num_actors is not None:
            raise ValueError("num_actors has no effect with placement: per_device, which has one for each device")
        for gpus in self.gpu_shares:
            if (gpus or 0) > 1 and gpus != int(gpus or 0):
                raise ValueError(f"gpus_per_actor {gpus:g}: above 1 it must be a whole number of GPUs")
        self._check_device()
        if self.classes:
            self._check_classes()
        if self.placement == "per_device" and self.lanes not in (1, "auto"):
            raise ValueError(
                f"lanes {self.lanes} needs actors that host several devices, and placement: per_device gives each its "
                "own; set lanes=1, or placement=pooled"
            )
        return self

    def _check_device(self) -> None:
        own: set[float | None] = {each.gpus_per_actor for each in self.classes} or {self.gpus_per_actor}
        where = "gpus_per_actor of a class" if self.classes else "gpus_per_actor"
        most = max(gpus or 0 for gpus in own)
        if self.device == "cpu" and most:
            raise ValueError(
                f"device: cpu uses no GPU, but {where} is {most:g}; set {where} to 0, or device to auto or cuda"
            )
        if self.device == "cuda" and 0 in own:
            more = "more than 0" if self.classes else "more than 0, or leave it out"
            raise ValueError(
                f"device: cuda computes on GPUs only, but {where} is 0; set {where} to {more}, or device to auto"
            )

    def _check_classes(self) -> None:
        if self.placement != "pooled":
            raise ValueError("classes are of a pooled fleet; set placement: pooled")
        for name in ("num_actors", "cpus_per_actor", "gpus_per_actor"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect together with classes, which set it themselves; leave it out")
        total = sum(each.share for each in self.classes)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"classes: their shares of the devices add up to {total:g}; make it 1")

    @property
    def gpus(self) -> float | None:
        """GPUs of an actor without classes; None: an equal share of what the cluster has, at most one."""
        return 0.0 if self.device == "cpu" else self.gpus_per_actor

    @property
    def gpu_shares(self) -> set[float | None]:
        """`gpus`, for each class."""
        return {each.gpus_per_actor for each in self.classes} if self.classes else {self.gpus}

    @property
    def known_lanes(self) -> int | None:
        """The number of lanes; None if a trial at the start decides."""
        if self.placement == "per_device":
            return 1
        return None if self.lanes == "auto" else self.lanes


def check_quorum(config: FleetConfig, plan: RoundPlan, lost: Collection[int], bad: Mapping[int, str]) -> None:
    """Check that enough devices sent a sound update.

    lost: devices whose update never came. bad: device -> why its update was rejected.

    Raises DeviceError if the bad ones are the reason why the round cannot count, FleetError if the lost ones are.
    """
    needed = math.ceil(config.quorum * len(plan.cohort) - 1e-9)
    sound = len(plan.cohort) - len(lost) - len(bad)
    if sound >= needed and (config.on_bad_update == "quarantine" or not bad):
        return
    count = f"{sound} of {len(plan.cohort)} devices sent a sound update, fleet.quorum asks for {needed}"
    if bad:
        device = min(bad, key=plan.cohort.index)
        more = f" ({count})" if sound < needed else " (fleet.on_bad_update=quarantine goes on without it)"
        raise DeviceError(device, plan.round, "train", f"{bad[device]}{more}")
    raise FleetError(f"{round_name(plan.round)}: {count}; see the Ray logs for why actors die, or lower fleet.quorum")
