"""What travels and what stays, over whole rounds on the in-process fleet."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from device_states import stored

from fibec_ray.config.load import check
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.errors import RunDirError
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.local_update import Steps, local_update
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import AcceptedStates, StateStore
from fibec_ray.model_types import Work
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.mask.base import may_move
from fibec_ray.parts.sharing.layer_scores import Noise, layer_sensitivity
from fibec_ray.roundlog.reader import read_devices, read_table
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.tensors import digest, drop, num_bytes, select
from fibec_ray.types import SETUP_ROUND, Broadcast, DeviceState, RoundPlan

MASKED_LM = {"head": "masked_lm"}
"""A verbaliser: no head, so that a method may share nothing at all."""


def spec_of(settings: dict[str, Any], folder: Path) -> WorkerSpec:
    experiment = check(settings, "test")
    folder.mkdir(exist_ok=True)
    prepared = prepare(experiment, folder)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())


def state_of(worker_spec: WorkerSpec, device: int) -> DeviceState:
    return stored(StateStore(worker_spec.state_dir), device, before=1000)


def test_personal_layers_stay_on_their_device(tiny_settings: Any, tmp_path: Path) -> None:
    """E12: the server's copy of them never changes, nor does that of a device that is not drawn."""
    worker_spec = spec_of(tiny_settings("fibecfed"), tmp_path / "run")
    fleet = LocalFleet(worker_spec)
    opened = fleet.setup()
    initial = fleet.adapter()
    shared = opened.shared_names
    assert 0 < len(shared) < len(initial)
    before = {device: digest(state_of(worker_spec, device).flat()) for device in range(6)}
    for round_ in range(2):
        plan = plan_round(worker_spec.job, round_)
        fleet.run_round(plan)
        after = {device: digest(state_of(worker_spec, device).flat()) for device in range(6)}
        changed = {device for device in range(6) if after[device] != before[device]}
        assert changed == set(plan.cohort)
        before = after
    assert digest(drop(fleet.adapter(), shared)) == digest(drop(initial, shared))
    assert digest(select(fleet.adapter(), shared)) != digest(select(initial, shared))


def test_logged_bytes_are_those_of_the_payload(tiny_settings: Any, tmp_path: Path) -> None:
    """E12: 4 bytes for each shared number, each way."""
    worker_spec = spec_of(tiny_settings("fibecfed"), tmp_path / "run")
    fleet = LocalFleet(worker_spec)
    opened = fleet.setup()
    shared = select(fleet.adapter(), opened.shared_names)
    worker = worker_spec.worker()
    plan = RoundPlan(0, 3, (2,), 0.01)
    update, report = worker.train(plan, 2, Broadcast(0, shared))
    numel = sum(value.numel() for value in shared.values())
    assert report.bytes_up == report.bytes_down == num_bytes(update.delta) == num_bytes(shared) == 4 * numel
    assert update.delta.keys() == opened.shared_names
    layer_scores_bytes = 4 * worker.layout.num_layers
    assert all(r.bytes_up == layer_scores_bytes and r.bytes_down == num_bytes(worker.initial) for r in opened.reports)


def test_masked_entries_of_personal_layers_are_bit_identical_after_a_round(tiny_settings: Any, tmp_path: Path) -> None:
    """E12, over a whole device-round with AdamW and weight decay."""
    worker_spec = spec_of(tiny_settings("fibecfed", local={"weight_decay": 0.1}), tmp_path / "run")
    fleet = LocalFleet(worker_spec)
    opened = fleet.setup()
    initial = fleet.adapter()
    shared = select(initial, opened.shared_names)
    worker_spec.worker().train(RoundPlan(0, 3, (0,), 0.01), 0, Broadcast(0, shared))
    state = state_of(worker_spec, 0)
    keep = may_move(state.memory["mask"], list(state.personal))
    assert keep.keys() == state.personal.keys() == set(initial) - opened.shared_names
    for name, mask in keep.items():
        assert torch.equal(state.personal[name][~mask], initial[name][~mask])
    moved = [name for name, mask in keep.items() if not torch.equal(state.personal[name][mask], initial[name][mask])]
    assert moved and all("lora_B" in name for name in moved)  # at the start A carries no Fisher information


