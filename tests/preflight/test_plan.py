"""The plan of a run, and the one sentence by which it is refused: pure functions of sizes and of what there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import TINY_BERT, classes, make_tiny

from fibec_ray.cli.plan_page import memory_rows
from fibec_ray.config.load import check
from fibec_ray.data.encoded import TextForm
from fibec_ray.errors import CapacityError, ModelError
from fibec_ray.fleets.placement import Resources, decide
from fibec_ray.models.backends import CONTEXT_BYTES
from fibec_ray.preflight.anatomy import anatomy
from fibec_ray.preflight.plan import Plan, make_plan
from fibec_ray.preflight.refusal import refuse
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.room import Room
from fibec_ray.preflight.samples import Samples
from fibec_ray.preflight.totals import Work, work

GB = 10**9
LLAMA_7B = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
}  # fmt: skip
ON_LLAMA = {"init": "random", "config": LLAMA_7B, "tokenizer": "minilm", "head": "causal_lm", "dtype": "bfloat16"}


def room(memory: float = 20 * GB, **changes: Any) -> Room:
    gpus, gpu_memory = changes.pop("gpus", 0.0), changes.pop("gpu_memory", None)
    resources = Resources(cpus=8.0, gpus=gpus, memory_bytes=int(memory), gpu_memory=gpu_memory)
    return replace(Room(resources, 1, 500 * GB, 500 * GB, True, False), **changes)


def plan(room: Room, method: str = "fedavg", **changes: Any) -> Plan:
    fleet = {"kind": "ray", "placement": "pooled", "num_actors": 2} | changes.pop("fleet", {})
    experiment = check(make_tiny(method, fleet=None, **changes) | {"fleet": fleet}, "test")
    words = (1, 2) if experiment.backbone.model_dump().get("head") == "causal_lm" else None
    job = experiment.job(classes(2, words))
    lengths = [np.full(12, 16) for _ in range(experiment.num_devices)]
    samples = Samples(lengths, lengths, np.concatenate(lengths))
    return make_plan(
        experiment, Rehearsal(job, anatomy(job, TextForm())), samples, room, data_bytes=10_000, config_bytes=2_000
    )


@pytest.fixture(scope="module")
def llama_7b() -> Plan:
    """Planned for 64 GB; what it needs does not depend on that."""
    return plan(room(64 * GB), backbone=ON_LLAMA)


def offered(plan: Plan, memory: float) -> Plan:
    return replace(plan, memory=replace(plan.memory, available=int(memory)))


def test_llama_7b_is_planned_at_full_size_without_its_weights(llama_7b: Plan) -> None:
    """6.74 G parameters in bfloat16; LoRA of rank 8 on query and value: 32 x 2 x 8 x (4096 + 4096) entries."""
    assert llama_7b.model.parameters == pytest.approx(6.742e9, rel=0.001)
    assert llama_7b.model.trainable == llama_7b.model.shared == 32 * 2 * 8 * (4096 + 4096)
    assert llama_7b.model.frozen_bytes == llama_7b.disk.base == pytest.approx(13.48 * GB, rel=0.001)


def test_llama_7b_fits_into_64_gb_and_not_into_8(llama_7b: Plan) -> None:
    refuse(llama_7b)
    with pytest.raises(CapacityError, match=r"^memory: preparing the base weights needs 13\.\d GB, but 8\.0 GB are av"):
        refuse(offered(llama_7b, 8 * GB))


def test_base_weights_that_are_prepared_still_have_to_fit(llama_7b: Plan) -> None:
    small = offered(llama_7b, 8 * GB)
    prepared = replace(small, memory=replace(small.memory, prepare=0))
    with pytest.raises(CapacityError, match=r"^memory: 2 actors of .*, base weights of 13\.5 GB .*; choose a smaller"):
        refuse(prepared)


ON_A_GPU = {"num_actors": 1, "gpus_per_actor": 1}


def test_the_backend_is_foreseen_and_why() -> None:
    """As an actor goes by the GPU that it finds, less CUDA's context and what the plan counts beside the base."""

    def held(gpu: float | None, gpus: float = 1, memory: float = 64 * GB, **backbone: Any) -> Any:
        there = room(memory, gpus=max(1.0, gpus), gpu_memory=gpu and int(gpu))
        fleet = ON_A_GPU | {"gpus_per_actor": gpus}
        return plan(there, backbone=ON_LLAMA | backbone, fleet=fleet).backend_choice

    assert held(24 * GB) == ("plain", "auto: the base has 13.5 GB, the GPU 23.5 GB free")
    assert held(16 * GB)[0] == "plain" and held(14 * GB)[0] == "deepspeed"
    assert held(12 * GB)[0] == "deepspeed" and held(12 * GB, memory=16 * GB)[0] == "stream"
    assert held(24 * GB, gpus=0.5)[0] == "deepspeed", "another actor has the other half"
    assert held(12 * GB, gpus=2)[0] == "spread"
    assert held(None)[1] == "each actor decides by its GPU, whose memory is not known here"
    assert held(24 * GB, backend="stream") == ("stream", "as configured")
    with pytest.raises(ModelError, match="deepspeed needs .* GB of host memory for a base"):
        held(24 * GB, memory=16 * GB, backend="deepspeed")


