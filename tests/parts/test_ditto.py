"""Ditto (E21): the shared model is FedAvg's, the own one is pulled towards it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds
from device_states import stored

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.store import StateStore
from fibec_ray.parts.mask.base import may_move
from fibec_ray.parts.objective.proximal import squared_distance
from fibec_ray.tensors import Tensors, digest


def ditto(strength: float, **parts: Any) -> dict[str, Any]:
    return {"name": "ditto", "solver": {"kind": "ditto", "strength": strength}, **parts}


def own_models(worker_spec: WorkerSpec) -> list[Tensors]:
    store = StateStore(worker_spec.state_dir)
    return [dict(stored(store, device, before=1000).memory.get("solver", {})) for device in range(6)]


def test_without_a_pull_the_own_model_is_that_of_a_device_alone(tiny_settings: Any, tmp_path: Path) -> None:
    """E21: bit for bit, with several epochs, few steps, a mixture of drawn and undrawn devices, and dropout."""
    changes = {"local": {"epochs": 2, "max_steps": 5}, "backbone": {"dropout": True}}
    _, worker_spec, _ = after_rounds(3, tiny_settings(ditto(0.0), **changes), tmp_path / "ditto")
    _, alone, _ = after_rounds(3, tiny_settings("local", **changes), tmp_path / "local")
    store = StateStore(alone.state_dir)
    found = [digest(own) for own in own_models(worker_spec)]
    assert found == [digest(stored(store, device, before=1000).personal) for device in range(6)]
    assert 3 < len(set(found)) < 7


def test_the_shared_model_and_its_log_are_fedavg_s_at_twice_the_work(tiny_settings: Any, tmp_path: Path) -> None:
    """Bit for bit; with dropout, which draws in both trainings."""
    changes = {"backbone": {"dropout": True}}
    fleet, _, reports = after_rounds(3, tiny_settings(ditto(0.5), **changes), tmp_path / "ditto")
    plain, _, expected = after_rounds(3, tiny_settings("fedavg", **changes), tmp_path / "fedavg")
    assert digest(fleet.adapter()) == digest(plain.adapter())
    for one, other in zip(reports, expected, strict=True):
        assert one.flops == 2 * other.flops
        for name in ("train_loss", "num_steps", "num_samples_seen", "bytes_up", "bytes_down"):
            assert getattr(one, name) == getattr(other, name), name


def test_a_stronger_pull_keeps_the_own_model_closer(tiny_settings: Any, tmp_path: Path) -> None:
    """One round from the start of the run, which is what was received: its distance falls with lambda."""
    distances = []
    for strength in (0.0, 1.0, 100.0):
        fleet, worker_spec, _ = after_rounds(1, tiny_settings(ditto(strength)), tmp_path / str(strength))
        owns = [own for own in own_models(worker_spec) if own]
        initial = fleet._worker.initial
        assert len(owns) == 3
        distances.append(sum(float(squared_distance(own, initial)) for own in owns))
    assert distances[0] > distances[1] > distances[2] > 0


def test_personal_evaluation_scores_the_own_model(tiny_settings: Any, tmp_path: Path) -> None:
    """And the global one on devices that were never drawn."""
    settings = tiny_settings(ditto(0.0), local={"learning_rate": 0.05, "epochs": 4})
    fleet, worker_spec, reports = after_rounds(1, settings, tmp_path / "run")
    result = fleet.evaluate(0)
    federation, drawn = worker_spec.federation(), {report.device for report in reports}
    assert sorted(result.personal) == list(range(6))
    for device, predictions in result.personal.items():
        rows = torch.from_numpy(federation.test_rows[device].copy())
        same = torch.allclose(predictions.losses, result.shared.losses[rows], atol=1e-6)
        assert same == (device not in drawn or not len(rows))


def test_the_objective_s_terms_are_about_the_shared_model(tiny_settings: Any, tmp_path: Path) -> None:
    """From one broadcast, FedProx gives other updates and the same own models."""
    owns, adapters = [], []
    for kind in ("plain", "proximal"):
        objective = {"kind": kind} | ({"mu": 10.0} if kind == "proximal" else {})
        fleet, worker_spec, _ = after_rounds(1, tiny_settings(ditto(0.1, objective=objective)), tmp_path / kind)
        owns.append([digest(own) for own in own_models(worker_spec)])
        adapters.append(digest(fleet.adapter()))
    assert owns[0] == owns[1] and adapters[0] != adapters[1]


def test_it_goes_with_personal_layers_and_masks(tiny_settings: Any, tmp_path: Path) -> None:
    """FibecFed's run, bit for bit, and an own model of all tensors beside it, whose masked entries stay too."""
    method = tiny_settings("fibecfed")["method"]
    fleet, worker_spec, _ = after_rounds(1, tiny_settings({**method, "solver": {"kind": "ditto"}}), tmp_path / "both")
    plain, other, _ = after_rounds(1, tiny_settings("fibecfed"), tmp_path / "fibecfed")
    assert digest(fleet.adapter()) == digest(plain.adapter())
    one, two = StateStore(worker_spec.state_dir), StateStore(other.state_dir)
    for device in range(6):
        state, expected = stored(one, device, before=1), stored(two, device, before=1)
        assert digest(state.personal) == digest(expected.personal)
        own, initial = state.memory.get("solver", {}), fleet._worker.initial
        assert own.keys() in (set(), initial.keys())
        for name, keep in may_move(state.memory["mask"], list(state.personal)).items():
            assert not own or torch.equal(own[name][~keep], initial[name][~keep])


def test_nothing_shared_is_refused(tiny_settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method: solver 'ditto' needs shared tensors.* sharing: all"):
        check(tiny_settings(ditto(0.1, sharing="none")), "test")
    nothing = ditto(0.1, sharing={"kind": "gal", "fraction": 0.0})
    settings = tiny_settings(nothing, backbone={"head": "masked_lm"}, data={"max_length": 24})
    with pytest.raises(ConfigError, match=r"method.solver: ditto .* method.sharing gal shares nothing here"):
        after_rounds(0, settings, tmp_path / "run")
