"""Finds updates that must not be combined with the others, and says why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fibec_ray.learning.fitting import full_rank_of
from fibec_ray.learning.job import Job
from fibec_ray.low_rank import rank_axis
from fibec_ray.tensors import all_finite, is_finite, joint_norm
from fibec_ray.types import Asked, DeviceUpdate, Extra

NOT_FINITE = "the update is not finite; lower local.learning_rate"
MOST = 1e4
"""Largest norm of an update, relative to the server's tensors. No real training moves that far in one round."""
LARGEST = 1e18
"""Largest norm of an update. Its square, summed over many rounds, still fits into float32."""
MOST_COUNTED = 2**53
"""Most samples or steps: the largest range of whole numbers that float64 represents exactly."""


def sent_by(device: int, update: DeviceUpdate) -> DeviceUpdate:
    """The update, marked as faulty if it claims to come from another device."""
    if update.device == device and type(update.device) is int:
        return update
    return replace(update, device=device, fault=f"the update claims to come from device {update.device!r}")


def decoded(update: DeviceUpdate, asked: Asked, job: Job) -> DeviceUpdate:
    """The update with its delta decoded, marked as faulty if it cannot be. Call it before `fault_of`."""
    uplink = job.method.uplink
    if not uplink.encodes or update.fault is not None:
        return update
    fault = _wrong_number(update, asked, job)
    if fault is None:
        like = {name: there.new_empty(_shape(name, there, update.rank)) for name, there in asked.shared.items()}
        fault = _wrong_tensors(update.delta, uplink.expected_payload(like)) or uplink.fault(update.delta, like)
    if fault is not None:
        return replace(update, fault=fault)
    return replace(update, delta=uplink.decode(update.delta, like))


def fault_of(update: DeviceUpdate, asked: Asked, job: Job) -> str | None:
    """Why the update cannot be combined; None if it can."""
    if update.fault is not None:
        return str(update.fault)
    checks = (_wrong_number, _wrong_delta, _wrong_size, _wrong_extras, _wrong_for_parts)
    return next((fault for check in checks if (fault := check(update, asked, job)) is not None), None)


def for_each_part(update: DeviceUpdate, asked: Asked, job: Job) -> tuple[DeviceUpdate, DeviceUpdate]:
    """A valid update for the aggregator, and for the objective, each with only that part's extras.

    Tensors are put in the server's order, since sums over them depend on it.
    """
    num_batches = math.ceil(update.num_samples / job.local.batch_size)
    update = replace(update, delta={name: update.delta[name] for name in asked.shared}, num_batches=num_batches)
    aggregator, objective = (
        replace(update, extras={name: update.extras[name] for name in expected})
        for expected in _expected(update, asked, job)
    )
    return aggregator, objective


def _expected(update: DeviceUpdate, asked: Asked, job: Job) -> tuple[Mapping[str, Extra], Mapping[str, Extra]]:
    """The extras that the aggregator (with the privacy rule before it) and the objective require of the update."""
    method = job.method
    aggregator = {**method.aggregator.expected_extras(asked, update), **method.privacy.expected_extras()}
    objective = method.objective.expected_extras(asked, update)
    assert not aggregator.keys() & objective.keys(), "two parts of a method must give their extras different names"
    return aggregator, objective


def _wrong_number(update: DeviceUpdate, asked: Asked, job: Job) -> str | None:
    if not (_counts(update.num_samples) and update.num_samples > 0):
        return f"the update reports {update.num_samples!r} samples; a device has one or more"
    if not _counts(update.num_steps):
        return f"the update reports {update.num_steps!r} steps"
    if update.learning_rate != asked.learning_rate:
        return f"the update reports learning rate {update.learning_rate!r}, but the round's is {asked.learning_rate!r}"
    return _wrong_rank(update, job)


