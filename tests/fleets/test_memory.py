"""The driver's memory over many rounds: it holds refs and rows, never payloads, and nothing that grows."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
from fleets.children import in_a_process_of_its_own

ROUNDS = 200


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "fedrep"])
def test_memory_is_flat_from_round_40_to_200(method: str, tiny_settings: Any, tmp_path: Path) -> None:
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
    uss_bytes = in_a_process_of_its_own("weighed.py", settings, tmp_path)["uss_bytes"]
    by_twenty = [median(uss_bytes[round_ : round_ + 20]) / 1e6 for round_ in range(0, ROUNDS, 20)]
    print(f"{method}: MB of rounds 0-19, 20-39, ...: {[round(mb, 1) for mb in by_twenty]}")
    assert by_twenty[-1] - by_twenty[2] < 8, "one update kept of each call would be 14"