def test_with_no_global_layer_devices_train_alone(tiny_settings: Any, tmp_path: Path) -> None:
    """E13: nothing is sent, and each device goes where it would go without a server."""
    alone = {"name": "alone", "sharing": {"kind": "gal", "fraction": 0.0}}
    settings = tiny_settings(alone, backbone=MASKED_LM, cohort_size=6)
    worker_spec = spec_of(settings, tmp_path / "run")
    fleet = LocalFleet(worker_spec)
    assert fleet.setup().shared_names == frozenset()
    for round_ in range(2):
        result = fleet.run_round(plan_round(worker_spec.job, round_))
        assert all(report.bytes_up == report.bytes_down == 0 for report in result.reports)
    federated = [digest(state_of(worker_spec, device).personal) for device in range(6)]

    other = spec_of(settings, tmp_path / "alone")
    worker = other.worker()
    for device in (4, 1):
        states = AcceptedStates()
        for round_ in range(2):
            plan = replace(plan_round(other.job, round_), states=states.of([device]))
            states.accept([worker.train(plan, device, Broadcast(round_, {}))[1]])
        assert digest(state_of(other, device).personal) == federated[device]
    assert len(set(federated)) == 6


def test_one_device_is_centralised_training(tiny_settings: Any, tmp_path: Path) -> None:
    """E13: a federation of one, written out as a plain loop over its batches.

    With SGD: sending new - received and adding it back rounds the last bit, which Adam's division would magnify.
    """
    local = {"schedule": "constant", "optimizer": "sgd", "learning_rate": 0.1}
    settings = tiny_settings("fedavg", num_devices=1, cohort_size=1, local=local)
    worker_spec = spec_of(settings, tmp_path / "run")
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    for round_ in range(2):
        fleet.run_round(plan_round(worker_spec.job, round_))

    worker, job = worker_spec.worker(), worker_spec.job
    model = TorchModel(ModelSpec(job.backbone, job.method.peft, job.answers, job.seed), worker_spec.prepare_base())
    shard = worker_spec.federation().train_shard(0)
    for round_ in range(2):
        optimizer = torch.optim.SGD(model.trainable.values(), lr=0.1, weight_decay=0.01)
        for rows in worker.epochs(worker.batches(0), round_, 0):
            optimizer.zero_grad()
            model.forward(shard.batch(rows)).losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(model.trainable.values(), 1.0)
            optimizer.step()
    central = model.read()
    for name, value in fleet.adapter().items():
        torch.testing.assert_close(value, central[name], atol=1e-6, rtol=1e-5)


def test_a_device_round_repeated_gives_the_same_bits(tiny_settings: Any, tmp_path: Path) -> None:
    """What retries rest on: a second run starts from the state before the round, not from the first run's result."""
    worker_spec = spec_of(tiny_settings("fibecfed"), tmp_path / "run")
    fleet = LocalFleet(worker_spec)
    opened = fleet.setup()
    broadcast = Broadcast(0, select(fleet.adapter(), opened.shared_names))
    plan = RoundPlan(0, 3, (1,), 0.01)
    worker = worker_spec.worker()
    first, _ = worker.train(plan, 1, broadcast)
    state = digest(state_of(worker_spec, 1).flat())
    again, _ = worker_spec.worker().train(plan, 1, broadcast)
    assert digest(again.delta) == digest(first.delta) and digest(state_of(worker_spec, 1).flat()) == state


@pytest.mark.parametrize("method", ["fedavg", "fibecfed"])
def test_personal_evaluation_uses_each_device_s_own_layers(method: str, tiny_settings: Any, tmp_path: Path) -> None:
    worker_spec = spec_of(tiny_settings(method, rounds=1, local={"learning_rate": 0.05, "epochs": 4}), tmp_path / "run")
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    fleet.run_round(plan_round(worker_spec.job, 0))
    result = fleet.evaluate(0)
    federation = worker_spec.federation()
    assert sorted(result.personal) == list(range(6))
    for device, predictions in result.personal.items():
        own = result.shared.losses[torch.from_numpy(federation.test_rows[device].copy())]
        same = torch.allclose(predictions.losses, own, atol=1e-6)
        trained = device in plan_round(worker_spec.job, 0).cohort
        assert same == (method == "fedavg" or not trained or not len(own))


