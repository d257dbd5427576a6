"""Recognises lost actors, nodes and objects, and waits with an end."""

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
"""As against an error that the call itself raised. (The memory monitor's OutOfMemoryError is no RayActorError.)"""
GET_TIMEOUT_S = 60
"""For small values that are known to be ready."""


def input_lost(error: Any) -> bool:
    """True if what a call was given is gone: Ray says so from inside of the call, and its own loss from outside."""
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
    """All that are ready once one of them is; none after timeout_s."""
    done, _ = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
    if done:
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
    return done


def outcome(ref: ray.ObjectRef) -> Any:
    """Value of a ready ref, the error itself if it is lost; raises an error of the call's own."""
    try:
        return get(ref, GET_TIMEOUT_S)
    except LOST as error:
        return error


@contextmanager
def server_errors() -> Iterator[None]:
    """Raises ServerLostError where an answer of the server's is lost."""
    try:
        yield
    except LOST as error:
        raise ServerLostError(f"the server actor was lost ({type(error).__name__})") from error
