"""FedDPA: the shared model is FedAvg's; a device mixes it with its own adapter for each test sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds
from device_states import stored
from torch.nn import functional as F

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.learning.local_update import features
from fibec_ray.learning.store import StateStore
from fibec_ray.low_rank import A, B
from fibec_ray.parts.peft.ranks import adapted_layers
from fibec_ray.parts.solver.feddpa import FedDpa
from fibec_ray.runs.simulation import simulate
from fibec_ray.tensors import Tensors, digest


def feddpa(**changes: Any) -> dict[str, Any]:
    return {"name": "m", "solver": {"kind": "feddpa", **changes}}


def test_each_sample_gets_the_mixed_outputs_of_two_adapters() -> None:
    """(1 - a) B_g A_g + a B_l A_l with a = lambda cos, cut to [0, 1]: 0.5 * (0.4, -0.2, 3) -> (0.2, 0, 1)."""
    rng = torch.Generator().manual_seed(0)
    sizes = {"x" + A: (2, 5), "x" + B: (4, 2), "head.weight": (3, 4)}
    shared, own = ({name: torch.randn(size, generator=rng) for name, size in sizes.items()} for _ in range(2))
    found = FedDpa(scale=0.5).mixed(shared, own, torch.tensor([0.4, -0.2, 3.0]))
    for i, a in enumerate((0.2, 0.0, 1.0)):
        expected = (1 - a) * shared["x" + B] @ shared["x" + A] + a * own["x" + B] @ own["x" + A]
        torch.testing.assert_close(found["x" + B][i] @ found["x" + A][i], expected)
        torch.testing.assert_close(found["head.weight"][i], torch.lerp(shared["head.weight"], own["head.weight"], a))


def test_the_shared_model_is_fedavg_s_and_the_own_one_starts_between(tiny_settings: Any, tmp_path: Path) -> None:
    """alpha = 0: the own adapter is trained from what was received, as the shared one is. So both are equal."""
    fleet, worker_spec, _ = after_rounds(2, tiny_settings(feddpa(alpha=0)), tmp_path / "dpa")
    plain, _, _ = after_rounds(2, tiny_settings("fedavg"), tmp_path / "avg")
    assert digest(fleet.adapter()) == digest(plain.adapter())
    _, one, reports = after_rounds(1, tiny_settings(feddpa(alpha=0), cohort_size=1), tmp_path / "one")
    own = dict(stored(StateStore(one.state_dir), reports[0].device, before=9).memory["solver"])
    alone, _, _ = after_rounds(1, tiny_settings("fedavg", cohort_size=1), tmp_path / "alone")
    torch.testing.assert_close(own, alone.adapter(), rtol=0, atol=1e-6)


def test_a_test_sample_is_scored_with_its_own_mix(tiny_settings: Any, tmp_path: Path) -> None:
    """One sample at a time, with two dense updates added to the base's weights: the definition, written out."""
    fleet, worker_spec, reports = after_rounds(2, tiny_settings(feddpa(scale=0.9, samples=3)), tmp_path)
    device, worker, broadcast = reports[-1].device, fleet._worker, fleet._server.broadcast(2)
    memory: Tensors = dict(stored(StateStore(worker_spec.state_dir), device, before=9).memory["solver"])
    states = fleet.states
    found = worker.evaluate_personal(device, broadcast, states)
    model: Any = worker.model
    worker.become(device, broadcast, states)
    shared, test, train = model.read(), worker.data.test_shard(device), worker.data.train_shard(device)
    rows = torch.randperm(train.num_samples, generator=worker.rng("references", device))[:3]
    layers = adapted_layers(model.peft_model)
    names = [name for name, layer in model.peft_model.named_modules() if layer in layers]
    mixes = []
    with torch.no_grad():
        near = features(model.forward(train.batch(rows), hidden=True), train.batch(rows))
        for i in range(test.num_samples):
            batch = test.batch(torch.tensor([i]))
            model.load(shared)
            here = features(model.forward(batch, hidden=True), batch)
            a = float((0.9 * F.cosine_similarity(here, near).mean()).clamp(0, 1))
            mixes.append(a)
            updates = {x: (1 - a) * shared[x + B] @ shared[x + A] + a * memory[x + B] @ memory[x + A] for x in names}
            head = {n: torch.lerp(shared[n], memory[n], a) for n in ("head.weight", "head.bias")}
            model.load({n: torch.zeros_like(v) for n, v in shared.items()} | head)
            hooks = [
                layer.register_forward_hook(
                    lambda layer, args, y, d=updates[x]: y + layer.scaling["default"] * F.linear(args[0], d)
                )
                for x, layer in zip(names, layers, strict=True)
            ]
            loss = float(model.forward(batch).losses)
            for hook in hooks:
                hook.remove()
            assert float(found.losses[i]) == pytest.approx(loss, abs=2e-5)
    assert len({round(a, 6) for a in mixes}) > 1 and digest(memory) != digest(shared)


def test_lanes_and_a_device_that_never_took_part(tiny_settings: Any, tmp_path: Path) -> None:
    """An untrained device has the shared model; results with lanes match those without."""
    settings = tiny_settings(feddpa(), rounds=1, cohort_size=2, num_devices=4)
    fleet, _, reports = after_rounds(1, settings, tmp_path / "one")
    found = fleet.evaluate(0)
    worker, broadcast = fleet._worker, fleet._server.broadcast(0)
    absent = next(device for device in range(4) if device not in {report.device for report in reports})
    shared = worker._predict(worker.data.test_shard(absent), torch.arange(len(found.personal[absent].labels)))
    torch.testing.assert_close(found.personal[absent].losses, shared.losses, rtol=0, atol=1e-5)
    lanes = worker.evaluate_group([report.device for report in reports], broadcast, fleet.states)
    for report, one in zip(reports, lanes, strict=True):
        torch.testing.assert_close(one.losses, found.personal[report.device].losses, rtol=0, atol=1e-5)


def test_settings_that_cannot_be_mixed_say_so(tiny_settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="solver 'feddpa' needs peft 'lora', found 'ia3'"):
        check(tiny_settings({**feddpa(), "peft": "ia3"}), "test")
    for peft in ({"kind": "lora", "use_dora": True}, {"kind": "lora", "dropout": 0.1}):
        with pytest.raises(ConfigError, match="another mix of adapters for each sample, .*; use plain lora, without"):
            simulate(
                check(tiny_settings({**feddpa(), "peft": peft}), "test"), tmp_path / str(len(peft["kind"] + str(peft)))
            )
