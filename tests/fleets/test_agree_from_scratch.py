"""Networks from scratch: the in-process fleet and the Ray fleet give bitwise-equal models and logs."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_digits, make_pde, make_regression, needs
from rotation import in_turn

from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.simulation import simulate

FLEETS = ({"kind": "local"}, {"kind": "ray", "placement": "pooled", "num_actors": 2})
CASES = [
    ("digits", method)
    for method in (
        "fedavg", "fedprox", "scaffold", "feddyn", "fednova", "fedadam", "median", "krum", "fedper", "fibecfed", "fipa",
        "fisher-merging",
    )
] + [
    *(("regression", method) for method in ("scaffold", "fisher-merging", "fibecfed", "fipa-paper")),
    ("pde", "fipa-paper"),
]  # fmt: skip


@pytest.mark.ray
@pytest.mark.parametrize(("task", "method"), in_turn(CASES, 1, "local equals Ray, from scratch"))
def test_both_fleets_agree_bit_for_bit(task: str, method: str, tmp_path: Path, ray_cluster: None) -> None:
    make = {"digits": make_digits, "regression": make_regression, "pde": make_pde}[task]
    found = []
    for fleet in FLEETS:
        settings = make(method, rounds=2, cohort_size=needs(method)["cohort_size"], fleet=fleet)
        run = simulate(check(settings, "test"), tmp_path / str(fleet["kind"]))
        found.append((run.adapter_digest, log_digest(run.folder)))
    assert found[0] == found[1]
