"""Decide once how many actors there are, what each gets, and which devices it hosts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from fibec_ray.errors import FleetError
from fibec_ray.fleets.settings import ActorClass, FleetConfig

ACTOR_BYTES = 450_000_000
"""Private memory of an actor with torch, transformers and peft imported and a small adapter in training. It is assumed
where no plan was made."""
ACTOR_CPU_S = 2.7
"""CPU seconds of those imports."""
MEMORY_SHARE = 0.7
"""Share of the available memory that actors may plan to use."""


@dataclass(frozen=True)
class Resources:
    """Resources of a cluster."""

    cpus: float
    gpus: float
    memory_bytes: int
    """available to actors, over all nodes"""
    gpu_memory: int | None = None
    """free bytes of the smallest GPU; None without a GPU, or if unknown"""


@dataclass(frozen=True)
class Need:
    """Bytes of host memory. alone: of an actor that hosts one device at a time, pooled: of one whose devices compute
    side by side where that is set. fixed: of all else, base weights included.

    gpu: GPU memory of an actor that computes for one device at a time, with CUDA's context and its copy of the base.
    beside: the part that activations and adapters take. lanes: the most that a GPU has room for, where they are not
    set. 0 and None where that is not planned."""

    alone: int = ACTOR_BYTES
    pooled: int = ACTOR_BYTES
    fixed: int = 0
    gpu: int = 0
    beside: int | None = None
    lanes: int | None = None


UNFORESEEN = Need()


@dataclass(frozen=True)
class Placement:
    """Where devices run. per_device: actor i hosts device i only. Otherwise any actor may host any device."""

    per_device: bool
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    reason: str
    memory_per_actor: int = 0
    """bytes that Ray reserves on the actor's node"""
    classes: tuple[ActorClass, ...] = ()
    """of actors that differ, in their order; cpus_per_actor and gpus_per_actor are then the largest of them"""

    @property
    def device(self) -> str:
        """Type of device that actors compute on."""
        shares = [each.gpus_per_actor for each in self.classes] or [self.gpus_per_actor]
        return " and ".join(sorted({"cuda" if share else "cpu" for share in shares}))

    def class_of_actor(self, actor: int) -> int:
        """The class of an actor; 0 if all are alike."""
        first_of_next = accumulate(each.num_actors for each in self.classes)
        return next((number for number, first in enumerate(first_of_next) if actor < first), 0)

    def class_of_device(self, device: int, num_devices: int) -> int:
        """The class of a device: devices are split by number, according to the classes' shares."""
        shares = accumulate(each.share for each in self.classes)
        return next((number for number, end in enumerate(shares) if device < round(end * num_devices)), 0)

    def options(self, actor: int) -> dict[str, Any]:
        """Ray's options for one of the actors."""
        if not self.classes:
            own: dict[str, Any] = {"num_cpus": self.cpus_per_actor, "num_gpus": self.gpus_per_actor}
        else:
            it = self.classes[self.class_of_actor(actor)]
            own = {"num_cpus": it.cpus_per_actor, "num_gpus": it.gpus_per_actor, "resources": it.resources}
            if it.labels:  # Ray has no strategy beside a label selector
                return own | {"label_selector": it.labels, "memory": self.memory_per_actor}
        return own | {"memory": self.memory_per_actor, "scheduling_strategy": "SPREAD"}


def decide(config: FleetConfig, num_devices: int, have: Resources, need: Need = UNFORESEEN) -> Placement:
    """The configured placement; for `auto`, the one that fits. Raises FleetError if none does."""
    if config.device == "cuda" and not have.gpus:
        where = "the cluster" if config.address else "this machine"
        raise FleetError(
            f"fleet.device: cuda, but {where} has no GPU; set it to auto or cpu, or use a cluster that has one"
        )
    obstacle, reason = None, "as configured"
    if config.placement == "auto":
        obstacle = _obstacle(config, num_devices, have, need)
        reason = f"auto: {obstacle or f'{num_devices} actors fit'}"
    if config.placement == "per_device" or (config.placement == "auto" and obstacle is None):
        return _with_memory(_per_device(config, num_devices, have, reason), need.alone, have)
    placed = _of_classes(config, have) if config.classes else _pooled(config, num_devices, have, reason)
    return _with_memory(placed, need.pooled, have)


