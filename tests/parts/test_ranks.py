"""Devices that differ in rank, and the aggregators made for them (E22)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BERT, classes, shard_of
from pydantic import ValidationError
from torch import Tensor

from fibec_ray.config.load import check
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.low_rank import MOVED, A, B, blank, cut, pad, pairs
from fibec_ray.method import Method
from fibec_ray.models.backbone import prepare as prepare_base
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.over_factors import FlexLora, Flora, HetLora
from fibec_ray.parts.objective.rank_pruning import RankPruning
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.moving_lora import MovingLora
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors, add, digest, drop, num_bytes, subtract
from fibec_ray.types import DeviceUpdate

BERT = Backbone(init="random", config=TINY_BERT, tokenizer="minilm")


def model(peft: Lora) -> TorchModel:
    return TorchModel(ModelSpec(BERT, peft, classes(2), 0), prepare_base(BERT, 0, 2, cache_dir()))


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(like: Tensors, seed: int) -> Tensors:
    return {name: 0.1 * torch.randn(value.shape, generator=rng(seed)) for name, value in like.items()}


@torch.no_grad()
def scores(of: TorchModel) -> Tensor:
    return of.forward(shard_of([[5, 6, 7], [8, 9]]).batch(torch.arange(2))).scores


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("scale_by", ["global", "device"])
def test_a_device_of_rank_r_computes_as_lora_of_rank_r(rslora: bool, scale_by: Any) -> None:
    """With scale alpha / r_k, or with the global adapter's alpha / r."""
    wide = Lora(r=8, alpha=16, ranks=(2, 8), scale_by=scale_by, use_rslora=rslora)
    alpha = 16.0 if scale_by == "device" else 16 * (2 / 8) ** (0.5 if rslora else 1)
    narrow = model(Lora(r=2, alpha=alpha, use_rslora=rslora))
    device = model(wide)
    values = drawn(narrow.read(), 1)
    narrow.load(values)
    device.set_rank(2)
    device.load(pad(values, device.read()))
    torch.testing.assert_close(scores(device), scores(narrow))
    device.set_rank(None)
    assert (scores(device) - scores(narrow)).abs().max() > 1e-4 or scale_by == "global"


@pytest.mark.parametrize("scale_by", ["global", "device"])
def test_what_a_device_receives_means_what_the_server_has_up_to_its_rank(scale_by: Any) -> None:
    peft = Lora(r=8, ranks=(2, 8), scale_by=scale_by)
    device = model(peft)
    server = drawn(device.read(), 2)
    device.load(blank(server, 2))
    expected = scores(device)
    device.set_rank(2)
    ranks = peft.device_ranks
    device.load(ranks.fit(server, 2))
    torch.testing.assert_close(scores(device), expected)
    back = ranks.unfit(ranks.fit(server, 2), 2)
    assert all(value.shape == cut(server, 2)[name].shape for name, value in back.items())
    for name, value in cut(server, 2).items():
        torch.testing.assert_close(back[name], value)


