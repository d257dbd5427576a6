"""Recognise lost actors, nodes and objects; wait with a timeout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import exceptions as rex

from fibec_ray.errors import ServerLostError

LOST = (
    rex.RayActorError,
    rex.OutOfMemoryError,
    rex.NodeDiedError,
    rex.WorkerCrashedError,
    rex.ObjectLostError,
    rex.GetTimeoutError,
)
"""Errors that mean a loss, not an error that the call itself raised. (OutOfMemoryError, which Ray's memory monitor
raises, is not a RayActorError.)"""
GET_TIMEOUT_S = 60
"""Timeout for small values that are known to be ready."""


def input_lost(error: Any) -> bool:
    """True if an argument of the call is lost: Ray then raises inside the call, and for a lost call outside it."""
    return isinstance(error, rex.RayTaskError) and isinstance(error, LOST)


def get(refs: ray.ObjectRef | list[ray.ObjectRef], timeout_s: float) -> Any:
    """ray.get with a timeout, raising the error that the remote call raised rather than Ray's wrapping of it."""
    try:
        return ray.get(refs, timeout=timeout_s)
    except rex.RayTaskError as error:
        if isinstance(error, LOST):
            raise
        raise error.cause from error


def ready(refs: list[ray.ObjectRef], timeout_s: float) -> list[ray.ObjectRef]:
    """Wait until one is ready, then return all that are; [] after timeout_s seconds."""
    done, _ = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
    if done and len(refs) > 1:
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
    return done


def outcome(ref: ray.ObjectRef) -> Any:
    """The value of a ready ref, or the error if it is lost. Raises the call's own error."""
    try:
        return get(ref, GET_TIMEOUT_S)
    except LOST as error:
        return error


@contextmanager
def server_errors() -> Iterator[None]:
    """Turn the loss of a server's answer into ServerLostError."""
    try:
        yield
    except LOST as error:
        raise ServerLostError(f"the server actor was lost ({type(error).__name__})") from error
