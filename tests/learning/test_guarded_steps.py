"""DP-SGD's steps: sums of clipped gradients against one backward pass per sample and against opacus, and the noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny, shard_of
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.config.load import check
from fibec_ray.curvature.clipped import clipped_sums
from fibec_ray.curvature.per_sample import catch
from fibec_ray.curvature.sample_formulas import collect_holders
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.guarded_steps import Guard, GuardedSteps
from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.local_update import Moves, Steps, Terms, local_update
from fibec_ray.parts.objective import OBJECTIVES
from fibec_ray.parts.privacy.base import StepGuard
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors

SGD = LocalTraining(optimizer="sgd", learning_rate=0.5, weight_decay=0, clip=None)
SHARD = shard_of([[5, 6, 7, 8], [9, 8, 7], [6, 6, 6, 6], [8, 9]])
ROWS = torch.tensor([0, 1, 3])


class Words(nn.Module):
    """Word vectors, their mean, a normalisation and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(12, 6), nn.Linear(6, 5)
        self.norm, self.last = nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.norm(torch.tanh(self.first(self.table(ids)))).mean(1))


IDS, LABELS = torch.tensor([[1, 2, 3], [4, 4, 5], [6, 7, 1], [9, 9, 9]]), torch.tensor([0, 2, 1, 1])
MOST = 2.0


def losses(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(IDS), LABELS, reduction="none")


def ours(model: nn.Module, most: float = MOST) -> Tensors:
    names = [name for name, _ in model.named_parameters()]
    with catch(collect_holders(model, lambda name: name), names, 4) as caught:
        total = losses(model).sum()
    grads = torch.autograd.grad(total, caught.tensors)
    found = clipped_sums(caught, grads, most, {}, torch.ones(1, 4, dtype=torch.bool))
    return {name: found[name][0] for name in names}


def one_by_one(params: Mapping[str, Tensor], each: Tensor, most: float) -> tuple[Tensors, list[float]]:
    """sum_i g_i min(1, most / |g_i|), from one backward pass per sample; and the norms."""
    sums = {name: torch.zeros_like(value) for name, value in params.items()}
    norms = []
    for loss in each:
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
        norms.append(float(torch.stack([grad.double().square().sum() for grad in grads]).sum().sqrt()))
        for name, grad in zip(params, grads, strict=True):
            sums[name] += grad * min(1.0, most / norms[-1])
    return sums, norms


def test_clipped_sums_are_those_of_single_backward_passes() -> None:
    model = Words()
    wanted, norms = one_by_one(dict(model.named_parameters()), losses(model), MOST)
    assert min(norms) < MOST < max(norms), "some are clipped and some are not"
    torch.testing.assert_close(ours(model), {name: value.detach() for name, value in wanted.items()})


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_clipped_sums_are_those_of_opacus() -> None:
    opacus = pytest.importorskip("opacus", reason="opacus is an oracle here; pip install --no-deps opacus opt_einsum")
    model = Words()
    found = ours(model)
    wrapped = opacus.GradSampleModule(model, loss_reduction="sum")
    losses(wrapped).sum().backward()
    each = {name: p.grad_sample for name, p in model.named_parameters()}
    norms = torch.stack([value.flatten(1).square().sum(1) for value in each.values()]).sum(0).sqrt()
    factors = (MOST / norms).clamp(max=1.0)
    assert (factors < 1).any() and (factors == 1).any()
    for name, value in each.items():
        torch.testing.assert_close(found[name], torch.einsum("i,i...->...", factors, value))


def test_a_gradient_of_zero_stays_zero() -> None:
    model = Words()
    for p in model.parameters():
        nn.init.zeros_(p)
    assert all(value.isfinite().all() for value in ours(model).values())


def test_noise_is_that_of_the_generator_for_every_tensor_in_order() -> None:
    shapes = {"a": torch.Size([2]), "b": torch.Size([3])}
    guard = Guard(StepGuard(2.0, 0.5), torch.Generator().manual_seed(7))
    steps = GuardedSteps([guard], shapes, {"a": torch.zeros(1, 2, dtype=torch.bool)})
    assert steps.names == ["b"]
    drawn = torch.Generator().manual_seed(7)
    _, noise = torch.randn(2, generator=drawn), torch.randn(3, generator=drawn)
    found = steps.mean({"b": torch.ones(1, 3)}, torch.tensor([4]))
    assert found.keys() == {"b"} and torch.equal(found["b"][0], (1 + noise) / 4)  # 2.0 * 0.5 = 1


