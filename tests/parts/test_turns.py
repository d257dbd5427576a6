"""Adapters whose parts are trained in turn: RoLoRA, SLoRA; and AdaLoRA's ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fibec_ray.config.load import check
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.low_rank import A, B, pairs
from fibec_ray.parts.objective.adalora import AdaLoraImportance
from fibec_ray.parts.peft.adalora import AdaLora
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.sparse_lora import SPARSE, SparseLora
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors, num_bytes


class Rounds:
    """A small federation, round by round."""

    def __init__(self, method: dict[str, Any], tiny_settings: Any, folder: Path, rounds: int = 4):
        self.experiment = check(tiny_settings({"name": "m"} | method, rounds=rounds), "test")
        prepared = prepare(self.experiment, folder)
        self.worker_spec = WorkerSpec(self.experiment.job(prepared.answers(self.experiment.task)), folder, cache_dir())
        self.fleet = LocalFleet(self.worker_spec)
        self.fleet.setup()
        self.initial = self.fleet.adapter()

    def run(self, round_: int) -> tuple[set[str], Any]:
        """Names of what moved, and a device's report."""
        before = self.fleet.adapter()
        result = self.fleet.run_round(plan_round(self.worker_spec.job, round_))
        after = self.fleet.adapter()
        return {name for name, value in after.items() if not torch.equal(value, before[name])}, result.reports[0]


def ending(names: Any, *ends: str) -> set[str]:
    return {name for name in names if name.endswith(ends)}


def test_rolora_moves_and_sends_b_and_a_in_turn(tiny_settings: Any, tmp_path: Path) -> None:
    run = Rounds({"peft": {"kind": "lora", "take_turns": True}}, tiny_settings, tmp_path)
    names, head = set(run.initial), ending(run.initial, "head.weight", "head.bias")
    for round_, moves, rests in ((0, B, A), (1, A, B), (2, B, A)):
        moved, report = run.run(round_)
        assert moved == ending(names, moves) | head
        assert report.bytes_up_delta == num_bytes({n: run.initial[n] for n in moved})
        # A device knows A's start from the seed; from round 2 on A has moved and travels down.
        known = ending(names, rests) if round_ == 0 else set()
        assert report.bytes_down == num_bytes({n: run.initial[n] for n in names - known})


def test_the_mean_of_rolora_is_the_mean_of_its_products() -> None:
    """In a round that moves one matrix alone, as in FFA-LoRA (E22)."""
    assert Lora(take_turns=True).moving([f"x{A}", f"x{B}", "head.bias"], 4, 9) == {f"x{B}", "head.bias"}
    assert Lora().moving([f"x{A}", f"x{B}"], 4, 9) == {f"x{A}", f"x{B}"}


# --- SLoRA


def test_slora_sends_few_entries_first_and_then_lora(tiny_settings: Any, tmp_path: Path) -> None:
    run = Rounds({"peft": {"kind": "sparse_lora", "sparse_fraction": 0.5, "density": 0.1}}, tiny_settings, tmp_path)
    head = ending(run.initial, "head.weight", "head.bias")
    sparse, lora = ending(run.initial, SPARSE), ending(run.initial, A, B)
    moved, report = run.run(0)
    assert moved == sparse | head
    assert report.bytes_up_delta == report.bytes_down == num_bytes({n: run.initial[n] for n in moved})
    for x in pairs(run.initial):
        weight_size = len(run.initial[x + B]) * run.initial[x + A].shape[1]
        assert run.initial[x + SPARSE].numel() == round(0.1 * weight_size)
    moved, _ = run.run(1)
    assert moved == sparse | lora | head, "the stages change hands after the last sparse round"
    moved, report = run.run(2)
    assert moved == lora | head
    assert report.bytes_down == num_bytes({n: run.initial[n] for n in lora | head}), "D is 0 again, as at the start"


def test_slora_starts_lora_at_the_best_approximation_of_what_was_learnt() -> None:
    peft, generator = SparseLora(r=3, alpha=6, density=0.2, sparse_fraction=0.5), torch.Generator().manual_seed(0)
    count = round(0.2 * 5 * 7)
    shared = {
        f"x{A}": torch.randn(3, 7, generator=generator),
        f"x{B}": torch.zeros(5, 3),
        f"x{SPARSE}": torch.randn(count, generator=generator),
    }
    assert peft.after_round(shared, {}, 0, 4) == {} and peft.after_round(shared, {}, 2, 4) == {}
    new = peft.after_round(shared, {}, 1, 4)
    dense = torch.zeros(35)
    dense[peft._chosen("x", 5, 7)] = shared[f"x{SPARSE}"]
    dense = dense.view(5, 7)
    u, s, v = torch.linalg.svd(dense)
    torch.testing.assert_close(2.0 * new[f"x{B}"] @ new[f"x{A}"], (u[:, :3] * s[:3]) @ v[:3], rtol=1e-4, atol=1e-5)
    assert not new[f"x{SPARSE}"].any()


def test_slora_computes_with_the_weights_it_says(tiny_settings: Any, tmp_path: Path) -> None:
    """The base plus D, at the drawn entries: against the same base with its weight changed."""
    run = Rounds({"peft": {"kind": "sparse_lora", "density": 0.1}}, tiny_settings, tmp_path)
    model: Any = run.fleet._worker.model
    batch = run.worker_spec.federation().train_shard(0).batch(torch.arange(3))
    values = {name: torch.ones_like(value) for name, value in run.initial.items() if name.endswith(SPARSE)}
    model.load(values)
    with torch.no_grad():
        found = model.forward(batch).scores
        model.load({name: torch.zeros_like(value) for name, value in values.items()})
        for name in values:
            layer = model.peft_model.get_submodule(name.removesuffix(SPARSE))
            layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.clone(), requires_grad=False)
            layer.base_layer.weight.view(-1)[layer.sparse_at] += 1
        torch.testing.assert_close(model.forward(batch).scores, found, rtol=1e-4, atol=1e-5)


