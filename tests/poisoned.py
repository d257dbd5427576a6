"""Devices with values that are not finite, each in another place. A fleet must keep no state of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.config.load import check
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.method import AXES
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.mask.base import Mask
from fibec_ray.parts.part import Passes, build
from fibec_ray.parts.solver.base import Session, Solver
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors
from fibec_ray.types import Asked, DeviceUpdate, Extra

NAN = {"x": torch.tensor([float("nan")])}


class BadExtras(Aggregator):
    kind: Literal["bad_extras"] = "bad_extras"  # type: ignore[assignment]
    extras: int

    def extras_after(
        self, model: LocalModel, shard: Shard, names: Collection[str], batches: Sequence[Tensor], rng: torch.Generator
    ) -> Tensors:
        return dict(NAN) if shard.num_samples == self.extras else {"x": torch.zeros(1)}

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        return {"x": Extra((1,))}

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        return ()


class BadValues(Solver):
    kind: Literal["bad_values"] = "bad_values"  # type: ignore[assignment]
    delta: int
    personal: int

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        session.train()
        size = session.shard.num_samples  # type: ignore[attr-defined]
        bad = {self.delta: session.shared, self.personal: session.personal}.get(size, ())
        session.load({name: value + float("nan") if name in bad else value for name, value in session.read().items()})
        return memory


class BadMemory(Mask):
    kind: Literal["bad_memory"] = "bad_memory"  # type: ignore[assignment]
    memory: int

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str], rng: torch.Generator) -> Tensors:
        return dict(NAN) if scan.shard.num_samples == self.memory else {"x": torch.zeros(1)}


@dataclass(frozen=True)
class Poisoned:
    """A spec whose victims are quarantined in every round, each for another value; all other devices are sound."""

    spec: WorkerSpec
    victims: dict[str, int]

    @property
    def bad(self) -> set[int]:
        return set(self.victims.values())


def poisoned(settings: dict[str, Any], folder: Path) -> Poisoned:
    """Make one victim for each place: extras, delta, personal tensors, memory."""
    experiment = check(settings, "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir(), fleet=experiment.fleet)
    sizes = spec.federation().num_train(range(spec.job.num_devices))
    extras, delta, personal, memory = (size for size in sorted(sizes) if sizes.count(size) == 1)
    # By their file, which travels: the workers that Ray keeps ready have no path to the tests.
    parts = {
        "aggregator": {"kind": f"{__file__}:BadExtras", "extras": extras},
        "solver": {"kind": f"{__file__}:BadValues", "delta": delta, "personal": personal},
        "mask": {"kind": f"{__file__}:BadMemory", "memory": memory},
    }
    method = spec.job.method.model_copy(update={axis: build(AXES[axis], part) for axis, part in parts.items()})
    victims = {"extras": extras, "delta": delta, "personal": personal, "memory": memory}
    return Poisoned(
        replace(spec, job=spec.job.model_copy(update={"method": method})),
        {place: sizes.index(size) for place, size in victims.items()},
    )
