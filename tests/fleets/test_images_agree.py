"""Image models give the same bits on both fleets, with lanes too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_CONVNEXT, TINY_SWIN, TINY_VIT, make_shapes
from rotation import in_turn

from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.simulation import simulate

RUNS = [("fedavg", TINY_VIT, 2), ("fibecfed", TINY_SWIN, 1), ("fipa", TINY_CONVNEXT, 1), ("fibecfed", TINY_VIT, 3)]
NAMES = [f"{method}-{config['model_type']}-{lanes}" for method, config, lanes in RUNS]


@pytest.mark.ray
@pytest.mark.parametrize("name", in_turn(NAMES, 2, "image models on Ray"))
def test_local_and_ray_agree_bit_for_bit(name: str, tmp_path: Path, ray_cluster: None) -> None:
    method, config, lanes = RUNS[NAMES.index(name)]
    found = []
    fleets: tuple[dict[str, Any], ...] = ({"kind": "local"}, {"kind": "ray", "placement": "pooled", "num_actors": 2})
    for fleet in fleets:
        settings = make_shapes(method, config, rounds=2, fleet={**fleet, "lanes": lanes})
        run = simulate(check(settings, "test"), tmp_path / fleet["kind"])
        found.append((run.adapter_digest, log_digest(run.folder)))
    assert found[0] == found[1]
