"""Bytes that a run leaves on disk, in its directory and in the cache of prepared weights; used by plan.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fibec_ray.learning.job import Job
from fibec_ray.preflight.anatomy import Anatomy
from fibec_ray.preflight.exchange import Exchange
from fibec_ray.preflight.samples import Samples
from fibec_ray.tensors import num_bytes

PART_BYTES = {"rounds": 12_000, "devices": 12_500, "layers": 2_800, "batches": 2_800}
"""Of a part file of the round log with hardly any rows, without the experiment, which is in each of them."""
CONFIG_TIMES = 7 / 3
"""The experiment stands there as text, and once more in base 64."""
ROW_BYTES = {"devices": 150, "layers": 25, "batches": 30}


@dataclass(frozen=True)
class Disk:
    """base: in the cache folder of each node, 0 if it is there already. The others are in the run directory."""

    base: int
    data: int
    states: int
    log: int
    adapter: int

    @property
    def run(self) -> int:
        return self.data + self.states + self.log + self.adapter


def state_files(job: Job, exchange: Exchange, samples: Samples, cohorts: Sequence[Sequence[int]]) -> int:
    """Of what devices keep: each one's newest version and the one before it, from which a round may be run again."""
    total = 0
    rounds = [device for cohort in cohorts for device in cohort]
    for device, lengths in enumerate(samples.train):
        count = rounds.count(device)
        total += min(count, 2) * exchange.state_bytes(len(lengths), opened=False)
        if job.method.opens and count < 2:
            total += exchange.state_bytes(len(lengths), opened=True)
    return total


def log_bytes(job: Job, samples: Samples, num_layers: int, config_bytes: int) -> int:
    """config_bytes: of the experiment as text."""
    rounds, opened = job.rounds, job.num_devices if job.method.opens else 0
    parts = (rounds + 1) * int(sum(PART_BYTES.values()) + CONFIG_TIMES * config_bytes * len(PART_BYTES))
    devices = rounds * job.cohort_size + opened
    batches = sum(-(-len(part) // job.local.batch_size) for part in samples.train) if opened else 0
    rows = {"devices": devices, "layers": (rounds + 1) * num_layers, "batches": batches}
    return parts + sum(ROW_BYTES[table] * count for table, count in rows.items())


def adapter_bytes(anatomy: Anatomy) -> int:
    return num_bytes(anatomy.initial)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