def test_scoring_at_first_participation_moves_the_work_not_the_rule(tiny_settings: Any, tmp_path: Path) -> None:
    """Round 0 is the first for all, at the initial model: the order is the one that `init` makes, for drawn devices."""
    late = tiny_settings("fibecfed", local={"epochs": 2})
    late["method"]["curriculum"]["score_at"] = late["method"]["mask"]["start_at"] = "first_participation"
    early_worker_spec = spec_of(tiny_settings("fibecfed", local={"epochs": 2}), tmp_path / "early")
    late_worker_spec = spec_of(late, tmp_path / "late")
    early, lazy = LocalFleet(early_worker_spec), LocalFleet(late_worker_spec)
    before, after = early.setup(), lazy.setup()
    assert after.shared_names == before.shared_names
    assert sum(r.flops for r in after.reports) < sum(r.flops for r in before.reports)
    assert all(r.difficulty_loss_rank_corr is not None for r in before.reports)
    assert all(r.difficulty_loss_rank_corr is None for r in after.reports)
    plan = plan_round(late_worker_spec.job, 0)
    early.run_round(plan)
    result = lazy.run_round(plan)
    assert all(report.difficulty_loss_rank_corr is not None for report in result.reports)
    for device in range(6):
        state = state_of(late_worker_spec, device)
        if device in plan.cohort:
            order = state_of(early_worker_spec, device).memory["curriculum"]["order"]
            assert torch.equal(state.memory["curriculum"]["order"], order)
        else:
            assert not state.memory


def test_difficulty_is_scored_from_a_round_on_and_again_after_some(tiny_settings: Any, tmp_path: Path) -> None:
    """All six devices take part each round: scored in round 2, on the model received then, and again in round 4."""
    settings = tiny_settings("fibecfed", cohort_size=6, rounds=6)
    settings["method"]["curriculum"] |= {"score_at": "first_participation", "score_from_round": 2, "rescore_every": 2}
    run = simulate(check(settings, "test"), tmp_path / "run")
    batches = read_table(run.folder, "batches").to_pylist()
    assert {row["round"] for row in batches} == {2, 4}
    by_round = [[row["loss"] for row in batches if row["round"] == round_] for round_ in (2, 4)]
    assert len(by_round[0]) == len(by_round[1]) and by_round[0] != by_round[1]
    scored = {row["round"] for row in read_devices(run.folder).to_pylist() if row["difficulty_loss_rank_corr"]}
    assert scored == {2, 4}


def test_the_log_has_every_scored_batch(tiny_settings: Any, tmp_path: Path) -> None:
    """At init, of all devices: sizes add up to the shards, means over batches to the means that `devices` logs."""
    run = simulate(check(tiny_settings("fibecfed", rounds=1), "test"), tmp_path / "run")
    opened = [row for row in read_devices(run.folder).to_pylist() if row["round"] == SETUP_ROUND]
    for device in opened:
        batches = [row for row in read_table(run.folder, "batches").to_pylist() if row["device"] == device["device"]]
        assert [row["batch"] for row in batches] == list(range(len(batches)))
        sizes = [row["num_samples"] for row in batches]
        assert sum(sizes) == device["num_samples"] and set(sizes[:-1]) <= {4}

        def mean(name: str, batches: Any = batches, total: int = sum(sizes)) -> float:
            return sum(row[name] * row["num_samples"] for row in batches) / total

        assert mean("difficulty") == pytest.approx(device["difficulty_seen"], rel=1e-5)
        assert mean("length") == pytest.approx(device["length_seen"])
        assert mean("true_difficulty") == pytest.approx(device["true_difficulty_seen"], rel=1e-5)
        assert mean("loss") > 0


def test_methods_without_difficulty_log_no_batches(tiny_settings: Any, tmp_path: Path) -> None:
    for method in ("fedavg", "fibecfed-random-order"):
        run = simulate(check(tiny_settings(method, rounds=1), "test"), tmp_path / method)
        assert read_table(run.folder, "batches").num_rows == 0


def test_the_overlap_of_a_mask_with_the_last_one_is_logged(tiny_settings: Any, tmp_path: Path) -> None:
    """None at a device's first participation, 1 for neurons drawn for good, less for neurons drawn anew."""
    found = {}
    for name, every in (("kept", None), ("redrawn", 1)):
        settings = tiny_settings("fibecfed-random-mask", cohort_size=6, rounds=2)
        settings["method"]["mask"] |= {"redraw_every": every}
        run = simulate(check(settings, "test"), tmp_path / name)
        rows = [row for row in read_devices(run.folder).to_pylist() if row["round"] >= 0]
        assert all((row["mask_overlap"] is None) == (row["round"] == 0) for row in rows)
        found[name] = [row["mask_overlap"] for row in rows if row["round"] == 1]
    assert set(found["kept"]) == {1.0}
    assert all(0 <= overlap < 1 for overlap in found["redrawn"])


