"""Aggregators that average LoRA's products: each against a dense reference written from its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import TINY_BERT, classes
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.low_rank import MOVED, A, B, blank
from fibec_ray.method import Method
from fibec_ray.models.backbone import prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fedrpca import FedRpca, robust_pca
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.moves_base import FedExLora, FedMomentum
from fibec_ray.parts.aggregator.near_products import FloraNa, LoraFair, nearest_combination
from fibec_ray.parts.aggregator.same_products import FedRotLora, FedSvd, soft_rotation
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.moving_lora import MovingLora
from fibec_ray.parts.peft.ranks import adapted_layers
from fibec_ray.runs.simulation import cache_dir
from fibec_ray.tensors import Tensors, add, subtract, weighted_mean
from fibec_ray.types import DeviceUpdate

XA, XB, XD = f"x{A}", f"x{B}", f"x{MOVED}"
SAMPLES = [3, 1, 4]
WEIGHTS = [3 / 8, 1 / 8, 4 / 8]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(like: Tensors, seed: int) -> Tensors:
    return {name: torch.randn(value.shape, generator=rng(seed + i)) for i, (name, value) in enumerate(like.items())}


SHARED = {XA: torch.randn(2, 6, generator=rng(0)), XB: torch.randn(5, 2, generator=rng(1)), "head": torch.zeros(3)}
BASE = SHARED | {XD: torch.randn(5, 6, generator=rng(2))}
TRAINED = [add(drawn(SHARED, 10 * k), SHARED) for k in (1, 2, 3)]


def sent(values: list[Tensors], shared: Tensors = SHARED) -> list[DeviceUpdate]:
    return [
        DeviceUpdate(k, n, 1, subtract(each, shared)) for k, (n, each) in enumerate(zip(SAMPLES, values, strict=False))
    ]


def combined(aggregator: Aggregator, shared: Tensors = SHARED, values: list[Tensors] = TRAINED) -> Tensors:
    step, _ = aggregator.combine(aggregator.start(shared, 9), sent(values, shared))
    return shared | add(step, shared)


def product(values: Tensors) -> Tensor:
    return values[XB].double() @ values[XA].double()


def mean_of(tensors: list[Tensor]) -> Tensor:
    return torch.stack([w * each.double() for w, each in zip(WEIGHTS, tensors, strict=True)]).sum(0)


WANTED = mean_of([product(values) for values in TRAINED])
"""W*"""
FEDAVG = combined(Mean())


@pytest.mark.parametrize(
    "rule", [FedExLora(), FedMomentum(), FedSvd(), FedRotLora(), LoraFair(), FloraNa(), FedRpca()], ids=lambda r: r.kind
)
def test_a_head_is_averaged_as_in_fedavg(rule: Aggregator) -> None:
    shared = BASE if "peft" in rule.partners else SHARED
    torch.testing.assert_close(combined(rule, shared)["head"], FEDAVG["head"])


# --- the base moves


def test_fedex_averages_factors_and_the_base_makes_up_for_the_rest() -> None:
    new = combined(FedExLora(), BASE)
    for name in (XA, XB):
        torch.testing.assert_close(new[name], mean_of([values[name] for values in TRAINED]).float())
    torch.testing.assert_close(new[XD].double() + product(new), BASE[XD] + WANTED, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rule", [FedExLora(), FedMomentum(tau=1)], ids=lambda rule: rule.kind)
def test_the_new_model_is_the_mean_of_the_devices_models(rule: Aggregator, rslora: bool) -> None:
    """As a layer of a real model computes it: alpha 8 over r 4 is s = 2; 8 over sqrt(4) is s = 4. Unequal ranks too."""
    spec = Backbone(init="random", config=TINY_BERT, tokenizer="minilm")
    peft = MovingLora(r=4, alpha=8, dropout=0, use_rslora=rslora)
    assert peft.scaling(None) == (4 if rslora else 2)
    model = TorchModel(ModelSpec(spec, peft, classes(2), 0), prepare(spec, 0, 2, cache_dir()))
    shared = {n: v for n, v in drawn(model.read(), 3).items() if "head" not in n}
    values = [blank(add(drawn(shared, 100 * k), shared), rank) for k, rank in ((1, 1), (2, 4), (3, 3))]
    values = [each | {n: v for n, v in shared.items() if n.endswith(MOVED)} for each in values]

    @torch.no_grad()
    def update(now: Tensors) -> Tensor:
        """What the first adapted layer adds to W, (out, in)."""
        model.load(now)
        layer = adapted_layers(model.peft_model)[0]
        unit = torch.eye(layer.base_layer.in_features)
        return (layer(unit) - layer.base_layer(unit)).T.double()

    devices = [
        DeviceUpdate(k, n, 1, {m: each[m] - blank(shared, rank)[m] for m in each if not m.endswith(MOVED)}, rank=rank)
        for k, (n, each, rank) in enumerate(zip(SAMPLES, values, (1, 4, 3), strict=True))
    ]
    step, _ = rule.combine(rule.start(shared, 9), devices)
    wanted = mean_of([update(each) for each in values])
    torch.testing.assert_close(update(shared | add(step, shared)), wanted, rtol=1e-4, atol=1e-4)
    assert (update(shared | {n: v for n, v in add(step, shared).items() if not n.endswith(MOVED)}) - wanted).norm() > 1


def test_fedmomentum_gives_lora_the_largest_directions_and_the_base_the_rest() -> None:
    u, s, v = torch.linalg.svd(WANTED, full_matrices=False)
    new = combined(FedMomentum(tau=1), BASE)
    torch.testing.assert_close(product(new), (u[:, :2] * s[:2]) @ v[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((new[XD] - BASE[XD]).double(), (u[:, 2:] * s[2:]) @ v[2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new[XB].norm(dim=0), new[XA].norm(dim=1))


def test_fedmomentum_drops_what_lies_beyond_its_share_of_the_energy() -> None:
    """tau between the energies of the first three and the first four directions: the base gets the third and fourth."""
    u, s, v = torch.linalg.svd(WANTED, full_matrices=False)
    energy = s.square().cumsum(0) / s.square().sum()
    new = combined(FedMomentum(tau=float(energy[2] + energy[3]) / 2), BASE)
    torch.testing.assert_close((new[XD] - BASE[XD]).double(), (u[:, 2:4] * s[2:4]) @ v[2:4], rtol=1e-4, atol=1e-5)
    new = combined(FedMomentum(tau=float(energy[0]) / 2), BASE)
    assert torch.equal(new[XD], BASE[XD])
    torch.testing.assert_close(product(new), (u[:, :2] * s[:2]) @ v[:2], rtol=1e-5, atol=1e-5)


def test_fedmomentum_leaves_unused_ranks_able_to_learn() -> None:
    alone = [SHARED | {XB: SHARED[XB] * torch.tensor([1.0, 0.0])}]
    new = combined(FedMomentum(), BASE, alone)
    assert torch.equal(new[XA][1], SHARED[XA][1]) and not new[XB][:, 1].any()


# --- the same products in other factors

ONLY_B = [values | {XA: SHARED[XA]} for values in TRAINED]


def test_fedsvd_with_a_frozen_is_the_mean_of_the_devices_updates() -> None:
    new = combined(FedSvd(), values=ONLY_B)
    torch.testing.assert_close(product(new), mean_of([product(values) for values in ONLY_B]), rtol=1e-5, atol=1e-5)


def test_fedsvd_counts_missing_ranks_as_no_change() -> None:
    """A device of rank 1 trains the first column of B; A stays, so the mean of the updates is still exact."""
    deltas = [torch.randn(5, rank, generator=rng(rank)) for rank in (1, 2)]
    updates = [
        DeviceUpdate(0, 1, 1, {XB: F.pad(deltas[0], (0, 1))}, rank=1),
        DeviceUpdate(1, 3, 1, {XB: deltas[1]}, rank=2),
    ]
    rule = FedSvd()
    step, state = rule.combine(rule.start(SHARED, 9), updates)
    new = SHARED | add(step, SHARED)
    a, b = SHARED[XA].double(), SHARED[XB].double()
    expected = b @ a + deltas[0].double() @ a[:1] / 4 + deltas[1].double() @ a * 3 / 4
    torch.testing.assert_close(product(new), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(state[f"shared/{name}"], value) for name, value in new.items())


def test_fedsvd_needs_no_more_than_the_mean_of_the_updates() -> None:
    """So noise may be added to that mean."""
    rule, updates = FedSvd(), sent(ONLY_B)
    alone = DeviceUpdate(0, 1, 1, weighted_mean((update.num_samples, update.delta) for update in updates))
    (found, _), (wanted, _) = (rule.combine(rule.start(SHARED, 9), each) for each in ([alone], updates))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_fedsvd_changes_the_factors_and_not_their_product() -> None:
    """Singular values in B, orthonormal rows in A; trained A or not."""
    for values in (ONLY_B, TRAINED):
        new, means = combined(FedSvd(), values=values), combined(Mean(), values=values)
        torch.testing.assert_close(product(new), product(means), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(new[XA] @ new[XA].T, torch.eye(2), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            new[XB].norm(dim=0).double(), torch.linalg.svdvals(product(means))[:2], rtol=1e-5, atol=1e-6
        )


def test_fedsvd_of_nothing_learnt_still_has_orthonormal_rows_in_the_span_of_a() -> None:
    shared = SHARED | {XB: torch.zeros(5, 2)}
    new = combined(FedSvd(), shared, [shared])
    assert not new[XB].any()
    torch.testing.assert_close(new[XA] @ new[XA].T, torch.eye(2), rtol=0, atol=1e-6)
    assert torch.linalg.matrix_rank(torch.cat([new[XA], SHARED[XA]]), rtol=1e-5) == 2


@pytest.mark.parametrize(("out", "inside"), [(1, 6), (5, 1)])
def test_fedsvd_takes_ranks_beyond_the_size_of_the_weight(out: int, inside: int) -> None:
    shared = {XA: torch.randn(3, inside, generator=rng(1)), XB: torch.randn(out, 3, generator=rng(2))}
    new = combined(FedSvd(), shared, [shared])
    torch.testing.assert_close(product(new), product(shared), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_rotation_is_the_best_of_all(seed: int) -> None:
    """r = 2: rotations are angles; the best of 20,000 by brute force. R* maximises tr(R^T near)."""
    near = torch.randn(2, 2, generator=rng(seed), dtype=torch.float64)
    angles = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    cosine, sine = angles.cos(), angles.sin()
    every = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    best = every[(every * near).sum((1, 2)).argmax()]
    torch.testing.assert_close(soft_rotation(near, 1.0), best, rtol=0, atol=1e-3)
    blend = 0.7 * torch.eye(2, dtype=torch.float64) + 0.3 * best
    soft = every[(every * blend).sum((1, 2)).argmax()]
    torch.testing.assert_close(soft_rotation(near, 0.3), soft, rtol=0, atol=1e-3)
    assert torch.equal(soft_rotation(torch.zeros(2, 2), 1.0), torch.eye(2))


def test_fedrot_turns_devices_that_differ_by_a_rotation_alone_into_one() -> None:
    """Three devices learnt the same product in turned factors: the mean of the factors alone would lose most of it."""
    turn = [torch.tensor([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]]) for t in (0.5, -1.0, 1.5)]
    values = [SHARED | {XA: r.T @ SHARED[XA], XB: SHARED[XB] @ r} for r in turn]
    rule = FedRotLora(strength=1)
    first, state = rule.combine(rule.start(SHARED, 9), sent(values))
    fedavg = combined(Mean(), values=values)
    assert all(torch.allclose(first[name], fedavg[name] - SHARED[name], atol=1e-6) for name in first)
    assert (product(fedavg) - product(SHARED)).norm() > 0.3 * product(SHARED).norm()
    for round_ in (1, 2):  # towards A, then towards B
        state = state | {f"shared/{name}": value for name, value in SHARED.items()}
        step, state = rule.combine(state, sent(values))
        for name in (XA, XB):
            torch.testing.assert_close(step[name], torch.zeros_like(step[name]), rtol=0, atol=1e-5)
        assert int(state["round"]) == round_ + 1


def test_fedrot_without_rotation_is_fedavg_and_never_changes_a_product() -> None:
    rule = FedRotLora(strength=0)
    state = rule.start(SHARED, 9) | {"round": torch.tensor(3)}
    step, _ = rule.combine(state, sent(TRAINED))
    for name, value in add(step, SHARED).items():
        torch.testing.assert_close(value, FEDAVG[name])
    for round_ in (1, 2):
        state = {"round": torch.tensor(round_)}
        turned = FedRotLora(strength=0.5).aligned(state, SHARED, TRAINED[0])
        torch.testing.assert_close(product(turned), product(TRAINED[0]), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(turned[XA], TRAINED[0][XA])


# --- near products


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_lora_fairs_correction_is_what_a_numerical_minimiser_finds(strength: float) -> None:
    """|W* - (B_m + D) A_m|^2 + strength |D|^2, by L-BFGS in float64."""
    a, b = FEDAVG[XA].double(), FEDAVG[XB].double()
    d = torch.zeros_like(b, requires_grad=True)
    solver = torch.optim.LBFGS(
        [d], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = (WANTED - (b + d) @ a).square().sum() + strength * d.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    new = combined(LoraFair(strength=strength))
    torch.testing.assert_close(new[XA], FEDAVG[XA])
    assert d.detach().norm() > 0.1
    torch.testing.assert_close(new[XB].double(), b + d.detach(), rtol=1e-4, atol=1e-5)


def test_lora_fair_lies_between_fedavg_and_the_best_b() -> None:
    torch.testing.assert_close(combined(LoraFair(strength=1e9))[XB], FEDAVG[XB])
    best = torch.linalg.lstsq(FEDAVG[XA].double().T, WANTED.T).solution.T
    torch.testing.assert_close(combined(LoraFair(strength=0))[XB].double(), best, rtol=1e-4, atol=1e-5)


def distance(p: Tensor, q: Tensor) -> Tensor:
    a = sum(x * values[XA].double() for x, values in zip(q, TRAINED, strict=True))
    b = sum(x * values[XB].double() for x, values in zip(p, TRAINED, strict=True))
    return (WANTED - b @ a).square().sum()


def fitted(iterations: int) -> tuple[Tensor, Tensor]:
    a, b = (torch.stack([values[name].double() for values in TRAINED]) for name in (XA, XB))
    return nearest_combination(a, b, torch.tensor(WEIGHTS, dtype=torch.float64), iterations)


def test_flora_na_first_solves_for_b_then_for_a() -> None:
    """Least squares on dense columns B_k A_m, then on B A_k."""
    w = torch.tensor(WEIGHTS, dtype=torch.float64)
    columns = [(values[XB].double() @ mean_of([v[XA] for v in TRAINED])).flatten() for values in TRAINED]
    p = torch.linalg.lstsq(torch.stack(columns, 1), WANTED.flatten()[:, None]).solution[:, 0]
    b = sum(x * values[XB].double() for x, values in zip(p, TRAINED, strict=True))
    columns = [(b @ values[XA].double()).flatten() for values in TRAINED]
    q = torch.linalg.lstsq(torch.stack(columns, 1), WANTED.flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(fitted(1), (p, q), rtol=1e-6, atol=1e-8)
    assert distance(p, q) < distance(p, w) < distance(w, w)


def test_flora_na_ends_where_no_combination_is_nearer() -> None:
    """The gradient by p and q vanishes; more iterations never make the distance larger."""
    p, q = (value.requires_grad_() for value in fitted(300))
    slopes = torch.autograd.grad(distance(p, q), (p, q))
    assert all(slope.abs().max() < 1e-4 for slope in slopes)
    found = [float(distance(*fitted(n))) for n in (1, 2, 4, 8, 300)]
    assert found == sorted(found, reverse=True)
    new = combined(FloraNa(iterations=300))
    torch.testing.assert_close((product(new) - WANTED).square().sum(), distance(p, q).detach(), rtol=1e-4, atol=1e-5)


def test_flora_na_of_one_device_is_that_device() -> None:
    new = combined(FloraNa(), values=TRAINED[:1])
    for name, value in TRAINED[0].items():
        torch.testing.assert_close(new[name], value, rtol=1e-5, atol=1e-5)


# --- what devices have in common


def test_fedrpca_with_factor_one_is_fedavg() -> None:
    new = combined(FedRpca(beta=1))
    for name, value in FEDAVG.items():
        torch.testing.assert_close(new[name], value)


def test_robust_pca_finds_a_common_update_under_sparse_ones() -> None:
    """60 entries, 12 devices: one common direction, and 3 entries of each device's own."""
    common = torch.randn(60, 1, generator=rng(0), dtype=torch.float64) @ torch.ones(1, 12, dtype=torch.float64)
    own = torch.zeros(60, 12, dtype=torch.float64)
    for k in range(12):
        own[torch.randperm(60, generator=rng(k))[:3], k] = 4.0 * (1 if k % 2 else -1)
    low, sparse = robust_pca(common + own)
    torch.testing.assert_close(low, common, rtol=0, atol=1e-4)
    torch.testing.assert_close(sparse, own, rtol=0, atol=1e-4)