@pytest.mark.parametrize("backend", ["stream", "deepspeed"])
def test_a_base_that_is_fetched_leaves_embeddings_and_two_weights_on_the_gpu(backend: str) -> None:
    """LLaMA-7B's input embeddings, and the largest matrix twice: its head is as large as they are, 262 MB."""
    actor = plan(
        room(64 * GB, gpus=1.0, gpu_memory=8 * GB), backbone=ON_LLAMA | {"backend": backend}, fleet=ON_A_GPU
    ).memory.actor
    assert actor.gpu - actor.beside - CONTEXT_BYTES == pytest.approx(3 * 2 * 32000 * 4096, rel=0.03)


def test_deepspeed_on_cpus_has_a_copy_of_the_base_in_each_process(llama_7b: Plan) -> None:
    copied = plan(room(64 * GB), backbone=ON_LLAMA | {"backend": "deepspeed"})
    private = copied.memory.actor.private - llama_7b.memory.actor.private
    assert private == pytest.approx(1.3 * 13.48 * GB, rel=0.01)
    assert copied.memory.base_per_node == 0 and llama_7b.memory.base_per_node == pytest.approx(13.48 * GB, rel=0.001)


def test_samples_of_one_length_leave_a_heap_without_holes() -> None:
    """A LLaMA of 32 blocks and H = 1024, 16 samples of 24 tokens: 717 and 644 MB of tensors in two kinds of passes. The
    process had 1.38 GB of its own."""
    alike, mixed = [np.full(12, 16)] * 2, [np.array([16, 3])] * 2
    assert Samples(alike, alike, alike[0]).are_alike and not Samples(alike, alike, mixed[0]).are_alike
    assert not Samples(mixed, mixed, mixed[0]).are_alike
    ones = [np.ones(3, np.int64)]
    assert not Samples(ones, ones, ones[0]).are_alike, "no text"


def test_two_actors_of_a_node_share_the_base(llama_7b: Plan) -> None:
    alone = plan(room(64 * GB), backbone=ON_LLAMA, fleet={"num_actors": 1})
    more = llama_7b.memory.total - alone.memory.total
    assert llama_7b.seats.placement.num_actors == 2
    # One process more; each lane group is smaller where there are two to share them.
    assert more < 2 * alone.memory.actor.private < 13 * GB


def test_actors_that_are_too_many_are_to_be_fewer() -> None:
    crowd = plan(room(2.5 * GB), fleet={"num_actors": 6})
    with pytest.raises(CapacityError, match=r"^memory: 6 actors of .* need .* available; lower fleet\.num_actors$"):
        refuse(crowd)
    alone = plan(room(2.5 * GB), num_devices=6, fleet={"placement": "per_device", "num_actors": None})
    with pytest.raises(CapacityError, match=r"set fleet\.placement=pooled$"):
        refuse(alone)


def test_the_placement_is_the_one_that_the_fleet_will_take() -> None:
    for memory in (2 * GB, 20 * GB):
        found = plan(room(memory), fleet={"placement": "auto", "num_actors": None})
        experiment = check(make_tiny(fleet=None) | {"fleet": {}}, "test")
        assert found.seats.placement == decide(experiment.fleet, 6, room(memory).resources, found.memory.need)


def test_a_placement_that_cannot_be_had_is_something_that_the_user_can_fix() -> None:
    with pytest.raises(CapacityError, match=r"fleet\.cpus_per_actor: 2 actors x 6 need 12, the cluster has 8"):
        plan(room(), fleet={"cpus_per_actor": 6})


def test_a_disk_that_is_too_small_is_named() -> None:
    with pytest.raises(CapacityError, match="^disk: the run needs .* choose another --out"):
        refuse(plan(room(run_disk=1000)))
    with pytest.raises(CapacityError, match="^disk: the prepared base weights .* FIBEC_RAY_CACHE"):
        refuse(plan(room(cache_disk=1000, same_disk=False)))
    refuse(plan(room(cache_disk=1000, same_disk=False, base_is_there=True)))


