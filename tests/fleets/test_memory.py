"""The driver's memory over many rounds: it holds refs and rows, never payloads, and nothing that grows."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest

from fibec_ray.config.load import check
from fibec_ray.simulation import Nobody, simulate

ROUNDS = 200


class Scale(Nobody):
    """Weighs this process after each round."""

    def __init__(self) -> None:
        self.uss_bytes: dict[int, int] = {}

    def row(self, row: dict[str, Any]) -> None:
        self.uss_bytes[row["round"]] = psutil.Process().memory_full_info().uss


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "fedrep"])
def test_memory_is_flat_from_round_40_to_200(
    method: str, tiny_settings: Any, tmp_path: Path, ray_cluster: None
) -> None:
    """2000 device-rounds. Memory comes and goes from round to round, so twenty rounds are weighed together."""
    settings = tiny_settings(
        method,
        rounds=ROUNDS,
        num_devices=12,
        cohort_size=10,
        data={"synthetic": {"num_train": 60, "num_test": 12}},
        evaluation={"every": 20},
        fleet={"kind": "ray", "placement": "pooled", "num_actors": 2},
    )
    scale = Scale()
    simulate(check(settings, "test"), tmp_path / "run", scale)
    by_twenty = [median(scale.uss_bytes[round_ + i] for i in range(20)) / 1e6 for round_ in range(0, ROUNDS, 20)]
    print(f"{method}: MB of rounds 0-19, 20-39, ...: {[round(mb, 1) for mb in by_twenty]}")
    assert by_twenty[-1] - by_twenty[2] < 8, "one update kept of each call would be 14"