def test_ranks_belong_to_devices_and_all_classes_occur() -> None:
    ranks = Lora(r=8, ranks=(2, 4, 8)).device_ranks
    found = [ranks.of(device, seed=5) for device in range(60)]
    assert set(found) == {2, 4, 8} and found == [ranks.of(device, seed=5) for device in range(60)]
    assert found != [ranks.of(device, seed=6) for device in range(60)]
    assert Lora().device_ranks.of(3, 0) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": [4, 16]}, "ranks has 16, above the global adapter's r 8"),
        ({"scale_by": "device"}, "only with ranks"),
        ({"ranks": [4], "use_dora": True}, "use_dora"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Lora(**settings)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"peft": {"kind": "lora", "ranks": [4]}, "aggregator": "median"},
            "'median' needs every device to send all tensors in one shape",
        ),
        ({"peft": {"kind": "lora", "take_turns": True}, "objective": "scaffold"}, "trains tensors in turn"),
        ({"aggregator": "flora"}, "needs peft 'moving_lora', found 'lora'"),
        ({"peft": "moving_lora"}, "needs aggregator 'flora' or 'fedex_lora' or 'fedmomentum', found 'mean'"),
        (
            {"peft": {"kind": "moving_lora", "take_turns": True}, "aggregator": "flora"},
            "take_turns makes the mean of the factors exact",
        ),
        ({"peft": {"kind": "lora", "ranks": [4]}, "pooled": True}, "peft.ranks of device classes have no effect"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Method.model_validate(parts)


# --- aggregators

GLOBAL_RANK = 4
SHARED = {f"x{A}": torch.randn(GLOBAL_RANK, 6, generator=rng(0)), f"x{B}": torch.zeros(5, GLOBAL_RANK)} | {
    "head.weight": torch.zeros(2, 3)
}


def trained(ranks: list[int], samples: list[int]) -> tuple[list[DeviceUpdate], list[Tensors]]:
    """The updates as the server hands them on, and the values they lead to."""
    updates, values = [], []
    for k, (rank, num) in enumerate(zip(ranks, samples, strict=True)):
        received = blank(SHARED, rank)
        new = blank(drawn(SHARED, 10 + k), rank)
        updates.append(DeviceUpdate(k, num, 1, subtract(new, received), rank=rank))
        values.append(new)
    return updates, values


def combined(aggregator: Aggregator, updates: list[DeviceUpdate], shared: Tensors = SHARED) -> Tensors:
    step, state = aggregator.combine(aggregator.start(shared, 9), updates)
    new = shared | add(step, shared)
    for name, value in new.items():
        if f"shared/{name}" in state:
            assert torch.equal(state[f"shared/{name}"], value), "the next round starts from what the server holds"
    return new


def mean_product(values: list[Tensors], samples: list[int]) -> Tensor:
    products = [
        n / sum(samples) * v[f"x{B}"].double() @ v[f"x{A}"].double() for v, n in zip(values, samples, strict=True)
    ]
    return torch.stack(products).sum(0)


def test_flora_merges_the_mean_of_the_products_and_starts_lora_afresh() -> None:
    """E22: unequal ranks and sizes."""
    updates, values = trained([1, 2, 4], [3, 1, 4])
    moved = torch.randn(5, 6, generator=rng(3))
    new = combined(Flora(), updates, SHARED | {f"x{MOVED}": moved})
    torch.testing.assert_close(new[f"x{MOVED}"] - moved, mean_product(values, [3, 1, 4]).float(), atol=1e-6, rtol=1e-5)
    assert torch.equal(new[f"x{A}"], SHARED[f"x{A}"]) and torch.equal(new[f"x{B}"], SHARED[f"x{B}"])
    head = sum(n / 8 * v["head.weight"] for n, v in zip([3, 1, 4], values, strict=True))
    torch.testing.assert_close(new["head.weight"], head)


def test_flexlora_with_room_for_all_ranks_has_the_mean_of_the_products() -> None:
    """E22."""
    updates, values = trained([1, 2], [3, 1])
    new = combined(FlexLora(), updates)
    torch.testing.assert_close(new[f"x{B}"] @ new[f"x{A}"], mean_product(values, [3, 1]).float(), atol=1e-6, rtol=1e-5)


def test_flexlora_loses_the_singular_values_that_it_cuts_off() -> None:
    """E22."""
    updates, values = trained([4, 4, 2], [3, 1, 2])
    new, wanted = combined(FlexLora(), updates), mean_product(values, [3, 1, 2])
    lost = torch.linalg.svdvals(wanted)[GLOBAL_RANK:].norm()
    found = (new[f"x{B}"].double() @ new[f"x{A}"].double() - wanted).norm()
    assert lost > 1e-3
    torch.testing.assert_close(found, lost, rtol=1e-4, atol=1e-6)


def test_flexlora_leaves_ranks_that_nobody_used_able_to_learn() -> None:
    updates, _ = trained([1], [1])
    new = combined(FlexLora(), updates)
    assert torch.equal(new[f"x{A}"][1:], SHARED[f"x{A}"][1:]) and not new[f"x{B}"][:, 1:].any()


@pytest.mark.parametrize("aggregator", [FlexLora(), HetLora()])
def test_a_factor_that_rests_counts_as_received(aggregator: Aggregator) -> None:
    """An update without A means that A did not move."""
    updates, _ = trained([2, 4], [3, 1])
    still = [replace(update, delta=drop(update.delta, [f"x{A}"])) for update in updates]
    moved = [replace(u, delta=u.delta | {f"x{A}": torch.zeros_like(u.delta[f"x{A}"])}) for u in updates]
    assert digest(combined(aggregator, still)) == digest(combined(aggregator, moved))


def test_hetlora_weights_by_the_norm_of_the_product() -> None:
    updates, values = trained([1, 4], [100, 1])
    norms = [float((v[f"x{B}"] @ v[f"x{A}"]).norm()) for v in values]
    new = combined(HetLora(), updates)
    for name in (f"x{A}", f"x{B}"):
        expected = sum(norm / sum(norms) * v[name] for norm, v in zip(norms, values, strict=True))
        torch.testing.assert_close(new[name], expected)


def test_hetlora_of_equal_ranks_norms_and_sizes_is_fedavg() -> None:
    """E22. Signs of B turned: other values, the same norms."""
    updates, values = trained([4], [2])
    other = values[0] | {f"x{B}": -values[0][f"x{B}"]}
    updates.append(DeviceUpdate(1, 2, 1, subtract(other, SHARED), rank=4))
    got, fedavg = combined(HetLora(), updates), SHARED | add(Mean().combine({}, updates)[0], SHARED)
    for name, value in fedavg.items():
        torch.testing.assert_close(got[name], value)


def test_devices_that_learnt_nothing_count_alike() -> None:
    still = [DeviceUpdate(k, 1, 1, subtract(SHARED, SHARED), rank=4) for k in range(3)]
    new = combined(HetLora(), still)
    assert all(torch.allclose(new[name], value) for name, value in SHARED.items())


# --- pruning


def test_the_tail_is_what_lies_behind_the_share_that_is_kept() -> None:
    """gamma .5 of 4 ranks: columns 2 and 3 of B, rows 2 and 3 of A, by hand."""
    factors = {f"x{A}": torch.eye(4, 6), f"x{B}": torch.full((5, 4), 0.1)}
    expected = 0.01 * (10 * 0.01) ** 0.5 * 2**0.5
    penalty = RankPruning(gamma=0.5, strength=0.01).penalty(factors, factors)
    torch.testing.assert_close(penalty, torch.tensor(expected))
    assert float(RankPruning(gamma=1).penalty(factors, factors) or 0) == 0


@pytest.mark.parametrize(("factor", "rank"), [(0.5, 2), (1.5, 4)])
def test_a_device_gives_up_its_tail_if_that_shrank(factor: float, rank: int) -> None:
    rule = RankPruning(gamma=0.5, strength=0)
    before = {f"x{A}": torch.ones(4, 6), f"x{B}": torch.ones(5, 4)}
    after = before | {f"x{B}": before[f"x{B}"] * factor}
    memory, extras = rule.finish(rule.remember({}, after), {}, subtract(after, before), 1, 0.1)
    assert memory == {"rank": torch.tensor(rank)} and extras == {} and rule.lowers_rank


def test_no_device_goes_below_the_least_rank() -> None:
    rule = RankPruning(gamma=0.1, least_rank=3)
    assert rule._kept(8) == 3 and rule._kept(2) == 2 and RankPruning(gamma=0.99)._kept(8) == 7


def test_pruned_ranks_are_neither_sent_nor_received_again(tiny_settings: Any, tmp_path: Path) -> None:
    """A strong pull on the tail: it shrinks to nothing in the first round after it has grown."""
    objective = {"kind": "rank_pruning", "gamma": 0.5, "strength": 10.0}
    method = {"name": "m", "peft": {"kind": "lora", "r": 4, "ranks": [4]}, "aggregator": "hetlora"}
    worker_spec, _ = spec_of(
        method | {"objective": objective}, tiny_settings, tmp_path, num_devices=1, cohort_size=1, rounds=6
    )
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    reports = [fleet.run_round(plan_round(worker_spec.job, round_)).reports[0] for round_ in range(6)]
    values, sizes = fleet.adapter(), [report.bytes_up_delta for report in reports]
    assert sizes[0] == num_bytes(values) and sizes[-1] < sizes[0]
    assert set(sizes) <= {num_bytes(cut(values, rank)) for rank in (1, 2, 4)}
    assert all(later.bytes_down == before.bytes_up_delta for before, later in pairwise(reports))


# --- the engine


def spec_of(method: dict[str, Any], tiny_settings: Any, folder: Path, **changes: Any) -> tuple[WorkerSpec, Any]:
    experiment = check(tiny_settings(method, **changes), "test")
    prepared = prepare(experiment, folder)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir()), experiment