def room(placement: Placement, num_devices: int, have: Resources) -> int:
    """How many actors of a pooled placement the cluster has room for now."""
    slots = _gpu_slots(have.gpus, placement.gpus_per_actor) or math.floor(have.cpus / placement.cpus_per_actor + 1e-9)
    if placement.memory_per_actor:
        slots = min(slots, have.memory_bytes // placement.memory_per_actor)
    return min(slots, num_devices)


def _gpu_slots(gpus: float, per_actor: float | None) -> int:
    """How many actors can have whole GPUs; 0 if they compute on CPUs."""
    return max(1, int(gpus / max(1.0, per_actor or 0.0))) if gpus >= 1 and per_actor != 0 else 0


def actors_on_a_gpu(num_actors: int, share: float) -> int:
    """The most actors on one GPU (Ray fills a GPU before it uses the next); 0 if they compute on CPUs."""
    return min(num_actors, math.floor(1 / min(1.0, share) + 1e-9)) if share else 0


def gpu_part(gpu_memory: int | None, sharing: int, share: float) -> int | None:
    """GPU memory that one actor may use, bytes; None if unknown, or without a GPU.

    gpu_memory: of the GPU. sharing: actors on it. share: `gpus_per_actor`; torch enforces shares below 1."""
    if gpu_memory is None or not sharing:
        return None
    return min(gpu_memory // sharing, int(gpu_memory * min(1.0, share)))


def _with_memory(placement: Placement, wanted: int, have: Resources) -> Placement:
    """Memory to reserve per actor, so that Ray avoids full nodes; at most an equal share."""
    return replace(placement, memory_per_actor=min(wanted, have.memory_bytes // placement.num_actors))


def _obstacle(config: FleetConfig, num_devices: int, have: Resources, need: Need) -> str | None:
    """Why one actor per device does not fit; None if it does."""
    if config.known_lanes is not None and config.known_lanes > 1:
        return f"{config.known_lanes} lanes need actors that host several devices"
    needed, allowed = num_devices * need.alone + need.fixed, MEMORY_SHARE * have.memory_bytes
    if needed > allowed:
        return f"{num_devices} actors need {needed / 1e9:.1f} GB, {allowed / 1e9:.1f} GB may be used"
    seconds = num_devices * ACTOR_CPU_S / max(have.cpus, 1)
    if seconds > config.auto_startup_s:
        return f"{num_devices} actors would take {seconds:.0f} s to start, auto_startup_s is {config.auto_startup_s:g}"
    for name, per_actor, total in (
        ("CPUs", config.cpus_per_actor, have.cpus),
        ("GPUs", config.gpus, have.gpus),
    ):
        if per_actor is not None and per_actor * num_devices > total:
            return f"{num_devices} actors need {per_actor * num_devices:g} {name}, the cluster has {total:g}"
    return _gpu_obstacle(config, num_devices, have, need)


def _gpu_obstacle(config: FleetConfig, num_devices: int, have: Resources, need: Need) -> str | None:
    """Why GPUs do not fit; None if they do. Lanes of an actor share a base and a CUDA context, actors do not."""
    if not have.gpus or config.gpus == 0:
        return None
    gpus = "1 GPU" if have.gpus == 1 else f"{have.gpus:g} GPUs"
    if config.gpus is None:
        return f"{num_devices} devices share {gpus}, an actor for each GPU" if num_devices > have.gpus else None
    sharing = actors_on_a_gpu(num_devices, config.gpus)
    if have.gpu_memory is not None and sharing * need.gpu > have.gpu_memory:
        return f"{sharing} actors on a GPU need {sharing * need.gpu / 1e9:.1f} GB, {have.gpu_memory / 1e9:.1f} are free"
    part = gpu_part(have.gpu_memory, sharing, config.gpus)
    if part is not None and need.gpu > part:
        share = f"its share ({config.gpus:g}) is {part / 1e9:.1f} GB"
        return f"an actor needs {need.gpu / 1e9:.1f} GB of GPU memory, but {share}"
    return None


def _per_device(config: FleetConfig, num_devices: int, have: Resources, reason: str) -> Placement:
    cpus = config.cpus_per_actor if config.cpus_per_actor is not None else min(1.0, _share(have.cpus, num_devices))
    gpus = config.gpus if config.gpus is not None else min(1.0, _share(have.gpus, num_devices))
    return _checked(Placement(True, num_devices, cpus, gpus, reason), have)


def _pooled(config: FleetConfig, num_devices: int, have: Resources, reason: str) -> Placement:
    cpus = config.cpus_per_actor if config.cpus_per_actor is not None else 1.0
    slots = _gpu_slots(have.gpus, config.gpus) or math.floor(have.cpus / cpus)
    wanted = config.num_actors if config.num_actors is not None else max(1, slots)
    num_actors = min(wanted, num_devices)
    if config.cpus_per_actor is None and num_actors * cpus > have.cpus:
        cpus = _share(have.cpus, num_actors)
    gpus = config.gpus if config.gpus is not None else min(1.0, _share(have.gpus, num_actors))
    return _checked(Placement(False, num_actors, cpus, gpus, reason), have)


def _of_classes(config: FleetConfig, have: Resources) -> Placement:
    classes = config.classes
    placed = Placement(
        False,
        sum(each.num_actors for each in classes),
        max(each.cpus_per_actor for each in classes),
        max(each.gpus_per_actor for each in classes),
        f"as configured, in {len(classes)} classes",
        classes=classes,
    )
    for name, kind, total in (("cpus_per_actor", "CPU", have.cpus), ("gpus_per_actor", "GPU", have.gpus)):
        needed = sum(each.num_actors * each.bundle.get(kind, 0) for each in classes)
        if needed > total + 1e-6:
            raise FleetError(
                f"fleet.classes: their actors need {needed:g} {kind}, the cluster has {total:g}; lower {name} or "
                "num_actors of one of them"
            )
    return placed


def _share(total: float, parts: int) -> float:
    """An equal part of a resource, rounded down to Ray's precision (1e-4)."""
    return math.floor(1e4 * total / parts) / 1e4


def _checked(placement: Placement, have: Resources) -> Placement:
    for name, each, total in (
        ("cpus_per_actor", placement.cpus_per_actor, have.cpus),
        ("gpus_per_actor", placement.gpus_per_actor, have.gpus),
    ):
        if each * placement.num_actors > total + 1e-6:
            raise FleetError(
                f"fleet.{name}: {placement.num_actors} actors x {each:g} need {each * placement.num_actors:g}, "
                f"the cluster has {total:g}; lower it, or lower num_actors"
            )
    return placement