def test_a_stage_in_which_nothing_was_learnt_leaves_lora_as_it_is() -> None:
    shared = {f"x{A}": torch.ones(2, 4), f"x{B}": torch.zeros(3, 2), f"x{SPARSE}": torch.zeros(1)}
    assert SparseLora(r=2).after_round(shared, {}, 0, 5) == {}


# --- AdaLoRA


def test_the_budget_falls_by_the_cubic_rule() -> None:
    """Twelve ranks to eight over rounds 2 to 6 of 10: (1 - x)^3 of the four that go."""
    peft = AdaLora(init_r=12, r=8, warmup_fraction=0.2, final_fraction=0.4)
    found = [peft.budget(round_, 10) for round_ in range(10)]
    expected = [12, 12, 8 + 4 * 0.75**3, 8 + 4 * 0.5**3, 8 + 4 * 0.25**3, 8, 8, 8, 8, 8]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_the_server_keeps_the_best_ranks_of_all_weights_together() -> None:
    peft = AdaLora(init_r=3, r=2, warmup_fraction=0, final_fraction=0)
    shared = {"x.lora_E": torch.tensor([[1.0], [2.0], [3.0]]), "y.lora_E": torch.tensor([[4.0], [5.0], [6.0]])}
    control = {
        "scores/x.lora_E": torch.tensor([[0.1], [0.2], [0.3]]),
        "scores/y.lora_E": torch.tensor([[0.9], [0.8], [0.15]]),
    }
    new = peft.after_round(shared, control, 9, 10)
    assert new["x.lora_E"].flatten().tolist() == [0, 2, 3] and new["y.lora_E"].flatten().tolist() == [4, 5, 0]
    assert peft.after_round(shared, {}, 9, 10) == {}


def factors() -> dict[str, nn.Parameter]:
    return {
        "x.lora_A": nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0]])),
        "x.lora_E": nn.Parameter(torch.tensor([[2.0], [3.0]])),
        "x.lora_B": nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])),
    }


def test_a_rank_is_scored_by_its_entry_and_the_means_of_its_factors() -> None:
    """One step: I = (1 - b1) |w g| and U = (1 - b2) (|w g| - I), by hand."""
    objective, params, memory = AdaLoraImportance(beta1=0.5, beta2=0.5), factors(), dict[str, Tensor]()
    for value in params.values():
        value.grad = torch.ones_like(value)
    objective.correct(params, memory, {})
    memory, extras = objective.finish(memory, {}, dict(params), 1, 0.1)
    # |w g| of rank 0: e 2, A's row (1, 0), B's column (1, 0, 0); S(1) = .5 * .25, S(2) = 1 * .5, S(3) = 1.5 * .75
    s = {1: 0.125, 2: 0.5, 3: 1.125}
    expected = [s[2] + s[1] / 2 + s[1] / 3, s[3] + s[1] / 2 + s[1] / 3]
    torch.testing.assert_close(extras["scores/x.lora_E"].flatten(), torch.tensor(expected))
    assert all(torch.equal(value.grad, torch.ones_like(value)) for value in params.values() if value.grad is not None)


def test_orthogonal_factors_cost_nothing() -> None:
    params: Tensors = dict(factors())
    penalty = AdaLoraImportance().penalty(params, params)
    assert penalty is not None and float(penalty.detach()) == 0
    params["x.lora_A"] = 2 * params["x.lora_A"]  # Q Q^T - I = 3 I, of norm 3 sqrt 2; half of the factors, weight .5
    torch.testing.assert_close(AdaLoraImportance().penalty(params, params), torch.tensor(0.25 * 3 * 2**0.5))
    assert AdaLoraImportance(weight=0).penalty(params, params) is None


def test_adalora_ends_with_its_budget_of_ranks(tiny_settings: Any, tmp_path: Path) -> None:
    peft = {"kind": "adalora", "init_r": 6, "r": 2, "warmup_fraction": 0, "final_fraction": 0.25}
    run = Rounds({"peft": peft, "objective": "adalora"}, tiny_settings, tmp_path)
    for round_ in range(4):
        run.run(round_)
    entries = [value for name, value in run.fleet.adapter().items() if name.endswith(".lora_E")]
    assert sum(int(torch.count_nonzero(value)) for value in entries) == 2 * len(entries)


def test_peft_itself_has_the_same_penalty(tiny_settings: Any, tmp_path: Path) -> None:
    run = Rounds({"peft": "adalora", "objective": "adalora"}, tiny_settings, tmp_path)
    model: Any = run.fleet._worker.model
    inner = model.peft_model.base_model
    grams = [
        p @ p.T if "lora_A" in n else p.T @ p for n, p in model.trainable.items() if "lora_A" in n or "lora_B" in n
    ]
    theirs = torch.stack([(g - torch.eye(len(g))).norm() for g in grams]).mean() * 0.5
    assert inner.peft_config["default"].orth_reg_weight == AdaLoraImportance().weight
    torch.testing.assert_close(AdaLoraImportance().penalty(model.trainable, {}), theirs)


@pytest.mark.parametrize("settings", [{"init_r": 4, "r": 8}, {"warmup_fraction": 0.6, "final_fraction": 0.6}])
def test_budgets_that_cannot_shrink_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="init_r 4 is less than r 8|leave no rounds"):
        AdaLora(**settings)
