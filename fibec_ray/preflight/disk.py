"""Bytes that a run leaves on disk: in its directory, and in the cache of prepared weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fibec_ray.checkpoints.checkpoint import CheckpointConfig
from fibec_ray.learning.job import Job
from fibec_ray.preflight.exchange import Exchange
from fibec_ray.preflight.samples import Samples
from fibec_ray.types import SETUP_ROUND

PART_BYTES = {"rounds": 12_000, "devices": 12_500, "layers": 2_800, "batches": 2_800, "evaluations": 2_800}
"""Size of a part file of the round log with few rows, without the experiment, which is in each of them."""
CONFIG_TIMES = 7 / 3
"""Copies of the experiment in a part file: once as text, and once in base 64."""
ROW_BYTES = {"devices": 150, "layers": 25, "batches": 30}

MANIFEST_BYTES = 1_000
MANIFEST_ROW_BYTES = 75
"""A checkpoint's manifest, and each device in it."""
TOKENIZER_BYTES = 24
"""Size of the tokenizer's files in RUN/adapter, for each token of the vocabulary."""
RECORD_TIMES = 1.3
"""Size of the file that identifies the run, relative to the experiment's text."""


@dataclass(frozen=True)
class Disk:
    """base: in each node's cache, 0 if it is already there. All others are in the run directory."""

    base: int
    data: int
    states: int
    """of devices"""
    checkpoints: int
    """of the server"""
    log: int
    adapter: int
    """with its tokenizer"""

    @property
    def run(self) -> int:
        """Total in the run directory."""
        return self.data + self.states + self.checkpoints + self.log + self.adapter


def state_files(
    job: Job, keep: CheckpointConfig, exchange: Exchange, samples: Samples, cohorts: Sequence[Sequence[int]]
) -> int:
    """Bytes of device states at the end of the run: those that the kept checkpoints refer to."""
    starts = keep.kept(checkpoint_rounds(job.rounds, keep))
    total = 0
    for device, lengths in enumerate(samples.train):
        setup = [SETUP_ROUND] if job.method.needs_setup else []
        versions = setup + [t for t, cohort in enumerate(cohorts) if device in cohort]
        needed = set(versions if keep.keep == "all" else ())
        for start in starts:
            needed |= set([version for version in versions if version < start][-1:])
        total += sum(exchange.state_bytes(len(lengths), opened=version == SETUP_ROUND) for version in needed)
    return total


def checkpoint_rounds(rounds: int, keep: CheckpointConfig) -> list[int]:
    """The rounds before which a checkpoint is written, ascending."""
    return [t for t in range(rounds + 1) if t == rounds or t % keep.every == 0]


def checkpoint_files(
    job: Job, keep: CheckpointConfig, exchange: Exchange, config_bytes: int, past_bytes: int = 0
) -> int:
    """Bytes of the server's checkpoints and of the run's identity. config_bytes: of the experiment as text.

    past_bytes: most bytes of earlier models in a checkpoint.
    """
    count = len(keep.kept(checkpoint_rounds(job.rounds, keep)))
    manifest = MANIFEST_BYTES + MANIFEST_ROW_BYTES * job.num_devices
    return count * (exchange.checkpoint_bytes + past_bytes + manifest) + int(RECORD_TIMES * config_bytes)


def log_bytes(job: Job, samples: Samples, num_layers: int, config_bytes: int) -> int:
    """Bytes of the round log. config_bytes: of the experiment as text."""
    rounds, opened = job.rounds, job.num_devices if job.method.needs_setup else 0
    parts = (rounds + 1) * int(sum(PART_BYTES.values()) + CONFIG_TIMES * config_bytes * len(PART_BYTES))
    devices = rounds * job.cohort_size + opened
    batches = sum(-(-len(part) // job.local.batch_size) for part in samples.train) if opened else 0
    rows = {"devices": devices, "layers": (rounds + 1) * num_layers, "batches": batches}
    return parts + sum(ROW_BYTES[table] * count for table, count in rows.items())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
