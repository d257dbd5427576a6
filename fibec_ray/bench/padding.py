"""Measures the share of padding tokens by the way batches are made: `python -m fibec_ray.bench.padding CONFIG`.

Prepares data as for a run, and computes nothing with them. Takes key=value after CONFIG.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fibec_ray.config.load import load_experiment
from fibec_ray.curvature.fisher import by_length
from fibec_ray.learning.batches import fixed_batches
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.learning.federation import Federation
from fibec_ray.model_types import Shard
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.runs.simulation import prepare

Batches = Iterable[tuple[Shard, Tensor]]
"""Pairs of a shard and the rows (B,) of one batch."""


def waste(batches: Batches, length: int | None = None) -> float:
    """Share of padding tokens. length: tokens that all samples are padded to; None: the longest of the batch."""
    lengths = [shard.lengths[rows] for shard, rows in batches if len(rows)]
    padded = sum(len(part) * (length or int(part.max())) for part in lengths)
    return 1 - sum(int(part.sum()) for part in lengths) / padded


def in_order(shards: Sequence[Shard], size: int) -> Iterator[tuple[Shard, Tensor]]:
    """Batches of all shards, samples in their own order."""
    return ((shard, rows) for shard in shards for rows in torch.arange(shard.num_samples).split(size))


def sorted_(shards: Sequence[Shard], size: int) -> Iterator[tuple[Shard, Tensor]]:
    """Batches of all shards, samples sorted by length."""
    return ((shard, rows) for shard in shards for rows in evaluation_chunks(shard, size))


def main(config: str, overrides: list[str]) -> None:
    """Prepare the data of an experiment and print the table."""
    quiet_libraries()
    experiment = load_experiment(Path(config), overrides)
    with tempfile.TemporaryDirectory() as folder:
        prepare(experiment, Path(folder))
        data = Federation.load(Path(folder) / "data")
        train = [data.train_shard(device) for device in range(data.num_devices)]
        own, test = [data.test_shard(device) for device in range(data.num_devices)], [data.test_set()]
        size, eval_size = experiment.local.batch_size, experiment.evaluation.batch_size
        fixed = [
            (shard, rows)
            for device, shard in enumerate(train)
            for rows in fixed_batches(experiment.seed, device, shard.num_samples, size)
        ]
        scans = [(shard, rows) for shard in train for rows in by_length(shard, torch.arange(shard.num_samples), size)]
        most = experiment.data.max_length
        print(f"| {experiment.name}: padded to | {most} tokens | the longest of a batch | the same, sorted by length |")
        print("|---|---|---|---|")
        table = {
            f"training, batches of {size}": (waste(fixed, most), waste(fixed), None),
            f"Fisher passes, batches of {size}": (waste(fixed, most), waste(fixed), waste(scans)),
        }
        for name, shards in (("global model", test), ("own models", own)):
            shares = waste(in_order(shards, eval_size), most), waste(in_order(shards, eval_size))
            table[f"{name}, batches of {eval_size}"] = (*shares, waste(sorted_(shards, eval_size)))
    for name, found in table.items():
        print(f"| {name} | {' | '.join('' if share is None else f'{share:.1%}' for share in found)} |")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
