"""The benchmark of checkpoints runs, on a federation too small for its figures to mean anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fibec_ray.bench.checkpoint import measure, table
from fibec_ray.config.load import check


def test_every_round_is_measured(tiny_settings: Any, tmp_path: Path) -> None:
    rounds = measure(check(tiny_settings("fibecfed", rounds=2), "test"), tmp_path)
    assert len(rounds) == 2
    assert all(one.round_s > 0 and one.beside_s > 0 and one.server_bytes > 0 and one.state_bytes > 0 for one in rounds)
    head, _, first, *_ = table("fibecfed", rounds).splitlines()
    assert head == "| fibecfed | seconds | % of a round |" and first.endswith("| 100.00 |")
