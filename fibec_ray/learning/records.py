"""Turns what a device did into the row that the round log keeps; called by device.py."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fibec_ray.fisher import FisherScan
from fibec_ray.learning.job import Job
from fibec_ray.learning.local_update import Trained
from fibec_ray.tensors import Tensors, num_bytes
from fibec_ray.types import (
    OPENING_ROUND,
    Broadcast,
    ClientUpdate,
    DeviceReport,
    LayerReport,
    Layout,
    RoundPlan,
    Shard,
    Work,
)

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Opened:
    scan: FisherScan
    layer_report: LayerReport
    work: Work
    compute_s: float
    received: Tensors


@dataclass(frozen=True)
class DeviceRound:
    """What a device goes into local training with."""

    plan: RoundPlan
    device: int
    broadcast: Broadcast
    shard: Shard
    memory: dict[str, Tensors]
    """by axis; the objective's changes after training"""
    visible: Sequence[Tensor]
    keep: Tensors
    evidence: Tensors
    scored: FisherScan
    """has run if the curriculum made its order in this round"""


def opening_report(job: Job, opened: Opened, actor: str, attempt: int) -> DeviceReport:
    """Row of round -1. The device downloads P^0 and uploads its layer scores, if its method asks for them."""
    shard, device = opened.scan.shard, opened.layer_report.device
    scores = opened.layer_report.scores
    down, up = num_bytes(opened.received), num_bytes({} if scores is None else {"scores": scores})
    return DeviceReport(
        round=OPENING_ROUND,
        device=device,
        num_samples=shard.num_samples,
        difficulty_seen=float(opened.scan.traces.double().mean()) if opened.scan.has_run else None,
        grade_seen=None if shard.grades is None else float(shard.grades.double().mean()),
        length_seen=float(shard.lengths.double().mean()),
        **_rank_correlations(opened.scan),
        flops=opened.work.flops,
        sim_time_s=job.system.device_seconds(job.seed, device, opened.work.flops, down, up),
        bytes_down=down,
        bytes_up_evidence=up,
        bytes_up=up,
        compute_s=opened.compute_s,
        peak_memory_bytes=peak_memory_bytes(),
        actor=actor,
        attempt=attempt,
    )


def training_report(
    job: Job,
    round_: DeviceRound,
    trained: Trained,
    update: ClientUpdate,
    work: Work,
    layout: Layout,
    actor: str,
    attempt: int,
    compute_s: float,
) -> DeviceReport:
    rows, shard, broadcast = torch.cat(list(round_.visible)), round_.shard, round_.broadcast
    difficulty = round_.memory.get("curriculum", {}).get("sample_difficulty")
    fisher = job.method.mask.fisher(round_.memory.get("mask", {}))
    down = num_bytes(broadcast.shared) + num_bytes(broadcast.hint)
    up_delta, up_evidence = num_bytes(update.delta), num_bytes(update.evidence)
    return DeviceReport(
        round=round_.plan.round,
        device=update.device,
        num_samples=update.num_samples,
        num_samples_seen=trained.num_samples,
        num_batches_seen=len(round_.visible),
        num_steps=trained.num_steps,
        learning_rate=round_.plan.learning_rate,
        train_loss=trained.mean_loss,
        difficulty_seen=None if difficulty is None else float(difficulty[rows].double().mean()),
        grade_seen=None if shard.grades is None else float(shard.grades[rows].double().mean()),
        length_seen=float(shard.lengths[rows].double().mean()),
        kept_fraction=_kept_fraction(round_.keep),
        **_rank_correlations(round_.scored),
        fisher_trace=float(sum(value.double().sum() for value in fisher.values())) if fisher else None,
        flops=work.flops,
        sim_time_s=job.system.device_seconds(job.seed, update.device, work.flops, down, up_delta + up_evidence),
        bytes_down=down,
        bytes_up_delta=up_delta,
        bytes_up_evidence=up_evidence,
        bytes_up=up_delta + up_evidence,
        compute_s=compute_s,
        peak_memory_bytes=peak_memory_bytes(),
        actor=actor,
        attempt=attempt,
        kept_neurons=_by_layer({n: m.flatten(1).any(1) for n, m in round_.keep.items()}, layout, int),
        layer_fisher=_by_layer(fisher, layout, float),
    )


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far (shared pages included)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kept_fraction(keep: Tensors) -> float | None:
    total = sum(mask.numel() for mask in keep.values())
    return sum(int(mask.sum()) for mask in keep.values()) / total if total else None


def _by_layer(values: Tensors, layout: Layout, number: Callable[[float], N]) -> tuple[N, ...] | None:
    """(L,) sums over each block's tensors; None if there are no values."""
    if not values:
        return None
    sums = [0.0] * layout.num_layers
    for name, value in values.items():
        layer = layout.layers[name]
        if layer is not None:
            sums[layer] += float(value.double().sum())
    return tuple(number(total) for total in sums)


def _rank_correlations(scan: FisherScan) -> dict[str, Any]:
    """Of the difficulty with loss, length and true grade, if the difficulty was measured just now."""
    if not scan.has_run:
        return {}
    others = {"loss": scan.losses, "length": scan.shard.lengths, "grade": scan.shard.grades}
    return {f"difficulty_{name}_rank_corr": _rank_correlation(scan.traces, other) for name, other in others.items()}


def _rank_correlation(left: Tensor, right: Tensor | None) -> float | None:
    """Spearman's rho; None where the right one is unknown or either is constant."""
    if right is None or len(left) < 2:
        return None
    if bool((left == left[0]).all()) or bool((right == right[0]).all()):
        return None
    # Half a second of import, for methods that measure difficulty only.
    from scipy.stats import spearmanr

    return float(spearmanr(left.double().numpy(), right.double().numpy()).statistic)
