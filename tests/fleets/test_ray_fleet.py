"""The Ray fleet alone: lost actors, where base weights live, what is left behind."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import make_regression
from fleets.mortal import with_deaths

from fibec_ray.config.load import check
from fibec_ray.errors import FleetError, ModelError, ServerLostError
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.ray import nodes
from fibec_ray.fleets.ray.actors import DeviceActor, ServerActor
from fibec_ray.fleets.ray.fleet import RayFleet
from fibec_ray.fleets.ray.reduction import Reduction
from fibec_ray.fleets.ray.server_handle import ServerHandle
from fibec_ray.fleets.ray.wire import from_wire, to_wire
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.server import Server
from fibec_ray.learning.store import AcceptedStates
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import digest

pytestmark = pytest.mark.ray

TWO_ACTORS = FleetConfig(placement="pooled", num_actors=2, lanes=1)


def spec_of(settings: dict[str, Any], folder: Path) -> WorkerSpec:
    experiment = check(settings, "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())


def test_a_round_whose_actors_die_gives_the_same_bits(tmp_path: Path, ray_cluster: None) -> None:
    settings = with_deaths(2, make_regression("fibecfed", cohort_size=4), tmp_path / "deaths")
    calm = LocalFleet(spec_of(settings, tmp_path / "calm"))
    calm.setup()
    worker_spec = spec_of(settings, tmp_path / "run")
    notes: list[str] = []
    fleet = RayFleet(replace(worker_spec, fleet=TWO_ACTORS), note=notes.append)
    try:
        fleet.setup()
        for round_ in range(2):
            plan, before = plan_round(worker_spec.job, round_), fleet.digest()
            fleet.begin_round(plan)
            assert fleet.digest() == before, "the round before can still be saved"
            if round_:
                fleet.evaluate(0)  # takes the actors away from the round, which then begins again
            calm.run_round(plan)
            result = fleet.run_round(plan)
            assert [report.device for report in result.reports] == list(plan.cohort)
            if round_ == 0:
                assert len(list((tmp_path / "deaths").iterdir())) == len(notes) == 2
                assert any(report.attempt > 0 for report in result.reports)
        assert digest(fleet.adapter()) == digest(calm.adapter())
    finally:
        fleet.close()


def test_a_server_that_does_not_start_in_time_is_not_waited_for_as_long_as_a_device(
    tmp_path: Path, ray_cluster: None
) -> None:
    worker_spec = spec_of(make_regression("fedavg"), tmp_path / "run")
    worker, config = worker_spec.worker(), FleetConfig(startup_timeout_s=0.01, device_timeout_s=1800)
    server = ServerHandle(
        replace(worker_spec, fleet=config),
        describe=lambda: (to_wire(worker.initial), worker.layout),
        rerun=lambda round_: None,
        accepted=AcceptedStates(),
        note=lambda text: None,
    )
    try:
        with pytest.raises(ServerLostError, match="GetTimeoutError"):
            server.start()
    finally:
        server.stop()


def test_base_weights_that_come_too_late_are_named(ray_cluster: None) -> None:
    late = ray.remote(num_cpus=0)(lambda: time.sleep(60)).remote()
    with pytest.raises(
        FleetError, match=r"did not have its base weights within 0.01 s .*; raise fleet.startup_timeout_s"
    ):
        nodes._await([late], 0.01)
    ray.cancel(late, force=True)


def test_the_server_sums_while_devices_still_train(tmp_path: Path, ray_cluster: None) -> None:
    """Updates come in any order; the server has taken those whose turn it was before the last one is there."""
    worker_spec = spec_of(make_regression("fedavg", cohort_size=4), tmp_path / "run")
    worker, plan = worker_spec.worker(), plan_round(worker_spec.job, 0)
    server = ray.remote(num_cpus=0, concurrency_groups={"feed": 1})(ServerActor).remote(worker_spec.job, 1)
    ray.get(server.start.remote(to_wire(worker.initial), worker.layout), timeout=60)
    ray.get(server.setup.remote([]), timeout=60)
    broadcast = from_wire(ray.get(server.broadcast.remote(0), timeout=60))
    updates = {device: worker.train(plan, device, broadcast)[0] for device in plan.cohort}
    sent = {device: ray.put(to_wire(update)) for device, update in updates.items()}
    first, second, third, last = plan.cohort
    reduction = Reduction(server, plan)
    for device in (third, first, second):
        reduction.add({device: sent.pop(device)})
    while list(reduction.awaited) != [last]:
        reduction.add({})
        time.sleep(0.01)
    assert ray.wait([reduction._absorbing], timeout=0.2)[0] == []
    reduction.add({last: sent.pop(last)})
    assert reduction.finish(timeout_s=60) == frozenset() and reduction.bad == {}
    local = Server(worker_spec.job, worker.initial, worker.layout)
    local.setup([])
    local.absorb(0, [updates[device] for device in plan.cohort])
    assert digest(from_wire(ray.get(server.adapter.remote(), timeout=60))) == digest(local.adapter())
    ray.kill(server)


def test_an_error_on_the_server_is_raised_and_not_waited_for(tmp_path: Path, ray_cluster: None) -> None:
    worker_spec = spec_of(make_regression("fedavg", cohort_size=4), tmp_path / "run")
    server = ray.remote(num_cpus=0, concurrency_groups={"feed": 1})(ServerActor).remote(worker_spec.job, 1)
    reduction = Reduction(server, plan_round(worker_spec.job, 0))
    reduction.add({device: ray.put(None) for device in plan_round(worker_spec.job, 0).cohort})
    with pytest.raises(AssertionError, match="start comes first"):
        reduction.finish(timeout_s=60)
    ray.kill(server)


def test_an_actor_s_own_error_reaches_the_driver_as_it_is(
    tiny_settings: Any, tmp_path: Path, ray_cluster: None
) -> None:
    method = {"name": "x", "peft": {"kind": "lora", "target_modules": ["no_such_linear"]}}
    fleet = RayFleet(
        replace(
            spec_of(tiny_settings(method), tmp_path / "run"),
            fleet=TWO_ACTORS.model_copy(update={"num_actors": 1}),
        )
    )
    try:
        with pytest.raises(ModelError, match=r"method.peft.target_modules: .*name Linears of this backbone"):
            fleet.setup()
    finally:
        fleet.close()


def test_an_actor_whose_node_has_other_base_weights_does_not_work(
    tiny_settings: Any, tmp_path: Path, ray_cluster: None
) -> None:
    worker_spec = spec_of(tiny_settings(), tmp_path / "run")
    actor = DeviceActor(worker_spec, "here", 0)
    assert actor.ready(worker_spec.base_fingerprint()) == actor.ready("") != ""
    with pytest.raises(
        FleetError, match=r"backbone: node .* has other base weights than the run began with; give a rev"
    ):
        actor.ready("0123")
