"""Where devices go, from what the cluster has."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fibec_ray.errors import FleetError
from fibec_ray.fleets.placement import Need, Resources, actors_on_a_gpu, decide, room
from fibec_ray.fleets.settings import FleetConfig

WORKSTATION = Resources(cpus=2, gpus=0, memory_bytes=20 * 10**9)
CLUSTER = Resources(cpus=64, gpus=8, memory_bytes=500 * 10**9)
PROCESSORS = Resources(cpus=64, gpus=0, memory_bytes=500 * 10**9)
ONE_GPU = Resources(cpus=16, gpus=1, memory_bytes=125 * 10**9, gpu_memory=139 * 10**9)


def test_auto_gives_each_device_an_actor_where_they_fit() -> None:
    placement = decide(FleetConfig(), 100, PROCESSORS)
    assert placement.per_device and placement.num_actors == 100
    assert placement.cpus_per_actor == 0.64 and placement.gpus_per_actor == 0 and placement.device == "cpu"


@pytest.mark.parametrize(("machine", "num_actors"), [(ONE_GPU, 1), (CLUSTER, 8)])
def test_auto_puts_one_actor_on_each_gpu(machine: Resources, num_actors: int) -> None:
    """Its lanes share one copy of the base and one CUDA context."""
    placement = decide(FleetConfig(), 100, machine)
    assert not placement.per_device and placement.num_actors == num_actors and placement.device == "cuda"
    assert placement.gpus_per_actor == 1 and placement.reason.startswith("auto: 100 devices share ")
    assert decide(FleetConfig(), 100, machine, Need(gpu=10**9)) == placement


def test_auto_gives_each_device_a_gpu_of_its_own_where_there_are_enough() -> None:
    placement = decide(FleetConfig(), 8, CLUSTER)
    assert placement.per_device and placement.gpus_per_actor == 1


def test_auto_shares_a_gpu_as_the_settings_say_if_all_contexts_and_bases_fit() -> None:
    config = FleetConfig(gpus_per_actor=0.01)
    assert decide(config, 100, ONE_GPU, Need(gpu=10**9)).per_device
    crowded = decide(config, 100, ONE_GPU, Need(gpu=2 * 10**9))
    assert not crowded.per_device and crowded.num_actors == 1
    assert crowded.reason == "auto: 100 actors on a GPU need 200.0 GB, 139.0 are free"


def test_auto_respects_the_cap_on_an_actor_s_share_of_a_gpu() -> None:
    """Two actors with a tenth of the GPU each: 13.9 GB, although 139 GB are free."""
    config = FleetConfig(gpus_per_actor=0.1)
    assert decide(config, 2, ONE_GPU, Need(gpu=13 * 10**9)).per_device
    capped = decide(config, 2, ONE_GPU, Need(gpu=14 * 10**9))
    assert capped.reason == "auto: an actor needs 14.0 GB of GPU memory, but its share (0.1) is 13.9 GB"


def test_actors_without_gpus_are_as_many_as_the_processors_of_a_machine_with_gpus() -> None:
    placement = decide(FleetConfig(gpus_per_actor=0, placement="pooled"), 100, ONE_GPU)
    assert placement.num_actors == 16 and placement.device == "cpu"
    assert decide(FleetConfig(gpus_per_actor=0), 100, CLUSTER).per_device


def test_ray_fills_a_gpu_before_the_next() -> None:
    assert [actors_on_a_gpu(8, share) for share in (0, 0.1, 0.25, 0.3, 1, 2)] == [0, 8, 4, 3, 1, 1]


def test_auto_pools_when_memory_is_short_and_says_so() -> None:
    placement = decide(FleetConfig(), 100, WORKSTATION)
    assert not placement.per_device and placement.num_actors == 2 and placement.cpus_per_actor == 1
    assert placement.reason == "auto: 100 actors need 45.0 GB, 14.0 GB may be used"


def test_auto_goes_by_what_preflight_foresees() -> None:
    """4 actors would do by the size of an ordinary one; not where each is to hold 3 GB of tensors."""
    assert decide(FleetConfig(), 4, WORKSTATION).per_device
    placement = decide(FleetConfig(), 4, WORKSTATION, Need(alone=3 * 10**9, pooled=5 * 10**9, fixed=4 * 10**9))
    assert not placement.per_device and placement.reason == "auto: 4 actors need 16.0 GB, 14.0 GB may be used"
    assert placement.memory_per_actor == 5 * 10**9


def test_actors_ask_for_their_memory_and_never_for_more_than_there_is() -> None:
    need = Need(alone=10**9, pooled=15 * 10**9)
    assert decide(FleetConfig(placement="per_device"), 4, WORKSTATION, need).memory_per_actor == 10**9
    pooled = decide(FleetConfig(placement="pooled"), 4, WORKSTATION, need)
    assert pooled.num_actors == 2 and pooled.memory_per_actor == 10 * 10**9


def test_a_cluster_that_grows_by_processors_alone_has_no_room_for_more() -> None:
    placement = decide(FleetConfig(placement="pooled"), 40, WORKSTATION, Need(pooled=8 * 10**9))
    assert room(placement, 40, Resources(cpus=8, gpus=0, memory_bytes=20 * 10**9)) == 2
    assert room(placement, 40, Resources(cpus=8, gpus=0, memory_bytes=80 * 10**9)) == 8


def test_auto_pools_when_actors_would_start_too_slowly() -> None:
    placement = decide(FleetConfig(auto_startup_s=20), 20, WORKSTATION)
    assert not placement.per_device and placement.reason.startswith("auto: 20 actors would take 27 s to start")
    assert decide(FleetConfig(auto_startup_s=30), 20, WORKSTATION).per_device


def test_auto_pools_when_the_configured_gpu_share_does_not_fit() -> None:
    assert decide(FleetConfig(gpus_per_actor=0.05), 100, CLUSTER).per_device
    placement = decide(FleetConfig(gpus_per_actor=0.5), 100, CLUSTER)
    assert not placement.per_device and placement.num_actors == 8 and "100 actors need 50 GPUs" in placement.reason


def test_a_pool_has_one_actor_for_each_gpu_or_cpu_but_no_more_than_devices() -> None:
    assert decide(FleetConfig(placement="pooled"), 100, CLUSTER).num_actors == 8
    assert decide(FleetConfig(placement="pooled"), 5, CLUSTER).num_actors == 5
    assert decide(FleetConfig(placement="pooled"), 1, WORKSTATION).num_actors == 1


def test_actors_of_several_gpus_are_as_many_as_there_are_gpus_for() -> None:
    placement = decide(FleetConfig(placement="pooled", gpus_per_actor=2), 100, CLUSTER)
    assert (placement.num_actors, placement.gpus_per_actor) == (4, 2)
    assert room(placement, 100, CLUSTER) == 4
    with pytest.raises(FleetError, match=r"fleet.gpus_per_actor: 1 actors x 16 need 16, the cluster has 8"):
        decide(FleetConfig(placement="pooled", gpus_per_actor=16), 100, CLUSTER)


CLASSES = [
    {"share": 0.25, "num_actors": 2, "gpus_per_actor": 0.5},
    {"share": 0.75, "num_actors": 3, "cpus_per_actor": 2, "resources": {"big": 1}, "labels": {"zone": "a"}},
]


def test_classes_of_actors_host_their_shares_of_the_devices() -> None:
    config = FleetConfig.model_validate({"placement": "pooled", "classes": CLASSES})
    placement = decide(config, 10, CLUSTER, Need(pooled=10**9))
    assert placement.num_actors == 5 and placement.reason == "as configured, in 2 classes"
    assert placement.device == "cpu and cuda"
    assert [placement.class_of_actor(i) for i in range(5)] == [0, 0, 1, 1, 1]
    assert [placement.class_of_device(device, 10) for device in range(10)] == [0, 0] + [1] * 8
    assert placement.options(1) == {
        "num_cpus": 1.0, "num_gpus": 0.5, "resources": {}, "memory": 10**9, "scheduling_strategy": "SPREAD",
    }  # fmt: skip
    assert placement.options(2) == {
        "num_cpus": 2.0, "num_gpus": 0.0, "resources": {"big": 1}, "memory": 10**9, "label_selector": {"zone": "a"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"placement": "auto"}, "set placement: pooled"),
        ({"num_actors": 3}, "num_actors has no effect together with classes"),
        ({"classes": CLASSES[:1]}, "their shares of the devices add up to 0.25; make it 1"),
    ],
)
def test_classes_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FleetConfig.model_validate({"placement": "pooled", "classes": CLASSES} | changes)


def test_classes_that_need_more_than_there_is() -> None:
    config = FleetConfig.model_validate({"placement": "pooled", "classes": CLASSES})
    with pytest.raises(FleetError, match=r"fleet.classes: their actors need 8 CPU, the cluster has 2"):
        decide(config, 10, WORKSTATION)


def test_shares_never_add_up_to_more_than_there_is() -> None:
    for num_devices in (3, 7, 33, 1000):
        placement = decide(FleetConfig(placement="per_device"), num_devices, WORKSTATION)
        assert placement.cpus_per_actor * num_devices <= WORKSTATION.cpus


def test_a_placement_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(FleetError, match=r"fleet.gpus_per_actor: 4 actors x 1 need 4, the cluster has 0"):
        decide(FleetConfig(placement="pooled", num_actors=4, gpus_per_actor=1), 10, WORKSTATION)


def test_lanes_need_actors_that_host_several_devices() -> None:
    placement = decide(FleetConfig(lanes=4), 100, CLUSTER)
    assert not placement.per_device and placement.reason == "auto: 4 lanes need actors that host several devices"
    with pytest.raises(ValidationError, match=r"lanes 4 needs actors .* set lanes=1, or placement=pooled"):
        FleetConfig(placement="per_device", lanes=4)


@pytest.mark.parametrize("changes", [{}, {"placement": "per_device"}, {"placement": "pooled", "num_actors": 2}])
def test_placement_follows_the_device_type(changes: dict[str, Any]) -> None:
    """cpu is placed like gpus_per_actor: 0, and cuda like auto on a cluster with GPUs."""
    cpu, none = (FleetConfig.model_validate(changes | more) for more in ({"device": "cpu"}, {"gpus_per_actor": 0}))
    assert decide(cpu, 10, CLUSTER) == decide(none, 10, CLUSTER)
    cuda = FleetConfig.model_validate(changes | {"device": "cuda"})
    assert decide(cuda, 10, CLUSTER) == decide(FleetConfig.model_validate(changes), 10, CLUSTER)
    with pytest.raises(FleetError, match=r"^fleet.device: cuda, but this machine has no GPU; set it to auto or cpu"):
        decide(cuda, 10, PROCESSORS)


@pytest.mark.parametrize(
    ("fleet", "says"),
    [
        ({"device": "cpu", "gpus_per_actor": 1}, "device: cpu uses no GPU, but gpus_per_actor is 1; set gpus_per_act"),
        ({"device": "cuda", "gpus_per_actor": 0}, "device: cuda .* gpus_per_actor is 0; .* or leave it out, or device"),
        (
            {"device": "cpu", "placement": "pooled", "classes": CLASSES},
            "but gpus_per_actor of a class is 0.5; set gpus_per_actor of a class to 0",
        ),
        (
            {"device": "cuda", "placement": "pooled", "classes": CLASSES},
            "but gpus_per_actor of a class is 0; set .* to more than 0, or device to auto",
        ),
        ({"device": "cuda", "kind": "local", "gpus_per_actor": 0}, "device: cuda computes on GPUs only"),
    ],
)
def test_device_types_that_contradict_gpus_per_actor_are_rejected(fleet: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FleetConfig.model_validate(fleet)
    FleetConfig.model_validate(fleet | {"device": "auto"})  # the remedy