def test_robust_pca_minimises_what_it_says() -> None:
    """Against 4,000 slow steps of the alternating direction method with a fixed penalty."""
    matrix = torch.randn(12, 5, generator=rng(3), dtype=torch.float64)
    rate = 12**-0.5
    sparse = multiplier = torch.zeros_like(matrix)
    for _ in range(4000):
        u, values, v = torch.linalg.svd(matrix - sparse + multiplier, full_matrices=False)
        low = (u * (values - 1).clamp(min=0)) @ v
        rest = matrix - low + multiplier
        sparse = rest.sign() * (rest.abs() - rate).clamp(min=0)
        multiplier = multiplier + matrix - low - sparse

    def value(low: Tensor, sparse: Tensor) -> Tensor:
        return torch.linalg.svdvals(low).sum() + rate * sparse.abs().sum()

    found = robust_pca(matrix)
    torch.testing.assert_close(sum(found), matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(value(*found), value(matrix - sparse, sparse), rtol=2e-3, atol=0)


def test_fedrpca_amplifies_what_devices_do_not_share() -> None:
    """w_k = n_k / n; the mean plus (beta - 1) times the mean of the sparse parts, for each matrix alone."""
    new = combined(FedRpca(beta=3))
    for name in (XA, XB):
        _, sparse = robust_pca(torch.stack([(v[name] - SHARED[name]).double().flatten() for v in TRAINED], 1))
        extra = 2 * mean_of(list(sparse.T)).view_as(SHARED[name])
        torch.testing.assert_close(new[name].double(), FEDAVG[name].double() + extra, rtol=1e-5, atol=1e-6)
        assert extra.norm() > 0.1


# --- what goes together


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"aggregator": "fedex_lora"}, "'fedex_lora' needs peft 'moving_lora', found 'lora'"),
        ({"peft": "moving_lora"}, "'flora' or 'fedex_lora' or 'fedmomentum', found 'mean'; set one of these"),
        ({"peft": {"kind": "moving_lora", "freeze_a": True}, "aggregator": "flora"}, "freeze_a makes the mean"),
        ({"peft": {"kind": "lora", "freeze_a": True, "take_turns": True}}, "leave out one of them"),
        ({"peft": {"kind": "sparse_lora", "freeze_a": True}}, "freeze_a do not work with two stages"),
        ({"peft": {"kind": "lora", "ranks": [2, 4]}, "aggregator": "lora_fair"}, "every device to send all tensors"),
        ({"peft": "bitfit", "aggregator": "fedrpca"}, "works on LoRA's matrices"),
        *(
            (
                {"sharing": "matrices", "aggregator": kind},
                "'matrices' leaves one of them on the devices; set sharing: all",
            )
            for kind in ("lora_fair", "fedsvd", "flexlora", "hetlora")
        ),
        ({"uplink": "topk", "aggregator": "fedrpca"}, "choose another uplink"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Method.model_validate(parts)


def test_frozen_a_is_neither_trained_nor_sent() -> None:
    peft = Lora(freeze_a=True)
    assert peft.moving(SHARED, 0, 9) == {XB, "head"} == peft.moving(SHARED, 1, 9)
    assert Method(peft=peft).sends == "B without A; all that is trainable"
