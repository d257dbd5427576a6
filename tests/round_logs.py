"""Made-up round logs, written through the real writer, for the tests of the analysis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fibec_ray.reports import BatchScore, DeviceReport
from fibec_ray.roundlog.schema import ROUNDS
from fibec_ray.roundlog.writer import RoundLog

CONFIG: dict[str, Any] = {
    "name": "small",
    "task": {"name": "trec"},
    "data": {"path": "a", "max_length": 32},
    "partition": {"kind": "dirichlet_label", "alpha": 1.0},
    "num_devices": 10,
    "backbone": {"name": "minilm"},
}


def metadata(run_id: str = "r1", seed: int = 0, **config: Any) -> dict[str, str]:
    return {"run_id": run_id, "seed": str(seed), "git_commit": "abc123", "config": yaml.safe_dump(CONFIG | config)}


def rounds_row(round_: int, **values: Any) -> dict[str, Any]:
    """Costs grow by the same in each round: 10 s, 1 MB, 100 samples, 2 kJ; nothing is evaluated unless it is given."""
    row = {column.name: None if column.nullable else 0 for column in ROUNDS}
    done = round_ + 2
    costs: dict[str, Any] = {
        "sim_time_s": 10.0 * done,
        "bytes_total": 1_000_000 * done,
        "num_samples_total": 100 * done,
    }
    costs |= {"energy_j": 2_000.0, "energy_total_j": 2_000.0 * done}
    return row | costs | {"round": round_, "flops": 1e12, "wall_time_s": 1.0 * done} | values


def small_run(
    run_dir: Path,
    scores: Mapping[int, float],
    seed: int = 0,
    method: str = "fibecfed",
    rounds: Sequence[int] = range(-1, 6),
    status: str = "finished",
    model: str = "personal",
    **config: Any,
) -> Path:
    """A run of some rounds, evaluated with these scores after some of them: {round: accuracy}."""
    log = RoundLog(run_dir, metadata(f"{method}-{seed}", seed, **config))
    for round_ in rounds:
        values = {f"{model}_accuracy": scores[round_]} if round_ in scores else {}
        log.append(rounds_row(round_, **values), [], [])
    described = {"method": method, "task": "trec", "metric": "accuracy", "seed": seed, "rounds": 6}
    (run_dir / "summary.json").write_text(json.dumps(described | {"status": status, "anchors": {"majority": 0.2}}))
    return run_dir


def big_run(run_dir: Path, num_rounds: int, num_devices: int, num_layers: int = 12) -> Path:
    """A run in which every device works in every round and is evaluated after it: tables as full as they can be."""
    log = RoundLog(run_dir, metadata("big", num_devices=num_devices))
    for round_ in range(-1, num_rounds):
        share = (round_ + 1) / num_rounds
        devices = [_report(round_, device, share) for device in range(num_devices)]
        layers = [_layer(round_, layer, share) for layer in range(num_layers)]
        evaluations = [_evaluation(round_, device, share) for device in range(num_devices)] if round_ >= 0 else []
        log.append(_full_row(round_, share), devices, layers, evaluations)
    (run_dir / "summary.json").write_text(
        json.dumps({"status": "finished", "rounds": num_rounds, "method": "fibecfed"})
    )
    return run_dir


def _full_row(round_: int, share: float) -> dict[str, Any]:
    if round_ < 0:
        return rounds_row(round_)
    scores = {f"{model}_{name}": 0.2 + 0.6 * share for model in ("global", "personal") for name in ("accuracy", "loss")}
    curriculum = {"train_loss": 1.0 - share, "data_fraction": 0.2 + 0.8 * share, "kept_fraction": 0.3}
    return rounds_row(round_, mask_overlap=0.9, learning_rate=1e-3, **scores, **curriculum)


def _report(round_: int, device: int, share: float) -> DeviceReport:
    batches = tuple(BatchScore(at, 8, share + at, 0.5, 12.0, None) for at in range(4)) if round_ < 0 else None
    return DeviceReport(
        round_, device, num_samples=20 + device, num_samples_seen=16, num_batches_seen=2, num_steps=2,
        learning_rate=1e-3, train_loss=1.0 - share + 0.001 * device, difficulty_seen=share * device,
        length_seen=12.0, kept_fraction=0.3, mask_overlap=0.9, fisher_trace=0.1 * device, flops=1e9,
        sim_time_s=1.0 + 0.01 * ((device * 37 + round_ * 11) % 100), bytes_down=10_000, bytes_up_delta=9_000,
        bytes_up=9_000, compute_s=0.5, peak_memory_bytes=2**30, actor=f"actor-{(device + round_) % 8}",
        attempt=int((device + round_) % 97 == 0), batches=batches,
    )  # fmt: skip


def _layer(round_: int, layer: int, share: float) -> dict[str, Any]:
    known = {"sensitivity": 0.1 * layer, "shared": layer >= 6, "fisher_mass": share * layer, "kept_neurons": 12.0}
    return {"round": round_, "layer": layer} | known


def _evaluation(round_: int, device: int, share: float) -> dict[str, Any]:
    accuracy = min(1.0, 0.2 + 0.6 * share + 0.002 * device)
    trained = {"num_samples": 10, "trained": True, "accuracy": accuracy, "loss": 1.0 - accuracy, "speed_class": None}
    return {"round": round_, "device": device} | trained