def test_a_mask_learns_from_training_for_the_next_participation(tiny_settings: Any, tmp_path: Path) -> None:
    """`training` costs no forward pass beyond training itself; a pass of its own costs one more epoch of them."""
    flops = {}
    for source in ("training", "pass"):
        settings = tiny_settings("fibecfed-no-curriculum", cohort_size=6, rounds=2)
        settings["method"]["mask"] |= {"source": source}
        worker_spec = spec_of(settings, tmp_path / source)
        fleet = LocalFleet(worker_spec)
        fleet.setup()
        before = state_of(worker_spec, 0).memory["mask"]
        reports = [fleet.run_round(plan_round(worker_spec.job, round_)).reports for round_ in range(2)]
        after = state_of(worker_spec, 0).memory["mask"]
        changed = [name for name in after if name.startswith("fisher/") and not torch.equal(after[name], before[name])]
        assert changed and int(after["participations"]) == 2
        flops[source] = sum(report.flops for report in reports[1])
    assert flops["pass"] > 1.8 * flops["training"]


def test_a_device_s_own_number_of_layers_is_logged_and_sent(tiny_settings: Any, tmp_path: Path) -> None:
    """Four bytes for each block's score and four for the share of layers; the server shares N* of them."""
    settings = tiny_settings("fibecfed", rounds=1)
    settings["method"]["sharing"] |= {"count_by": "slq_plateau", "spectrum": {"max_samples": 4, "num_iterations": 8}}
    run = simulate(check(settings, "test"), tmp_path / "run")
    opened = [row for row in read_devices(run.folder).to_pylist() if row["round"] == SETUP_ROUND]
    assert all(0 <= row["layer_keep_ratio"] <= 1 and row["bytes_up"] == 4 * (3 + 1) for row in opened)
    mean = sum(row["layer_keep_ratio"] for row in opened) / len(opened)
    shared = [row["shared"] for row in read_table(run.folder, "layers").to_pylist() if row["round"] == 0]
    assert sum(shared) == max(1, int(mean * 3 + 0.5))


def test_scoring_costs_no_more_than_an_epoch_and_sensitivity_half_as_much_again(
    tiny_settings: Any, tmp_path: Path
) -> None:
    """In floating point operations: one forward and one backward pass, and a forward pass more; less by padding."""
    worker_spec = spec_of(tiny_settings("fedavg", num_devices=1, cohort_size=1), tmp_path / "run")
    worker = worker_spec.worker()
    model, shard, batches = worker.model, worker_spec.federation().train_shard(0), worker.batches(0)

    def flops_of(work: Callable[[], object]) -> float:
        model.work = Work()
        work()
        return model.work.flops

    epoch = flops_of(lambda: local_update(model, shard, Steps(batches, worker_spec.job.local, 0.01)))
    scoring = flops_of(FisherScan(model, shard, batches, list(worker.initial), torch.Generator()).read)
    rows = torch.cat(batches)
    sensing = flops_of(lambda: layer_sensitivity(model, shard, rows, Noise(), "diff_norm"))
    assert 0.5 * epoch < scoring <= epoch and epoch < sensing <= 1.5 * epoch


def test_an_adapter_on_some_blocks_only_is_logged_for_all(tiny_settings: Any, tmp_path: Path) -> None:
    """The log has a row for each block, with nothing kept in those that have no adapter."""
    method = {
        "name": "first-block",
        "peft": {"kind": "lora", "target_modules": ["layer.0.attention.self.query"]},
        "sharing": {"kind": "gal", "fraction": 0.0},
        "mask": {"kind": "fisher_neurons"},
    }
    run = simulate(check(tiny_settings(method, rounds=1), "test"), tmp_path / "run")
    layers = read_table(run.folder, "layers").to_pylist()
    kept = {row["layer"]: row["kept_neurons"] for row in layers if row["round"] == 0}
    assert kept[0] > 0 and kept[1] == kept[2] == 0


def test_a_run_directory_that_a_node_does_not_see_is_named(tiny_settings: Any, tmp_path: Path) -> None:
    worker_spec = spec_of(tiny_settings("fedavg"), tmp_path / "run")
    elsewhere = WorkerSpec(worker_spec.job, tmp_path / "elsewhere", worker_spec.cache_dir)
    with pytest.raises(RunDirError, match=r"elsewhere: not visible from node .*storage that they share"):
        elsewhere.federation()


