"""Lanes with `backbone.checkpointing`: a block is recomputed with the lanes of its forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BACKBONES, settings_on

from fibec_ray.config.load import check
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.models import lane_bank
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors


def trained(folder: Path, method: str, where: str, lanes: int, checkpointing: bool) -> Tensors:
    """The adapter after the initialisation phase and two rounds."""
    settings = settings_on(where, method)
    settings["backbone"] |= {"checkpointing": checkpointing}
    settings["local"] = settings.get("local", {}) | {"optimizer": "sgd", "learning_rate": 0.1}
    experiment = check(settings, "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    job = experiment.job(prepared.answers(experiment.task))
    fleet = LocalFleet(WorkerSpec(job, folder, cache_dir(), FleetConfig(kind="local", lanes=lanes)))
    fleet.setup()
    for round_ in range(2):
        fleet.run_round(plan_round(job, round_))
    return fleet.adapter()


@pytest.mark.parametrize("where", BACKBONES)
@pytest.mark.parametrize("method", ["fedavg", "fibecfed", "fipa", "moon"])
def test_recomputing_changes_no_bit_of_lanes(method: str, where: str, tmp_path: Path) -> None:
    """Equal to lanes without recomputation bit for bit, and to devices alone up to rounding."""
    kept, again, alone = (
        trained(tmp_path / name, method, where, lanes, checkpointing)
        for name, lanes, checkpointing in (("kept", 3, False), ("again", 3, True), ("alone", 1, True))
    )
    assert all(torch.equal(again[name], value) for name, value in kept.items())
    for name, value in alone.items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-4)


def test_blocks_really_are_recomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers with lanes compute again in the backward pass."""
    calls: dict[bool, int] = {}
    linear = lane_bank._linear
    for checkpointing in (False, True):
        count: list[int] = []

        def counted(*args: Any, count: list[int] = count) -> torch.Tensor:
            count.append(1)
            return linear(*args)

        monkeypatch.setitem(lane_bank._FORMULAS, torch.nn.Linear, counted)  # type: ignore[arg-type]
        trained(tmp_path / str(checkpointing), "fedavg", "encoder", 3, checkpointing)
        calls[checkpointing] = len(count)
    assert calls[True] > 1.5 * calls[False]