def test_on_a_gpu_each_actor_has_base_weights_of_its_own() -> None:
    """Four actors share two GPUs: each GPU holds two. With backend auto weights that do not fit are kept elsewhere."""
    found, auto = (
        plan(
            room(gpus=2.0, gpu_memory=1 * GB),
            fleet={"num_actors": 4},
            backbone={"init": "random", "config": TINY_BERT, "tokenizer": "minilm", "backend": backend},
        )
        for backend in ("plain", "auto")
    )
    actor = found.memory.actor
    assert actor.gpu == CONTEXT_BYTES + found.model.frozen_bytes + actor.beside
    assert auto.backend_choice is not None and auto.backend_choice.backend == "deepspeed"
    assert auto.memory.actor.beside == actor.beside
    assert found.memory.gpu_needed == 2 * found.memory.actor.gpu > 2 * found.model.frozen_bytes
    assert found.memory.base_per_node == 0
    with pytest.raises(CapacityError, match=r"^GPU memory: .* 1\.0 GB are free; lower fleet\.num_actors$"):
        refuse(found)


SMALL_BASE = {
    "init": "random", "config": {**TINY_BERT, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6},
    "tokenizer": "minilm",
}  # fmt: skip
"""90 MB in float32."""
AUTO = {"placement": "auto", "num_actors": None}


