"""How a fleet is laid out; read from the experiment's `fleet` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fibec_ray.fleets.tolerance import Tolerance


class FleetConfig(BaseModel):
    """kind: ray (actors) or local (this process). The others are of the Ray fleet, but for `threads`,
    `lanes`, `on_bad_update` and `quorum`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["ray", "local"] = "ray"
    threads: int = Field(1, ge=1, description="torch threads of each process; part of what makes results bit-equal")
    lanes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="devices that compute side by side in one pass; like threads, part of the bits. auto: 1 for a "
        "float32 base on a CPU, else as a short trial at the start finds, which the run's summary.json keeps",
    )
    placement: Literal["per_device", "pooled", "auto"] = Field(
        "auto", description="one actor for each device, or actors that host many, or whichever fits"
    )
    num_actors: int | None = Field(
        None, ge=1, description="of a pooled fleet; null: as many as the cluster's CPUs or GPUs"
    )
    cpus_per_actor: float | None = Field(None, gt=0, description="null: 1 pooled, an equal share per_device")
    gpus_per_actor: float | None = Field(
        None,
        ge=0,
        description="null: an equal share of the GPUs, if there are any, at most 1; 2 and more, of one node: see "
        "backbone.backend spread",
    )
    address: str | None = Field(None, description="of a running cluster, or 'auto'; null: a local one for this run")
    object_store_mb: int = Field(500, ge=80, description="object store of a local cluster, 1e6 bytes")
    startup_timeout_s: float = Field(300, gt=0, description="for actors to be created and answer")
    device_timeout_s: float = Field(
        1800, gt=0, description="for one device-round, times as many as a call has; a slower actor counts as hung"
    )
    max_retries: int = Field(
        3, ge=0, description="re-runs of a device-round that was lost, restarts of an actor, recoveries of the server"
    )
    on_lost: Literal["retry", "drop", "abort"] = Field(
        "retry",
        description="a device-round whose actor, node or update is lost. retry: runs again, max_retries times at most, "
        "then the run ends with an error; drop: then the round goes on without the device, if there is a quorum; "
        "abort: the run ends at once",
    )
    on_bad_update: Literal["quarantine", "error"] = Field(
        "quarantine",
        description="an update that is not finite, or whose names or shapes are not those that the server has. It is "
        "never averaged. quarantine: the round goes on without it, if there is a quorum, and the log says why; error: "
        "the run ends",
    )
    quorum: float = Field(
        0.5, gt=0, le=1, description="share of the cohort whose sound updates a round needs; with fewer the run ends"
    )
    auto_startup_s: float = Field(
        20, ge=0, description="auto takes per_device only if its actors can start in this time"
    )

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> FleetConfig:
        if self.placement == "per_device" and self.num_actors is not None:
            raise ValueError("num_actors has no effect with placement: per_device, which has one for each device")
        if (gpus := self.gpus_per_actor or 0) > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_actor {gpus:g}: above 1 no part of a GPU can be had; give a whole number")
        if self.placement == "per_device" and self.lanes not in (1, "auto"):
            raise ValueError(
                f"lanes {self.lanes} needs actors that host several devices, and placement: per_device gives each its "
                "own; set lanes=1, or placement=pooled"
            )
        return self

    @property
    def tolerance(self) -> Tolerance:
        return Tolerance(self.quorum, self.on_bad_update == "quarantine")

    @property
    def known_lanes(self) -> int | None:
        """None if they are to be found."""
        if self.placement == "per_device":
            return 1
        return None if self.lanes == "auto" else self.lanes