def test_bytes_are_those_of_the_devices_own_ranks(tiny_settings: Any, tmp_path: Path) -> None:
    method = {"name": "m", "peft": {"kind": "lora", "r": 4, "ranks": [1, 4]}, "aggregator": "hetlora"}
    worker_spec, experiment = spec_of(method, tiny_settings, tmp_path, cohort_size=6)
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    result = fleet.run_round(plan_round(worker_spec.job, 0))
    values = fleet.adapter()
    peft: Lora = experiment.method.peft
    found = set()
    for report in result.reports:
        rank = peft.device_ranks.of(report.device, experiment.seed)
        assert rank is not None
        found.add(rank)
        assert report.bytes_up_delta == report.bytes_down == num_bytes(cut(values, rank))
    assert found == {1, 4}


def test_entries_behind_a_devices_rank_stay_zero_in_training(tiny_settings: Any, tmp_path: Path) -> None:
    method = {"name": "m", "peft": {"kind": "lora", "r": 4, "ranks": [2], "scale_by": "device"}}
    worker_spec, experiment = spec_of(method, tiny_settings, tmp_path, num_devices=1, cohort_size=1)
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    before = fleet.adapter()
    fleet.run_round(plan_round(worker_spec.job, 0))
    after, own = fleet.adapter(), fleet._worker.model.read()
    for x in pairs(after):
        assert not own[x + A][2:].any() and not own[x + B][:, 2:].any() and own[x + B][:, :2].any()
        assert torch.equal(after[x + A][2:], before[x + A][2:])
        assert not torch.equal(after[x + A][:2], before[x + A][:2])


