"""One-sentence messages about what a run needs and the machine lacks, with what to change."""

from __future__ import annotations

from collections.abc import Sequence

from fibec_ray.errors import CapacityError
from fibec_ray.models.backends import CONFIGURED
from fibec_ray.preflight.plan import Plan

LEAST_STORE = 80_000_000
"""The smallest object store that Ray creates, in bytes."""


def refuse(plan: Plan) -> None:
    """Raise CapacityError for the first thing that does not fit: what, how much is available, and what to change."""
    for misfit in (*_memory_misfits(plan), *_disk_misfits(plan)):
        raise CapacityError(misfit)


def _memory_misfits(plan: Plan) -> Sequence[str]:
    needed, found = plan.memory, []
    if needed.prepare * plan.room.num_nodes > needed.available:
        found.append(
            f"memory: preparing the base weights needs {_gb(needed.prepare)}, but {_gb(needed.available)} are "
            f"available; {_store_advice(plan) or 'choose a smaller backbone, or use a larger machine'}"
        )
    if needed.total > needed.available:
        found.append(
            f"memory: {_actors(plan)} of {_gb(needed.actor.private)} each, base weights of "
            f"{_gb(needed.base_per_node)} and {_gb(needed.others)} for the rest need {_gb(needed.total)}, but "
            f"{_gb(needed.available)} are available; {_store_advice(plan) or _advice(plan)}"
        )
    return [*found, *_gpu_misfits(plan)]


def _gpu_misfits(plan: Plan) -> Sequence[str]:
    needed = plan.memory
    if needed.gpu_available is None or needed.gpu_each is None:
        return []
    what = "(CUDA context, base weights, activations)"
    if needed.gpu_needed > needed.gpu_available:
        each = f"{needed.sharing} actors on a GPU need {_gb(needed.actor.gpu)} each, {_gb(needed.gpu_needed)} in all"
        one = f"a process needs {_gb(needed.gpu_needed)} of its GPU"
        return [
            f"GPU memory: {each if needed.sharing > 1 else one} {what}, but {_gb(needed.gpu_available)} are free; "
            f"{_gpu_advice(plan)}"
        ]
    if needed.actor.gpu > needed.gpu_each:
        return [
            f"GPU memory: a process needs {_gb(needed.actor.gpu)} {what}, but its share of the GPU is "
            f"{_gb(needed.gpu_each)}; raise gpus_per_actor, or leave it out"
        ]
    return []


def _disk_misfits(plan: Plan) -> Sequence[str]:
    room, taken = plan.room, plan.disk
    both = taken.run + (taken.base if room.same_disk else 0)
    found = []
    if both > room.run_disk:
        found.append(
            f"disk: the run needs {_gb(both)}, but {_gb(room.run_disk)} are free there; choose another --out, or lower "
            "num_devices"
        )
    if not room.same_disk and taken.base > room.cache_disk:
        found.append(
            f"disk: the prepared base weights need {_gb(taken.base)}, but {_gb(room.cache_disk)} are free in the "
            "cache; point FIBEC_RAY_CACHE at another disk"
        )
    return found


def _advice(plan: Plan) -> str:
    """The first change that would make the run fit."""
    actors, needed = plan.seats.placement.num_actors, plan.memory
    fixed = needed.base_per_node + needed.others
    one_fits = fixed + needed.actor.private <= needed.available
    if plan.seats.placement.per_device and actors > 1:
        return "set fleet.placement=pooled"
    if actors > 1 and one_fits:
        return "lower fleet.num_actors"
    if fixed > needed.available:
        smaller = ", set backbone.dtype=bfloat16" if plan.model.dtype == "float32" else ""
        return f"choose a smaller backbone{smaller}, or use a larger machine"
    if plan.seats.lanes > 1:
        return "lower fleet.lanes, or local.batch_size"
    return "lower local.batch_size or data.max_length, choose a smaller backbone, or use a larger machine"


def _store_advice(plan: Plan) -> str:
    """Advice to shrink the object store; '' if that would not be enough."""
    needed, store = plan.memory, plan.room.object_store
    if max(needed.total, needed.prepare * plan.room.num_nodes) > needed.available + store - LEAST_STORE:
        return ""
    return f"lower fleet.object_store_mb, which reserves {_gb(store)} for Ray's object store"


def _gpu_advice(plan: Plan) -> str:
    """What lowers an actor's GPU memory, or the number of actors on a GPU."""
    placement, needed = plan.seats.placement, plan.memory
    if placement.per_device and needed.sharing > 1:
        return "set fleet.placement=pooled, so that one actor per GPU hosts many devices"
    if needed.sharing > 1:
        return "raise gpus_per_actor of its class" if placement.classes else "lower fleet.num_actors"
    if plan.seats.lanes > 1:
        return "lower fleet.lanes, or local.batch_size"
    if plan.backend_choice is not None and plan.backend_choice.reason == CONFIGURED:
        return "set backbone.backend=auto, lower local.batch_size or data.max_length, or choose a smaller backbone"
    return "lower local.batch_size or data.max_length, choose a smaller backbone, or set fleet.gpus_per_actor=0"


def _actors(plan: Plan) -> str:
    count = plan.seats.placement.num_actors
    return "1 process" if count == 1 else f"{count} actors"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
