"""Every kind of task gives the same bits on both fleets."""

from __future__ import annotations

from pathlib import Path

import pytest
from kinds import CASES
from rotation import in_turn

from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.simulation import simulate

FLEETS = {"kind": "local"}, {"kind": "ray", "placement": "pooled", "num_actors": 2}


@pytest.mark.ray
@pytest.mark.parametrize("kind", in_turn(list(CASES), 2, "kinds on Ray"))
def test_local_and_ray_agree_bit_for_bit(kind: str, tmp_path: Path, ray_cluster: None) -> None:
    found = []
    for fleet in FLEETS:
        run = simulate(check(CASES[kind]("fibecfed", rounds=3, fleet=fleet), "test"), tmp_path / fleet["kind"])
        found.append((run.adapter_digest, log_digest(run.folder)))
    assert found[0] == found[1]
