"""The Ray fleet alone: lost actors, where base weights live, what is left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError, ModelError
from fibec_ray.fleets.cluster import check_reachable
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.ray_fleet import RayFleet
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.site import Site
from fibec_ray.learning.planning import plan_round
from fibec_ray.simulation import cache_dir, prepare
from fibec_ray.tensors import digest

pytestmark = pytest.mark.ray


def site_of(settings: dict[str, Any], folder: Path) -> Site:
    experiment = check(settings, "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    return Site(experiment.job(prepared.num_classes, prepared.label_words), folder, cache_dir(), 1)


def device_actor_processes() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if "DeviceActor" in command_of(process)]


def command_of(process: psutil.Process) -> str:
    """Empty for a process that has ended, whether or not its parent has collected it yet."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_a_round_whose_actors_are_killed_gives_the_same_bits(
    tiny_settings: Any, tmp_path: Path, ray_cluster: None
) -> None:
    settings = tiny_settings("fibecfed", cohort_size=6)
    calm = LocalFleet(site_of(settings, tmp_path / "calm"))
    calm.open()
    site = site_of(settings, tmp_path / "killed")
    killed: list[int] = []

    def kill_all_once(stage: str, done: int, total: int) -> None:
        if stage == "train" and not killed:
            for process in device_actor_processes():
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    fleet = RayFleet(site, FleetConfig(placement="pooled", num_actors=2), kill_all_once)
    try:
        fleet.open()
        for round_ in range(2):
            plan = plan_round(site.job, 6, round_)
            calm.run_round(plan)
            result = fleet.run_round(plan)
            assert [report.device for report in result.reports] == list(plan.cohort)
            if round_ == 0:
                assert len(killed) == 2 and any(report.attempt > 0 for report in result.reports)
        assert digest(fleet.adapter()) == digest(calm.adapter())
    finally:
        fleet.close()
    assert not {process.pid for process in device_actor_processes()} & set(killed)


def test_an_actor_s_own_error_reaches_the_driver_as_it_is(
    tiny_settings: Any, tmp_path: Path, ray_cluster: None
) -> None:
    method = {"name": "x", "peft": {"kind": "lora", "target_modules": ["no_such_linear"]}}
    fleet = RayFleet(site_of(tiny_settings(method), tmp_path / "run"), FleetConfig(placement="pooled", num_actors=1))
    try:
        with pytest.raises(ModelError, match=r"method.peft.target_modules: .*name Linears of this backbone"):
            fleet.open()
    finally:
        fleet.close()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "localhost:no-port", "no-such-host.invalid:6379", "127.0.0.1:99999"]
)
def test_a_cluster_that_does_not_answer_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match=r"fleet.address: no cluster answers at .*`ray start --head`"):
        check_reachable(address)


@pytest.mark.parametrize("address", [None, "auto", "local", "ray://somewhere:10001"])
def test_addresses_that_name_no_socket_are_left_to_ray(address: str | None) -> None:
    check_reachable(address)
