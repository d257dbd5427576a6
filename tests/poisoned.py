"""An aggregator whose extras are not finite for the device with the fewest samples: what a sound server refuses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.config.load import check
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Passes, build
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors
from fibec_ray.types import Asked, DeviceUpdate, Extra


class Poisoned(Aggregator):
    kind: Literal["poisoned"] = "poisoned"
    smallest: int

    def extras_after(
        self, model: LocalModel, shard: Shard, names: Collection[str], batches: Sequence[Tensor], rng: torch.Generator
    ) -> Tensors:
        return {"x": torch.tensor([float("nan")])} if shard.num_samples == self.smallest else {}

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        return {}

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        return ()


def poisoned_worker_spec(settings: dict[str, Any], folder: Path) -> tuple[WorkerSpec, int]:
    """A spec whose smallest device is quarantined in every round, and that device."""
    experiment = check(settings, "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    worker_spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())
    sizes = worker_spec.federation().num_train(range(worker_spec.job.num_devices))
    assert sizes.count(min(sizes)) == 1, "only one device may have so few samples"
    # By its file, which travels: the workers that Ray keeps ready have no path to the tests.
    aggregator = build(AGGREGATORS, {"kind": f"{__file__}:Poisoned", "smallest": min(sizes)})
    method = worker_spec.job.method.model_copy(update={"aggregator": aggregator})
    return replace(worker_spec, job=worker_spec.job.model_copy(update={"method": method})), sizes.index(min(sizes))
