"""A part of a user's own on actors that have never seen its file, and on nodes that lack its module."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from own_part import RULES, write_own_part
from runs.interrupted import result

from fibec_ray.config.load import check
from fibec_ray.errors import FleetError
from fibec_ray.runs.simulation import simulate

pytestmark = pytest.mark.ray
RAY = {"kind": "ray", "placement": "pooled", "num_actors": 1}


def test_local_and_ray_agree_bit_for_bit(tmp_path: Path, ray_cluster: None) -> None:
    _, settings = write_own_part(tmp_path / "home")
    found = []
    for fleet in ({"kind": "local"}, RAY):
        experiment = check(settings | {"fleet": fleet}, "test")
        if fleet is RAY:
            shutil.rmtree(tmp_path / "home")  # actors have it from the driver alone
        folder = tmp_path / str(fleet["kind"])
        found.append(result(simulate(experiment, folder), folder))
    assert found[0] == found[1]


def test_a_node_without_its_module_is_named(tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules_that_the_driver_alone_has.py").write_text(RULES)
    monkeypatch.syspath_prepend(tmp_path)
    _, settings = write_own_part(tmp_path / "home", fleet=RAY)
    settings["method"] = {"aggregator": "rules_that_the_driver_alone_has:ClippedMean"}
    with pytest.raises(FleetError, match="node .*: no module 'rules_that_the_driver_alone_has' is installed; install"):
        simulate(check(settings, "test"), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*"))
