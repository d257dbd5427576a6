"""Builds the round log's row about a device's work."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.learning.device_round import DeviceRound
from fibec_ray.learning.job import Job
from fibec_ray.learning.local_update import Trained
from fibec_ray.reports import BatchScore, DeviceReport
from fibec_ray.tensors import Tensors, num_bytes, under_prefix
from fibec_ray.types import SETUP_ROUND, DeviceUpdate, LayerReport, Layout

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Spent:
    """The cost of a device's work, and where it ran."""

    flops: float
    compute_s: float
    actor: str
    attempt: int
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None = None


@dataclass(frozen=True)
class DeviceSetup:
    """A device's results in the setup phase."""

    scan: FisherScan
    curriculum: Tensors
    """the curriculum's memory"""
    layer_report: LayerReport
    bytes_down: int
    bytes_up: int


def setup_report(job: Job, opened: DeviceSetup, spent: Spent) -> DeviceReport:
    """Row of round -1. The device downloads P^0 and uploads what its method uses: layer scores and word counts."""
    shard, device = opened.scan.shard, opened.layer_report.device
    curriculum, down, up = opened.curriculum, opened.bytes_down, opened.bytes_up
    return DeviceReport(
        round=SETUP_ROUND,
        device=device,
        num_samples=shard.num_samples,
        difficulty_seen=_difficulty(curriculum, torch.arange(shard.num_samples)),
        true_difficulty_seen=None if shard.true_difficulty is None else _mean(shard.true_difficulty),
        length_seen=_mean(shard.lengths) or None,
        **_rank_correlations(curriculum, opened.scan),
        layer_keep_ratio=opened.layer_report.scores.keep_ratio,
        **_simulated(job, device, SETUP_ROUND, spent.flops, down, up),
        bytes_down=down,
        bytes_up_extras=up,
        bytes_up=up,
        batches=batch_scores(curriculum, opened.scan),
        **vars(spent),
    )


def training_report(round_: DeviceRound, trained: Trained, update: DeviceUpdate, spent: Spent) -> DeviceReport:
    """Row of a device's training in a round."""
    job, layout, shard = round_.host.job, round_.host.layout, round_.shard
    seen = list(round_.visible) if trained.num_steps else []
    rows = torch.cat([*seen, torch.empty(0, dtype=torch.int64)])
    curriculum, mask = round_.memory["curriculum"], job.method.mask
    fisher = under_prefix("fisher", round_.memory["mask"])
    down = round_.bytes_down
    up_delta, up_extras = num_bytes(update.delta), num_bytes(update.extras)
    if job.pooled_cohort is not None:  # pooled data: nothing is sent
        down = up_delta = up_extras = 0
    return DeviceReport(
        round=round_.plan.round,
        device=update.device,
        num_samples=update.num_samples,
        num_samples_seen=trained.num_samples,
        num_batches_seen=len(seen),
        num_steps=trained.num_steps,
        learning_rate=round_.plan.learning_rate if seen else None,
        train_loss=trained.mean_loss,
        difficulty_seen=_difficulty(curriculum, rows),
        true_difficulty_seen=None if shard.true_difficulty is None or not seen else _mean(shard.true_difficulty[rows]),
        length_seen=(_mean(round_.seen.lengths[rows]) or None) if seen else None,
        kept_fraction=_kept_fraction(round_.keep),
        mask_overlap=_overlap(round_.kept_before, round_.keep),
        **_rank_correlations(curriculum, round_.scored),
        fisher_trace=float(sum(value.double().sum() for value in fisher.values())) if fisher else None,
        **_simulated(job, update.device, round_.plan.round, spent.flops, down, up_delta + up_extras),
        bytes_down=down,
        bytes_up_delta=up_delta,
        bytes_up_extras=up_extras,
        bytes_up=up_delta + up_extras,
        kept_neurons=_by_layer(mask.neurons(round_.keep), layout, int),
        layer_fisher=_by_layer(fisher, layout, float),
        batches=batch_scores(curriculum, round_.scored),
        **vars(spent),
    )


