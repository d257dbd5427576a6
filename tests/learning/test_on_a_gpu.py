"""Devices on a GPU, as far as a machine without one can tell (`pretend_gpu.py`): no tensor is on the wrong device, no
kernel is for CPUs only, and results are those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    BACKBONES,
    DOES_NOT_APPLY,
    TINY_BERT,
    TINY_CONVNEXT,
    make_digits,
    make_instructions,
    make_pde,
    make_preferences,
    make_regression,
    make_seq2seq,
    make_shapes,
    make_tagging,
    make_tiny,
    settings_on,
)
from pretend_gpu import pretend_gpu
from rotation import in_turn

from fibec_ray.config.load import check
from fibec_ray.config.names import method_files
from fibec_ray.errors import ConfigError
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors
from fibec_ray.types import EvaluationResult

Found = tuple[Tensors, EvaluationResult]
TOLERANCE = 1e-3
"""Largest difference of the final adapter, relative to its size, and of an evaluated loss. The kernels differ, and
AdamW's first step turns the sign of a gradient near 0 into a whole step.
"""

ROUNDED = {"bfloat16": 1e-2, "bfloat16 adapters": 3e-2}
"""The same for bfloat16 products, whose order and attention differ. Kind -> tolerance."""


class NoLanes(Exception):
    """The method is computed for one device at a time."""


def worked(settings: dict[str, Any], folder: Path, device: str, lanes: int) -> Found:
    """The adapter and the evaluation after two rounds on a device."""
    experiment = check(settings, "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    job = experiment.job(prepared.answers(experiment.task))
    fleet = LocalFleet(WorkerSpec(job, folder, cache_dir(), FleetConfig(kind="local", lanes=lanes), device))
    try:
        fleet.setup()
    except ConfigError as error:
        assert lanes > 1 and "cannot train in one pass" in str(error)
        raise NoLanes from error
    for round_ in range(2):
        fleet.run_round(plan_round(job, round_))
    return fleet.adapter(), fleet.evaluate(1)


def size(values: Tensors) -> float:
    """The norm of all values."""
    return sum(float(value.double().pow(2).sum()) for value in values.values()) ** 0.5


def both(settings: dict[str, Any], folder: Path, lanes: int = 1, tolerance: float = TOLERANCE) -> None:
    """Check that a run works on the GPU, computes there, and equals the run on the CPU."""
    adapter, scores = worked(settings, folder / "cpu", "cpu", lanes)
    with pretend_gpu() as gpu:
        found, scores_there = worked(settings, folder / "gpu", "cuda:0", lanes)
    assert gpu.num_operations > 200
    assert found.keys() == adapter.keys()
    apart = {name: found[name].double() - value for name, value in adapter.items()}
    assert size(apart) <= tolerance * size(adapter)
    torch.testing.assert_close(scores_there.shared.losses, scores.shared.losses, atol=tolerance, rtol=tolerance)


CASES = [(p.stem, where) for p in method_files() for where in BACKBONES if (p.stem, where) not in DOES_NOT_APPLY]


@pytest.mark.parametrize(("method", "where"), in_turn(CASES, 2, "every method on a GPU"))
def test_every_method_runs_on_a_gpu_as_on_a_cpu(method: str, where: str, tmp_path: Path) -> None:
    settings = settings_on(where, method, rounds=2)
    both(settings, tmp_path)
    (tmp_path / "lanes").mkdir()
    with suppress(NoLanes):
        both(settings, tmp_path / "lanes", 3)


def encoder(method: str = "fedavg", **backbone: Any) -> dict[str, Any]:
    """The tiny BERT with other settings of the backbone."""
    return make_tiny(method, backbone={"config": TINY_BERT, **backbone}, rounds=2)


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "classifier of the architecture": partial(encoder, head="model"),
    "masked language model": partial(encoder, head="masked_lm"),
    "bfloat16": partial(encoder, dtype="bfloat16", adapter_dtype="float32"),
    "bfloat16 adapters": partial(encoder, dtype="bfloat16", adapter_dtype="base"),
    "streamed": partial(encoder, backend="stream"),
    "dropout": partial(encoder, dropout=True),
    "recomputed blocks": partial(encoder, checkpointing=True),
    "eager attention": partial(encoder, attention="eager"),
    "tags": partial(make_tagging, rounds=2),
    "answers in text": make_instructions,
    "preferences": make_preferences,
    "encoder and decoder": make_seq2seq,
    "images": partial(make_shapes, rounds=2),
    "images, convolutional": partial(make_shapes, config=TINY_CONVNEXT, head="mean_pool", rounds=2),
    "FibecFed, answers in text": partial(make_instructions, "fibecfed"),
    "FIPA, preferences": partial(make_preferences, "fibecfed-fipa"),
    "convolutional network": partial(make_digits, "fipa", rounds=2),
    "regression": partial(make_regression, "fibecfed", rounds=2),
    "differential equation": partial(make_pde, "fedavg", rounds=2),
}


@pytest.mark.parametrize("kind", in_turn(list(KINDS), 2, "every kind of model on a GPU"))
def test_every_kind_of_model_runs_on_a_gpu_as_on_a_cpu(kind: str, tmp_path: Path) -> None:
    both(KINDS[kind](), tmp_path, tolerance=ROUNDED.get(kind, TOLERANCE))