@pytest.mark.parametrize("method", ["local", "fedper", "fedsa-lora"])
def test_a_global_score_is_no_number_where_heads_are_personal(method: str, tiny_settings: Any, tmp_path: Path) -> None:
    run = simulate(check(tiny_settings(method, rounds=2), "test"), tmp_path / "run")
    last = run.rows[-1]
    assert last["global_accuracy"] is last["global_loss"] is None and 0 <= last["personal_accuracy"] <= 1
    assert (last["bytes_total"] == 0) == (method == "local")


def test_shared_matrices_agree_after_a_round_and_personal_ones_do_not(tiny_settings: Any, tmp_path: Path) -> None:
    """E23: every device continues from one A; each from a B of its own."""
    worker_spec = spec_of(tiny_settings("fedsa-lora", cohort_size=6), tmp_path / "run")
    fleet = LocalFleet(worker_spec)
    shared = fleet.setup().shared_names
    assert all("lora_A" in name for name in shared)
    fleet.run_round(plan_round(worker_spec.job, 0))
    states = [state_of(worker_spec, device).personal for device in range(6)]
    assert len({digest(select(state, [n for n in state if "lora_B" in n])) for state in states}) == 6
    assert all(not set(state) & shared for state in states)


def test_a_personal_head_without_a_head_is_fedavg(tiny_settings: Any, tmp_path: Path) -> None:
    """E23: FedPer with a verbaliser, bit for bit."""
    runs = [
        simulate(check(tiny_settings(method, backbone=MASKED_LM, data={"max_length": 24}), "test"), tmp_path / method)
        for method in ("fedper", "fedavg")
    ]
    assert runs[0].adapter_digest == runs[1].adapter_digest


def test_with_a_frozen_the_mean_of_the_products_is_the_product_of_the_means(tiny_settings: Any, tmp_path: Path) -> None:
    """E22: sum_k w_k B_k A_k = (sum_k w_k B_k) A for FFA-LoRA, and not for FedAvg on the same data."""
    gaps = {}
    for method in ("ffa-lora", "fedavg"):
        worker_spec = spec_of(tiny_settings(method, cohort_size=6), tmp_path / method)
        worker, fleet = worker_spec.worker(), LocalFleet(worker_spec)
        shared = fleet.setup().shared_names
        broadcast = Broadcast(0, select(worker.initial, shared))
        updates = [worker.train(plan_round(worker_spec.job, 0), device, broadcast)[0] for device in range(6)]
        total = sum(update.num_samples for update in updates)
        name = next(name for name in worker.initial if "lora_B" in name)
        pairs = []
        for update in updates:
            local = {n: value + update.delta.get(n, torch.zeros(())) for n, value in worker.initial.items()}
            pairs.append((update.num_samples / total, local[name], local[name.replace("lora_B", "lora_A")]))
        mean_of_products = sum(w * b @ a for w, b, a in pairs)
        product_of_means = sum(w * b for w, b, _ in pairs) @ sum(w * a for w, _, a in pairs)
        gaps[method] = float((mean_of_products - product_of_means).norm() / mean_of_products.norm())
    assert gaps["ffa-lora"] < 1e-6 < 1e-4 < gaps["fedavg"]


@pytest.mark.parametrize("method", ["fedavg", "fibecfed"])
def test_a_run_can_be_scored_before_training_without_changing_it(
    method: str, tiny_settings: Any, tmp_path: Path
) -> None:
    runs = {
        early: simulate(
            check(tiny_settings(method, rounds=1, evaluation={"before_training": early}), "test"), tmp_path / str(early)
        )
        for early in (False, True)
    }
    assert runs[True].adapter_digest == runs[False].adapter_digest
    first = runs[True].rows[0]
    assert (first["round"], first["num_devices_trained"], first["personal_accuracy_trained"]) == (-1, 0, None)
    assert first["global_accuracy"] == pytest.approx(first["personal_accuracy"])  # every device has the initial model
    assert runs[False].rows[0]["global_accuracy"] is None
    evaluations = read_table(tmp_path / "True", "evaluations").to_pylist()
    assert {row["round"] for row in evaluations} == {-1, 0} and not any(
        row["trained"] for row in evaluations if row["round"] == -1
    )


def test_the_summary_keeps_the_version_and_the_start(tiny_settings: Any, tmp_path: Path) -> None:
    simulate(check(tiny_settings(rounds=1), "test"), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    started = datetime.fromisoformat(summary["started"])
    assert abs((datetime.now(UTC) - started).total_seconds()) < 600 and summary["version"] == version("fibec_ray")