def _wrong_rank(update: DeviceUpdate, job: Job) -> str | None:
    room = full_rank_of(job, update.device)
    if update.rank is None and room is None:
        return None
    if type(update.rank) is int:
        below = job.method.objective.lowers_rank and update.rank > 0 and (room is None or update.rank < room)
        if update.rank == room or below:
            return None
    known = "all devices have the server's rank" if room is None else f"the device's rank is {room}"
    return f"the update reports rank {update.rank!r}, but {known}"


def _wrong_delta(update: DeviceUpdate, asked: Asked, job: Job) -> str | None:
    if not isinstance(update.delta, Mapping):
        return "the update has no named tensors"
    if missing := [name for name in asked.shared if name not in update.delta]:
        return f"the update lacks '{missing[0]}', which this round trains"
    if extra := [name for name in update.delta if name not in asked.shared]:
        return f"the update has '{extra[0]}', which this round does not train"
    for name, there in asked.shared.items():
        shape = _shape(name, there, update.rank)
        if not _is(update.delta[name], shape, there.dtype):
            return (
                f"the update has {_found(update.delta[name])} for '{name}', the server has {_words(shape, there.dtype)}"
            )
    return None if all_finite(update.delta) else NOT_FINITE


def _wrong_size(update: DeviceUpdate, asked: Asked, job: Job) -> str | None:
    length = joint_norm(update.delta)
    if length and not update.num_steps:
        return "the update took no steps, but its tensors have changed"
    most, given = min(MOST * asked.scale, LARGEST), job.server.max_update_norm
    if given is not None and length > given:
        return f"the update's norm is {length:.3g}, above server.max_update_norm={given:g}"
    if length > most:
        return f"the update's norm is {length:.3g}, above the limit of {most:.3g}; lower local.learning_rate"
    return None


def _wrong_extras(update: DeviceUpdate, asked: Asked, job: Job) -> str | None:
    if not isinstance(update.extras, Mapping):
        return "the update has no named tensors beside its delta"
    aggregator, objective = _expected(update, asked, job)
    return _wrong_tensors(update.extras, {**aggregator, **objective})


def _wrong_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Extra]) -> str | None:
    if not isinstance(found, Mapping):
        return "the update has no named tensors"
    if missing := [name for name in expected if name not in found]:
        return f"the update lacks '{missing[0]}', which the method needs"
    if extra := [name for name in found if name not in expected]:
        return f"the update has '{extra[0]}', which the method does not use"
    for name, one in expected.items():
        value = found[name]
        if not _is(value, one.shape, one.dtype):
            return f"the update has {_found(value)} for '{name}', the method needs {_words(one.shape, one.dtype)}"
        if not is_finite(value):
            return f"the update's '{name}' is not finite; lower local.learning_rate"
        if bool((value < one.least).any()):
            return f"the update's '{name}' has the value {float(value.min()):.3g}, below {one.least:g}"
    return None


def _wrong_for_parts(update: DeviceUpdate, asked: Asked, job: Job) -> str | None:
    for_aggregator, for_objective = for_each_part(update, asked, job)
    fault = job.method.aggregator.fault(asked, for_aggregator)
    return fault if fault is not None else job.method.objective.fault(asked, for_objective)


def _counts(number: object) -> bool:
    return type(number) is int and 0 <= number <= MOST_COUNTED


def _shape(name: str, there: Tensor, rank: int | None) -> tuple[int, ...]:
    """Shape of a tensor on a device of this rank: fewer rows of A and columns of B if it is lower than the server's."""
    axis = None if rank is None else rank_axis(name)
    return tuple(min(size, rank or size) if i == axis else size for i, size in enumerate(there.shape))


def _is(value: object, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """True for a plain CPU tensor of this shape and type."""
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and (tuple(value.shape), value.dtype) == (shape, dtype)
    )


def _found(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    place = "" if value.device.type == "cpu" else f" on {value.device.type}"
    return _words(tuple(value.shape), value.dtype) + place


def _words(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{shape} values of type {dtype}"
