"""Memory that a run needs: per actor, per node, per GPU. Pure functions of sizes.

The constants for hosts are measured: tests/preflight/test_memory.py compares predictions with real processes. Tensors
on a GPU were compared on one H200 with an earlier training step: 25.0 GB predicted and 24.6 GB allocated for
RoBERTa-large with 32 lanes, 19.4 and 18.5 GB for LLaMA-7B with FibecFed. GPU_HEAP, for memory that the allocator holds
unused, comes from published reports.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fibec_ray.errors import ModelError
from fibec_ray.learning.batches import fixed_batches
from fibec_ray.learning.job import Job
from fibec_ray.models.backends import CONTEXT_BYTES, HOST_FACTOR
from fibec_ray.models.settings import Backend
from fibec_ray.parts.part import Passes
from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.preflight.anatomy import Anatomy
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.samples import Samples

PROCESS_BYTES = 315_000_000
"""Private memory of a process that has imported torch, transformers and peft and built a model."""
ACTOR_EXTRA_BYTES = 20_000_000
"""Additional memory of a Ray actor."""
SERVER_BYTES = 200_000_000
"""The server actor without its tensors: only torch."""
RAY_BYTES = 450_000_000
"""Ray's own processes on the head of a local cluster."""
FIRST_PASS_BYTES = 50_000_000
"""Libraries loaded by the first pass, and their workspace."""
HEAP = 1.65
"""Process memory per byte of peak tensor memory: freed blocks are reused imperfectly."""
COPIES = 2
"""Copies of the trainable tensors per process: in the model and as P^0."""
COPIES_PER_LANE = 6
"""Copies per lane: received, trained, read, subtracted, starting values, and gradients."""
GPU_HEAP = 1.15
"""Like HEAP, for torch's allocator on a GPU."""
BASE_SHARES: dict[Backend, tuple[float, float]] = {
    "plain": (1.0, 0.0),
    "auto": (0.0, 0.0),
    "spread": (0.0, 0.0),
    "stream": (0.0, 0.0),
    "deepspeed": (0.0, HOST_FACTOR),
    "qlora": (0.3, 0.0),
}
"""By backend: the share of the base weights that stays on an actor's GPU, and the share in private host memory.

`auto`, while undecided, and `spread` move weights off the GPU where they do not fit, so they never cause a rejection.
"""
FETCHED = ("stream", "deepspeed")
"""Backends that keep some weights on the GPU, and copy each of the others there when it is used."""


@dataclass(frozen=True)
class ActorMemory:
    """Bytes of one process that hosts devices. private: on the host; gpu: on its GPU, 0 without one."""

    private: int
    gpu: int
    tensors: int
    """peak of its tensors during a pass; included in one of the two"""
    beside: int = 0
    """GPU memory of activations and adapters: all except CUDA's context and the base"""


def actor_memory(
    rehearsal: Rehearsal, samples: Samples, lanes: int, on_ray: bool, on_gpu: bool, backend: Backend = "plain"
) -> ActorMemory:
    """Memory of one actor. lanes: devices in one pass. backend: of the base."""
    job, anatomy = rehearsal.job, rehearsal.anatomy
    # The heap is fragmented by one kind of pass and grows for another, unless all samples have one length: then freed
    # blocks fit.
    passes = live_bytes(rehearsal, samples, lanes, anatomy.on_gpu if on_gpu else anatomy)
    tensors, second = sorted([*passes, 0], reverse=True)[:2]
    second = 0 if samples.are_alike else second
    own = anatomy.trainable_bytes * (COPIES + lanes * (COPIES_PER_LANE + optimiser_copies(job)))
    process = PROCESS_BYTES + (ACTOR_EXTRA_BYTES if on_ray else 0)
    gpu_share, host_share = BASE_SHARES[backend]
    if on_gpu:
        beside = int(GPU_HEAP * (tensors + own))
        base = anatomy.streamed_bytes if backend in FETCHED else int(gpu_share * anatomy.base_bytes)
        gpu = CONTEXT_BYTES + base + beside
        return ActorMemory(process + own + int(host_share * anatomy.base_bytes), gpu, tensors, beside)
    heap = int(HEAP * (tensors + second + own))
    return ActorMemory(process + FIRST_PASS_BYTES + heap + int(host_share * anatomy.base_bytes), 0, tensors)


def live_bytes(rehearsal: Rehearsal, samples: Samples, lanes: int, anatomy: Anatomy) -> list[int]:
    """Peak tensor bytes of each kind of pass: training and the parts' passes in a round, evaluation, and block
    scores. anatomy: of the rehearsal, or the same on a GPU.
    """
    job = rehearsal.job
    adapter = [name for name in anatomy.model.trainable if anatomy.model.is_adapter(name)]
    names = adapter if rehearsal.holds_single_gradients else []
    count, length = largest_batch(job, samples)
    if names:  # grouped by length, the longest together
        length = samples.longest
    steps = [_step_bytes(anatomy, count * lanes, length, names)]
    for passes in rehearsal.round_passes(job.rounds - 1):
        if passes.backwards:
            single = names if passes.single_gradients else []
            steps.append(_step_bytes(anatomy, _group(job, passes, samples) * lanes, samples.longest, single))
    evaluated = min(job.eval_batch_size, len(samples.test))
    found = [max(steps), anatomy.forward_bytes(evaluated, samples.longest)]
    if scored := [_group(job, passes, samples) for passes in rehearsal.score_passes]:
        found.append(lanes * _score_bytes(anatomy, rehearsal.method.sharing, max(scored), samples.longest))
    return found


def _group(job: Job, passes: Passes, samples: Samples) -> int:
    """Most samples in one pass."""
    drawn = [passes.max_samples] if passes.max_samples else []
    return max(1, min([passes.group or job.local.batch_size, max(map(len, samples.train)), *drawn]))


def _score_bytes(anatomy: Anatomy, sharing: Sharing, count: int, length: int) -> int:
    try:
        return anatomy.score_bytes(sharing, count, length)
    except ModelError:  # the rule depends on values
        return anatomy.step_bytes(count, length)


def _step_bytes(anatomy: Anatomy, count: int, length: int, names: Collection[str]) -> int:
    try:
        return anatomy.step_bytes(count, length, names)
    except ModelError:  # the adapter kind has no per-sample gradients; the run itself will reject it
        return anatomy.step_bytes(count, length)


def optimiser_copies(job: Job) -> int:
    """Number of tensors that the optimiser keeps per trained tensor."""
    return 2 if job.local.optimizer == "adamw" else int(job.local.momentum > 0)


def largest_batch(job: Job, samples: Samples) -> tuple[int, int]:
    """Number of samples and padded length of the training batch with the most tokens."""
    sizes = [(1, 1)]
    for device, lengths in enumerate(samples.train):
        for rows in fixed_batches(job.seed, device, len(lengths), job.local.batch_size):
            sizes.append((len(rows), int(lengths[rows.numpy()].max())))
    return max(sizes, key=lambda size: size[0] * size[1])
