"""An aggregator whose devices kill their own process, so that actors die while they train."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Passes
from fibec_ray.tensors import Tensors
from fibec_ray.types import Asked, DeviceUpdate, Extra


class Mortal(Aggregator):
    """The mean. The first devices that train kill their actor with SIGKILL before they send their update.

    deaths: number of actors to kill. marks: a folder that gets a file for each. The driver's process is never killed.
    """

    kind: Literal["mortal"] = "mortal"
    deaths: int
    marks: str

    def extras_after(
        self, model: LocalModel, shard: Shard, names: Collection[str], batches: Sequence[Tensor], rng: torch.Generator
    ) -> Tensors:
        on_actor = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
        if on_actor and any(_is_new(Path(self.marks) / str(death)) for death in range(self.deaths)):
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        return {}

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        return ()


def with_deaths(count: int, settings: dict[str, Any], marks: Path) -> dict[str, Any]:
    """The settings, with `count` actors that die while they train."""
    marks.mkdir()
    aggregator = {"kind": f"{__file__}:Mortal", "deaths": count, "marks": str(marks)}
    return settings | {"method": settings["method"] | {"aggregator": aggregator}}


def _is_new(mark: Path) -> bool:
    """True for the one process that makes the file."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