# --- on a model


@pytest.fixture(scope="module")
def worker_spec(tmp_path_factory: pytest.TempPathFactory) -> WorkerSpec:
    folder: Path = tmp_path_factory.mktemp("spec")
    experiment = check(make_tiny("fedavg"), "test")
    prepared = prepare(experiment, folder)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())


@pytest.fixture
def model(worker_spec: WorkerSpec) -> Any:
    found: Any = worker_spec.worker().model
    rng = torch.Generator().manual_seed(5)
    found.load({name: 0.1 * torch.randn(p.shape, generator=rng) for name, p in found.trainable.items()})
    return found


def step(model: Any, rule: StepGuard | None, terms: Terms = Terms(), moves: Moves = Moves()) -> Tensors:  # noqa: B008
    """How one step of plain SGD on three samples moves the tensors, in units of the rate."""
    start = model.read()
    guard = None if rule is None else Guard(rule, torch.Generator().manual_seed(0))
    local_update(model, SHARD, Steps([ROWS], SGD, SGD.learning_rate), terms, moves, guard)
    moved = {name: (value - start[name]) / -SGD.learning_rate for name, value in model.read().items()}
    model.load(start)
    return moved


def test_a_step_is_the_mean_of_clipped_gradients(model: Any) -> None:
    out, _ = model.per_sample_grads(SHARD.batch(ROWS))
    _, norms = one_by_one(dict(model.trainable), out.losses, 1.0)
    most = sorted(norms)[1]
    out, _ = model.per_sample_grads(SHARD.batch(ROWS))
    wanted, _ = one_by_one(dict(model.trainable), out.losses, most)
    found = step(model, StepGuard(most, 0.0))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.detach() / 3, atol=2e-6, rtol=1e-4)


def test_wide_limits_without_noise_are_plain_training(model: Any) -> None:
    plain, guarded = step(model, None), step(model, StepGuard(1e6, 0.0))
    for name, value in plain.items():
        torch.testing.assert_close(guarded[name], value, atol=2e-6, rtol=1e-4)


def test_the_noise_of_a_step_has_the_deviation_that_the_accountant_assumes(model: Any) -> None:
    """z C / B an entry, here 4 * 0.01 / 3."""
    quiet, noisy = step(model, StepGuard(0.01, 0.0)), step(model, StepGuard(0.01, 4.0))
    noise = torch.cat([(noisy[name] - value).flatten() for name, value in quiet.items()])
    assert len(noise) > 1000 and noise.std().item() == pytest.approx(0.04 / 3, rel=0.1)


def test_a_penalty_is_neither_clipped_nor_noised(model: Any) -> None:
    terms = Terms(OBJECTIVES["proximal"].model_validate({"mu": 0.5}))
    before = model.read()
    local = SGD.model_copy(update={"learning_rate": 0.5})
    found = []
    for each in (Terms(), terms):
        guard = Guard(StepGuard(1e-3, 0.0), torch.Generator())
        local_update(model, SHARD, Steps([ROWS, ROWS], local, 0.5), each, guard=guard)
        found.append(model.read())
        model.load(before)
    # The first step is the same; the second adds mu (w - w0), whose norm no clipping bounds.
    differences = {name: found[1][name] - value for name, value in found[0].items()}
    first = step(model, StepGuard(1e-3, 0.0))
    for name, value in differences.items():
        torch.testing.assert_close(value, 0.5 * 0.5 * 0.5 * first[name], atol=1e-6, rtol=1e-2)


def test_frozen_tensors_have_no_part_in_the_norm(model: Any) -> None:
    frozen = [name for name in model.trainable if "lora_A" in name]
    free = {name: p for name, p in model.trainable.items() if name not in frozen}
    out, _ = model.per_sample_grads(SHARD.batch(ROWS))
    wanted, _ = one_by_one(free, out.losses, 0.01)
    masks = {name: torch.zeros(model.trainable[name].shape, dtype=torch.bool) for name in frozen}
    found = step(model, StepGuard(0.01, 0.0), moves=Moves(keep=masks))
    assert all(not found[name].any() for name in frozen)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.detach() / 3, atol=1e-6, rtol=1e-3)
