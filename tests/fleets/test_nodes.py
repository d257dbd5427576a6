"""Fleets on clusters of several nodes: the same bits, base weights once for each node, waiting for nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fibec_ray.config.load import check
from fibec_ray.errors import FleetError
from fibec_ray.fleets.ray.nodes import await_nodes, refuse_different
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.simulation import simulate

pytestmark = pytest.mark.ray
FLEET = {"kind": "ray", "address": "auto", "placement": "pooled", "num_actors": 3}
CHILD = Path(__file__).with_name("three_nodes.py")


def on_three_nodes(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    child = [sys.executable, str(CHILD), str(path), str(folder)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_three_nodes_give_the_bits_of_one(tiny_settings: Any, tmp_path: Path) -> None:
    """Each device node prepares its base weights, once, before its actor is there; the head, without CPUs, does not."""
    settings = tiny_settings("fibecfed", rounds=2, cohort_size=6)
    found = on_three_nodes(settings | {"fleet": FLEET}, tmp_path)
    here = simulate(check(settings, "test"), tmp_path / "here")
    assert (found["adapter"], found["log"]) == (here.adapter_digest, log_digest(tmp_path / "here"))
    assert found["caches"] == [0, 1, 1, 1] and found["num_prepared"] == 3
    assert found["actors"] == 3, "all three had devices"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_hundred_devices_on_three_nodes(tiny_settings: Any, tmp_path: Path) -> None:
    settings = tiny_settings(
        "fibecfed",
        rounds=5,
        num_devices=500,
        cohort_size=50,
        data={"synthetic": {"num_train": 2000, "num_test": 100}},
        evaluation={"every": 5},
    )
    found = on_three_nodes(settings | {"fleet": FLEET}, tmp_path)
    here = simulate(check(settings, "test"), tmp_path / "here")
    assert (found["adapter"], found["log"]) == (here.adapter_digest, log_digest(tmp_path / "here"))
    assert found["actors"] == 3


@pytest.mark.slow
def test_devices_go_to_nodes_of_their_class(tiny_settings: Any, tmp_path: Path) -> None:
    """By a resource of one node, and by a label of another; the third is left alone."""
    classes = [
        {"share": 0.5, "num_actors": 1, "resources": {"slot2": 1}},
        {"share": 0.5, "num_actors": 2, "cpus_per_actor": 0.5, "labels": {"place": "3"}},
    ]
    fleet = {"kind": "ray", "address": "auto", "placement": "pooled", "classes": classes}
    settings = tiny_settings("fibecfed", rounds=2, cohort_size=6)
    found = on_three_nodes(settings | {"fleet": fleet}, tmp_path)
    here = simulate(check(settings, "test"), tmp_path / "here")
    assert (found["adapter"], found["log"]) == (here.adapter_digest, log_digest(tmp_path / "here"))
    assert found["places"] == ["2", "3", "3"]
    first = {"0": {"pool-00000"}, "1": {"pool-00001", "pool-00002"}}
    assert all(actor in first[str(int(device) // 3)] for device, actor in found["by_device"].items())


def test_nodes_with_different_base_weights_are_refused() -> None:
    refuse_different({"10.0.0.1": "aa", "10.0.0.2": "aa"})
    with pytest.raises(FleetError, match=r"backbone: nodes 10.0.0.1 and 10.0.0.3 have different base weights"):
        refuse_different({"10.0.0.1": "aa", "10.0.0.2": "aa", "10.0.0.3": "bb"})


def test_nodes_that_do_not_come_are_not_waited_for_without_end(ray_cluster: None) -> None:
    config = FleetConfig(address="auto", num_actors=3, cpus_per_actor=2, startup_timeout_s=1)
    with pytest.raises(FleetError, match=r"fleet.num_actors: 3 actors need 6 CPU \(the cluster has 2\) after 1 s"):
        await_nodes(config)


def test_there_is_no_waiting_for_what_is_there(ray_cluster: None) -> None:
    await_nodes(FleetConfig(address="auto", num_actors=2, startup_timeout_s=0.001))
    await_nodes(FleetConfig(num_actors=99, startup_timeout_s=0.001))  # a local cluster gets no more nodes


def test_a_cluster_without_nodes_cannot_say_how_many_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"memory": 1e9})
    with pytest.raises(FleetError, match=r"fleet.num_actors: the cluster has no node for devices yet"):
        await_nodes(FleetConfig(address="auto"))
