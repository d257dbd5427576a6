"""What a device's work leaves in the round log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchScore:
    """A fixed batch of a device as the round log records it when the curriculum has scored it."""

    batch: int
    num_samples: int
    difficulty: float
    loss: float | None
    length: float
    true_difficulty: float | None


@dataclass(frozen=True)
class DeviceReport:
    """One device-round as the round log records it; column meanings and units are in `roundlog/schema.py`."""

    round: int
    device: int
    num_samples: int
    num_samples_seen: int = 0
    num_batches_seen: int = 0
    num_steps: int = 0
    learning_rate: float | None = None
    train_loss: float | None = None
    difficulty_seen: float | None = None
    true_difficulty_seen: float | None = None
    length_seen: float | None = None
    kept_fraction: float | None = None
    mask_overlap: float | None = None
    layer_keep_ratio: float | None = None
    fisher_trace: float | None = None
    difficulty_loss_rank_corr: float | None = None
    difficulty_length_rank_corr: float | None = None
    difficulty_true_rank_corr: float | None = None
    flops: float = 0.0
    sim_time_s: float = 0.0
    bytes_down: int = 0
    bytes_up_delta: int = 0
    bytes_up_extras: int = 0
    bytes_up: int = 0
    compute_s: float = 0.0
    peak_memory_bytes: int = 0
    actor: str = "driver"
    attempt: int = 0
    update_digest: str | None = None
    """of what the device sent and what it keeps"""
    state_digest: str = ""
    """of the state that the device has stored; '' if it stores nothing. Not a column: `update_digest` ends with it"""
    quarantined: str | None = None
    """why the update was not averaged, if it was not"""
    peak_gpu_memory_bytes: int | None = None
    energy_j: float | None = None
    staleness: int | None = 0
    """rounds that ended between the device's start and the one that combined its update; None in older logs"""
    kept_neurons: tuple[int, ...] | None = None
    """per layer: neurons of personal tensors that the mask let move"""
    layer_fisher: tuple[float, ...] | None = None
    """per layer: sum of the diagonal Fisher information that the mask is based on"""
    batches: tuple[BatchScore, ...] | None = None
    """the device's fixed batches, if the curriculum scored them in this round"""