def test_equal_ranks_are_plain_lora_bit_for_bit(tiny_settings: Any, tmp_path: Path) -> None:
    values = []
    for name, peft in (("plain", {"kind": "lora"}), ("ranks", {"kind": "lora", "ranks": [8, 8], "scale_by": "device"})):
        worker_spec, _ = spec_of({"name": name, "peft": peft}, tiny_settings, tmp_path / name)
        fleet = LocalFleet(worker_spec)
        fleet.setup()
        for round_ in range(2):
            fleet.run_round(plan_round(worker_spec.job, round_))
        values.append(fleet.adapter())
    assert all(torch.equal(value, values[1][name]) for name, value in values[0].items())


def test_floras_global_model_is_the_base_moved_by_what_devices_learnt(tiny_settings: Any, tmp_path: Path) -> None:
    """One device: after its round the server's model computes what the device's did, though LoRA has been reset."""
    method = {"name": "m", "peft": {"kind": "moving_lora", "r": 4, "ranks": [2], "scale_by": "device"}}
    worker_spec, _ = spec_of(method | {"aggregator": "flora"}, tiny_settings, tmp_path, num_devices=1, cohort_size=1)
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    (first,) = fleet.run_round(plan_round(worker_spec.job, 0)).reports
    worker: Any = fleet._worker.model
    theirs = scores(worker)
    values = fleet.adapter()
    assert any(name.endswith(MOVED) and bool(value.any()) for name, value in values.items())
    assert not any(value.any() for name, value in values.items() if name.endswith(B))
    server = model(MovingLora(r=4))
    with torch.no_grad():
        fleet._worker.evaluate_shared([torch.arange(2)], fleet._server.broadcast(1))
    torch.testing.assert_close(scores(worker), theirs, rtol=1e-4, atol=1e-5)
    assert set(server.server_only) == {name for name in values if name.endswith(MOVED)}
    (second,) = fleet.run_round(plan_round(worker_spec.job, 1)).reports
    moved = num_bytes({name: value for name, value in values.items() if name.endswith(MOVED)})
    assert second.bytes_down == first.bytes_down + moved, "the base has moved, and travels down; it never travels up"
    assert second.bytes_up_delta == first.bytes_up_delta < moved