def on_one_gpu(gpu_memory: float | None, fleet: dict[str, Any], num_devices: int = 100, **changes: Any) -> Plan:
    """On a made-up machine with 16 processors."""
    there = room(125 * GB, gpus=1.0, gpu_memory=gpu_memory and int(gpu_memory))
    sizes = {"num_devices": num_devices, "cohort_size": num_devices // 5, "backbone": SMALL_BASE}
    return plan(there, fleet=fleet, **sizes | changes)


@pytest.mark.parametrize("gpu_memory", [139 * GB, 8 * GB, 2 * GB, None])
def test_many_devices_on_one_gpu_share_an_actor_and_its_base(gpu_memory: float | None) -> None:
    found = on_one_gpu(gpu_memory, AUTO)
    assert found.seats.placement.num_actors == 1 and found.memory.sharing == 1
    assert found.seats.lanes > 1
    assert found.backend_choice is not None and found.backend_choice.backend == (
        "auto" if gpu_memory is None else "plain"
    )
    refuse(found)


def test_lanes_that_are_not_set_are_no_more_than_a_gpu_has_room_for() -> None:
    most, some, one = (on_one_gpu(size, AUTO) for size in (139 * GB, 0.8 * GB, 0.66 * GB))
    assert [found.seats.lanes for found in (most, some, one)] == [20, 14, 1]
    assert [found.memory.need.lanes for found in (most, some)] == [20, 14]
    assert [found.memory.most_lanes for found in (some, one)] == [14, 1] and (most.memory.most_lanes or 0) > 1000
    assert some.memory.actor.gpu <= 0.8 * GB and on_one_gpu(None, AUTO).memory.most_lanes is None
    assert (on_one_gpu(139 * GB, AUTO | {"lanes": 4}).memory.most_lanes or 0) > 1000
    with pytest.raises(CapacityError, match=r"^GPU memory: a process needs .* lower fleet\.lanes, or local\.batch_siz"):
        refuse(on_one_gpu(0.8 * GB, {**AUTO, "lanes": 20}, backbone=SMALL_BASE | {"backend": "plain"}))


def test_an_actor_for_each_of_many_devices_on_one_gpu_is_refused_with_what_would_do() -> None:
    """100 CUDA contexts alone take 54.5 GB."""
    each = {"placement": "per_device", "num_actors": None}
    crowded = on_one_gpu(48 * GB, each)
    assert crowded.memory.sharing == 100 and crowded.memory.gpu_needed > 54 * GB
    with pytest.raises(
        CapacityError, match=r"^GPU memory: 100 actors on a GPU need .* GB in all .*set fleet\.placement="
    ):
        refuse(crowded)
    refuse(on_one_gpu(139 * GB, each, num_devices=10))
    refuse(on_one_gpu(48 * GB, AUTO))


def test_a_pooled_actor_with_a_part_of_a_gpu_has_it_to_itself() -> None:
    assert on_one_gpu(8 * GB, {"num_actors": 1, "gpus_per_actor": 0.25}).memory.sharing == 1


def test_a_fraction_of_a_gpu_is_a_hard_cap() -> None:
    """torch limits an actor to its share, even if nothing else uses the GPU."""
    small, whole = {"num_actors": 1, "gpus_per_actor": 0.25}, {"num_actors": 1, "gpus_per_actor": 1}
    refuse(on_one_gpu(8 * GB, small))
    capped = on_one_gpu(2 * GB, small, backbone=SMALL_BASE | {"backend": "plain"})
    assert capped.memory.gpu_each == GB // 2 and capped.memory.gpu_needed < 2 * GB
    with pytest.raises(CapacityError, match=r"^GPU memory: .* but its share of the GPU is 0\.5 GB; raise gpus_per_act"):
        refuse(capped)
    refuse(on_one_gpu(2 * GB, whole, backbone=SMALL_BASE | {"backend": "plain"}))


def test_a_bfloat16_base_is_planned_with_the_attention_of_the_device_type() -> None:
    """On a CPU attention computes in float32, which takes more memory."""
    job = check(make_tiny(backbone=SMALL_BASE | {"dtype": "bfloat16"}), "test").job(classes(2))
    made = anatomy(job, TextForm())
    on_gpu = made.on_gpu
    assert on_gpu.step_bytes(8, 16) < made.step_bytes(8, 16) and on_gpu.on_gpu is on_gpu is made.on_gpu
    assert on_gpu.base_bytes == made.base_bytes and on_gpu.forward_flops(8, 16) == made.forward_flops(8, 16)


def test_the_page_shows_the_gpu_memory_of_a_process_and_the_lanes_that_fit() -> None:
    page = written(on_one_gpu(24 * GB, AUTO))
    assert "CUDA context 545.0 MB, base " in page and "with 20 lanes" in page
    assert "1 process; 24.0 GB free; room for about " in page
    assert "GPU memory" not in written(on_one_gpu(24 * GB, AUTO | {"device": "cpu"}))


def written(found: Plan) -> str:
    rows = memory_rows(found)
    return "\n".join(" ".join(row) for row in rows)


def test_this_process_computes_on_a_gpu_too() -> None:
    found = on_one_gpu(24 * GB, {"kind": "local", "placement": "auto", "num_actors": None})
    assert found.memory.actor.gpu > found.model.frozen_bytes and found.backend_choice is not None
    assert found.backend_choice.backend == "plain"


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_gpu_is_planned_for_unless_the_settings_say_cpu(kind: str) -> None:
    fleet = AUTO | {"kind": kind}
    auto, cuda, cpu = (on_one_gpu(24 * GB, fleet | {"device": device}) for device in ("auto", "cuda", "cpu"))
    assert auto == cuda and auto.memory.sharing == 1 and auto.seats.placement.device == "cuda"
    assert cpu.memory.actor.gpu == cpu.memory.sharing == 0 and cpu.seats.placement.device == "cpu"
    if kind == "ray":
        with pytest.raises(CapacityError, match=r"^fleet\.device: cuda, but this machine has no GPU"):
            plan(room(), fleet=fleet | {"device": "cuda"})


def test_an_object_store_that_takes_the_memory_is_what_to_make_smaller() -> None:
    crowd = plan(room(0.4 * GB, object_store=4 * GB), fleet={"num_actors": 1})
    with pytest.raises(CapacityError, match=r"; lower fleet\.object_store_mb, which reserves 4\.0 GB for Ray's object"):
        refuse(crowd)
    with pytest.raises(CapacityError, match=r"^memory: preparing .*; lower fleet\.object_store_mb, which reserves 4"):
        refuse(replace(crowd, memory=replace(crowd.memory, prepare=2 * GB)))
    with pytest.raises(CapacityError, match="lower fleet.num_actors$"):
        refuse(plan(room(2.5 * GB, object_store=GB // 2), fleet={"num_actors": 6}))


def test_blocks_that_are_computed_again_take_time_and_are_not_logged() -> None:
    """A step of LoRA is a forward and a backward pass of equal length, and with checkpointing another forward one."""
    once, again = (
        worked({"init": "random", "config": TINY_BERT, "tokenizer": "minilm", "checkpointing": checkpointing})
        for checkpointing in (False, True)
    )
    assert again.rounds_flops == once.rounds_flops
    assert again.round_s == pytest.approx(1.5 * once.round_s, rel=0.01)


def worked(backbone: dict[str, Any]) -> Work:
    """By FedAvg, on a machine so slow that operations are all that counts."""
    experiment = check(make_tiny("fedavg", backbone=backbone), "test")
    job, lengths = experiment.job(classes(2)), [np.full(12, 16) for _ in range(experiment.num_devices)]
    samples, made = Samples(lengths, lengths, np.concatenate(lengths)), anatomy(job, TextForm())
    return work(experiment, Rehearsal(job, made), samples, plan(room(), backbone=backbone).seats, rate=1e6)


def test_lanes_multiply_what_a_pass_holds() -> None:
    one, two = (plan(room(), fleet={"lanes": lanes}).memory.actor for lanes in (1, 2))
    assert one.private < two.private


def test_shared_and_personal_entries_add_up() -> None:
    model = plan(room(), "fibecfed").model
    assert model.shared + model.personal == model.trainable and model.personal > 0