def _simulated(job: Job, device: int, round_: int, flops: float, bytes_down: int, bytes_up: int) -> dict[str, Any]:
    """The columns that depend on the simulated device."""
    return {
        "sim_time_s": job.system.device_seconds(job.seed, device, round_, flops, bytes_down, bytes_up),
        "energy_j": job.system.energy_j(job.seed, device, flops, bytes_down, bytes_up),
    }


def batch_scores(curriculum: Tensors, scan: FisherScan | None) -> tuple[BatchScore, ...] | None:
    """The fixed batches with the curriculum's new scores; None if it did not score. curriculum: its memory."""
    if scan is None or "batch_difficulty" not in curriculum:
        return None
    shard, losses = scan.shard, scan.known_losses
    return tuple(
        BatchScore(
            batch=j,
            num_samples=len(rows),
            difficulty=float(curriculum["batch_difficulty"][j]),
            loss=None if losses is None else _mean(losses[rows]),
            length=_mean(shard.lengths[rows]),
            true_difficulty=None if shard.true_difficulty is None else _mean(shard.true_difficulty[rows]),
        )
        for j, rows in enumerate(scan.batches)
    )


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, including shared pages."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kept_fraction(keep: Tensors) -> float | None:
    total = sum(mask.numel() for mask in keep.values())
    return sum(int(mask.sum()) for mask in keep.values()) / total if total else None


def _overlap(before: Tensors, now: Tensors) -> float | None:
    """Jaccard index of the entries that may move: in both masks / in either mask."""
    either = sum(int((mask | before[name]).sum()) for name, mask in now.items() if name in before)
    both = sum(int((mask & before[name]).sum()) for name, mask in now.items() if name in before)
    return both / either if either else None


def _difficulty(curriculum: Tensors, rows: Tensor) -> float | None:
    difficulty = curriculum.get("sample_difficulty")
    return None if difficulty is None else _mean(difficulty[rows])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _by_layer(values: Tensors, layout: Layout, number: Callable[[float], N]) -> tuple[N, ...] | None:
    """(L,) sums over each block's tensors; None without values."""
    if not values:
        return None
    sums = [0.0] * layout.num_layers
    for name, value in values.items():
        layer = layout.layers[name]
        if layer is not None:
            sums[layer] += float(value.double().sum())
    return tuple(number(total) for total in sums)


def _rank_correlations(curriculum: Tensors, scan: FisherScan | None) -> dict[str, Any]:
    """Correlations of the samples' difficulty with loss, length and true difficulty, if they were scored in this
    round.
    """
    difficulty = curriculum.get("sample_difficulty")
    if scan is None or difficulty is None:
        return {}
    others = {"loss": scan.known_losses, "length": scan.shard.lengths, "true": scan.shard.true_difficulty}
    return {f"difficulty_{name}_rank_corr": _rank_correlation(difficulty, other) for name, other in others.items()}


def _rank_correlation(left: Tensor, right: Tensor | None) -> float | None:
    """Spearman's rho; None if the right side is unknown or either side is constant."""
    if right is None or len(left) < 2:
        return None
    if bool((left == left[0]).all()) or bool((right == right[0]).all()):
        return None
    ranks = np.column_stack([_ranks(left), _ranks(right)])
    return float(np.asarray(np.corrcoef(ranks, rowvar=False))[1, 0])


def _ranks(values: Tensor) -> NDArray[np.float64]:
    """Ranks from 1, ties averaged; nan for all if one is nan. As scipy.stats does, which takes 2 s to import."""
    numbers = values.double().numpy()
    if np.isnan(numbers).any():
        return np.full(len(numbers), np.nan)
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return np.asarray(counts.cumsum() - (counts - 1) / 2)[places]
