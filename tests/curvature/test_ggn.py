"""Eigenpairs of the Gauss-Newton matrix against dense matrices made by autograd, one sample at a time (E17)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_BERT, TINY_LLAMA, VALUES, classes, shard_of
from torch import Tensor, nn

from fibec_ray.curvature import ggn
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.curvature.ggn import (
    CHUNK,
    Eigenpairs,
    Way,
    gram_eigenpairs,
    sample_gradients,
    subspace_eigenpairs,
    top_eigenpairs,
)
from fibec_ray.data.dense import DenseSet, DenseShard
from fibec_ray.data.encoded import ArrayShard
from fibec_ray.data.examples import Points
from fibec_ray.likelihoods import Normal, softmax_factor
from fibec_ray.model_types import Batch, Outputs, Work
from fibec_ray.models.alone import Alone
from fibec_ray.models.backbone import prepare
from fibec_ray.models.net_model import NetModel
from fibec_ray.models.nets import Cnn, Mlp
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.tensors import clone

NUM = 6


@pytest.fixture
def shard() -> ArrayShard:
    """Samples of 3 to 7 tokens: any batch of them is padded."""
    rng = np.random.default_rng(0)
    return shard_of([rng.integers(1, 60, length).tolist() for length in (7, 3, 5, 3, 6, 4)], [0, 1, 1, 1, 0, 0])


def tiny(config: dict[str, Any], head: Any, num_classes: int) -> TorchModel:
    """B as after some training, so that gradients reach A."""
    spec = Backbone(init="random", config={**config, "vocab_size": 60}, tokenizer="minilm", head=head)
    words = range(5, 5 + num_classes) if head.endswith("lm") else None
    folder = prepare(spec, 0, num_classes, Path(os.environ["FIBEC_RAY_CACHE"]))
    model = TorchModel(ModelSpec(spec, Lora(r=4, alpha=8), classes(num_classes, words), 0), folder)
    model.train(False)
    rng = torch.Generator().manual_seed(1)
    model.load({n: 0.1 * torch.randn(p.shape, generator=rng) for n, p in model.trainable.items() if "lora_B" in n})
    return model


def by_layer(model: TorchModel) -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    for name in model.trainable:
        blocks.setdefault(str(model.layer_of(name)), []).append(name)
    return blocks


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def softmax_curvature(scores: Tensor) -> Tensor:
    """S = diag(p) - p p^T, (C, C) float64, of the scores (C,) of one sample."""
    p = scores.double().softmax(0)
    return torch.diag(p) - torch.outer(p, p)


def dense(model: Any, shard: Any, rows: Tensor, names: list[str]) -> Tensor:
    """The oracle: (1/N) sum_i J_i^T S_i J_i, (p, p) float64, with J_i row by row and without padding."""
    size = sum(model.trainable[name].numel() for name in names)
    total = torch.zeros(size, size, dtype=torch.float64)
    for row in rows:
        out = model.forward(shard.batch(row.view(1)))
        scores = out.scores[0]
        tensors = [model.trainable[name] for name in names]
        jacobian = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(z, tensors, retain_graph=True)]).double()
                for z in scores
            ]
        )
        normal = isinstance(out.likelihood, Normal)
        s = torch.eye(len(scores)).double() if normal else softmax_curvature(scores.detach())
        total += jacobian.T @ s @ jacobian
    return total / len(rows)


def flat(pairs: Eigenpairs) -> Tensor:
    """U, (p, r) float64."""
    return torch.cat([value.double().flatten(0, -2) for value in pairs.vectors.values()])


def rebuilt(pairs: Eigenpairs) -> Tensor:
    u = flat(pairs)
    return u * pairs.values.double() @ u.T


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """In the Frobenius norm, relative to the expected."""
    assert float((found - expected).norm()) < tolerance * float(expected.norm())


# --- the factor of S


@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_the_factor_times_its_transpose_is_the_curvature_of_the_softmax(num_classes: int, spread: float) -> None:
    """E17: S = L L^T, with C - 1 columns; a spread of 10 gives probabilities of nearly 0 and 1."""
    scores = spread * torch.randn(5, num_classes, generator=rng())
    factor = softmax_factor(scores)
    assert factor.shape == (5, num_classes, num_classes - 1)
    expected = torch.stack([softmax_curvature(row) for row in scores])
    torch.testing.assert_close((factor @ factor.mT).double(), expected, rtol=0, atol=3e-7)


def test_two_classes_have_one_column_by_hand() -> None:
    """sqrt(p (1 - p)) (1, -1) up to its sign, here for p = 1/4."""
    (column,) = softmax_factor(torch.tensor([[0.0, float(np.log(3))]]))[0].T
    torch.testing.assert_close(column, torch.tensor([1.0, -1.0]) * (3 / 16) ** 0.5)


# --- columns and eigenpairs of models


MODELS = {
    "encoder, our head, C=3": (TINY_BERT, "mean_pool", 3),
    "encoder, our head, C=2": (TINY_BERT, "mean_pool", 2),
    "decoder, verbaliser, C=3": (TINY_LLAMA, "causal_lm", 3),
    "encoder, verbaliser, C=2": (TINY_BERT, "masked_lm", 2),
}
each_model = pytest.mark.parametrize(("config", "head", "num_classes"), MODELS.values(), ids=MODELS)


@each_model
def test_columns_and_their_eigenpairs_are_those_of_the_dense_matrix(
    config: Any, head: str, num_classes: int, shard: ArrayShard
) -> None:
    """E17: as many eigenpairs as H has rank give back H; fewer are the largest. In every block."""
    model = tiny(config, head, num_classes)
    rows, blocks = torch.arange(NUM), by_layer(model)
    full, few = (top_eigenpairs(model, shard, rows, blocks, rank, rng()) for rank in (100, 2))
    assert set(full) == set(blocks)
    for block, names in blocks.items():
        h = dense(model, shard, rows, names)
        values, vectors = torch.linalg.eigh(h)
        assert_near(rebuilt(full[block]), h, 1e-5)
        assert len(full[block].values) <= NUM * (num_classes - 1)
        torch.testing.assert_close(few[block].values.double(), values.flip(0)[:2], rtol=1e-5, atol=0)
        overlaps = (flat(few[block]) * vectors.flip(1)[:, :2]).sum(0).abs()
        torch.testing.assert_close(overlaps, torch.ones_like(overlaps), rtol=0, atol=1e-4)


@each_model
@pytest.mark.parametrize("way", ["gram", "subspace"])
def test_vectors_are_orthonormal_and_values_positive_and_descending(
    config: Any, head: str, num_classes: int, way: Way, shard: ArrayShard
) -> None:
    """E17: U^T U = I, lam > 0."""
    model = tiny(config, head, num_classes)
    for pairs in top_eigenpairs(model, shard, torch.arange(NUM), by_layer(model), 8, rng(), way).values():
        u, num = flat(pairs), len(pairs.values)
        assert 1 <= num <= 8 and bool((pairs.values > 0).all()) and bool((pairs.values.diff() <= 0).all())
        torch.testing.assert_close(u.T @ u, torch.eye(num, dtype=torch.float64), rtol=0, atol=2e-6)


def test_vectors_have_the_shapes_of_their_tensors(shard: ArrayShard) -> None:
    model = tiny(TINY_BERT, "mean_pool", 3)
    pairs = top_eigenpairs(model, shard, torch.arange(NUM), {"x": list(model.trainable)}, 5, rng())["x"]
    assert {n: tuple(v.shape) for n, v in pairs.vectors.items()} == {
        name: (*p.shape, 5) for name, p in model.trainable.items()
    }
    assert pairs.values.dtype == torch.float32 and all(v.dtype == torch.float32 for v in pairs.vectors.values())


def test_more_samples_than_are_walked_at_once_are_walked_in_groups() -> None:
    """Of mixed lengths, some of the samples left out, in any order."""
    generator = np.random.default_rng(1)
    shard = shard_of([generator.integers(1, 60, int(n)).tolist() for n in generator.integers(3, 9, CHUNK + 6)])
    rows = torch.randperm(shard.num_samples, generator=rng())[: CHUNK + 3]
    model = tiny(TINY_BERT, "mean_pool", 2)
    names = by_layer(model)["1"]
    for way in ("gram", "subspace"):
        (pairs,) = top_eigenpairs(model, shard, rows, {"x": names}, 40, rng(), way).values()  # type: ignore[arg-type]
        assert_near(rebuilt(pairs), dense(model, shard, rows, names), 1e-5)


def test_blocks_do_not_see_each_other_and_no_blocks_cost_nothing(shard: ArrayShard) -> None:
    model = tiny(TINY_BERT, "mean_pool", 3)
    blocks, rows = by_layer(model), torch.arange(NUM)
    together, alone = (top_eigenpairs(model, shard, rows, asked, 4, rng()) for asked in (blocks, {"1": blocks["1"]}))
    assert torch.equal(together["1"].values, alone["1"].values)
    model.work = Work()
    assert top_eigenpairs(model, shard, rows, {}, 4, rng()) == {} and model.work.flops == 0


def test_at_the_start_a_has_no_curvature(shard: ArrayShard) -> None:
    """B = 0 lets no gradient through to A: its rows of U are exactly 0."""
    model = tiny(TINY_BERT, "mean_pool", 3)
    model.load({name: torch.zeros(p.shape) for name, p in model.trainable.items() if "lora_B" in name})
    for pairs in top_eigenpairs(model, shard, torch.arange(NUM), by_layer(model), 8, rng()).values():
        assert len(pairs.values) and all(bool(v.any()) != ("lora_A" in name) for name, v in pairs.vectors.items())
    only_a = {"a": [name for name in model.trainable if "lora_A" in name]}
    for way in ("gram", "subspace"):
        pairs = top_eigenpairs(model, shard, torch.arange(NUM), only_a, 8, rng(), way)["a"]  # type: ignore[arg-type]
        assert len(pairs.values) == 0 and all(v.shape[-1] == 0 for v in pairs.vectors.values())


def test_it_leaves_the_model_as_it_was(shard: ArrayShard) -> None:
    model = tiny(TINY_BERT, "mean_pool", 3)
    before = clone(model.read())
    top_eigenpairs(model, shard, torch.arange(NUM), by_layer(model), 4, rng(), "subspace")
    assert all(torch.equal(value, before[name]) for name, value in model.read().items())
    assert all(p.grad is None for p in model.trainable.values())


# --- a model whose Hessian is the Gauss-Newton matrix


class Linear(Alone):
    """Softmax regression on (B, S) token ids: what `LocalModel` asks of a model whose curvature is taken."""

    def __init__(self, weight: Tensor):
        linear = nn.Linear(weight.shape[1], len(weight))
        linear.weight.data.copy_(weight)
        self.holders: dict[str, nn.Module] = {"x": linear}
        self.trainable = {"x.weight": linear.weight, "x.bias": linear.bias}
        self.linear, self.work = linear, Work()

    def train(self, mode: bool) -> None:
        """No dropout."""

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        scores = self.linear(batch.inputs["input_ids"].float() / 2)
        self.work.flops += (2 if torch.is_grad_enabled() else 1) * scores.numel()
        self.work.backward_flops += scores.numel() if torch.is_grad_enabled() else 0
        return Outputs(nn.functional.cross_entropy(scores, batch.labels, reduction="none"), scores)


X = [[1, 2], [3, 1], [2, 4], [4, 1]]
LABELS = [0, 1, 1, 0]


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("way", ["gram", "subspace"])
def test_of_a_linear_model_it_is_the_hessian_of_the_loss(num_classes: int, way: Way) -> None:
    """E17, by central differences of the loss's gradient in float64; the labels cancel out."""
    weight = torch.tensor([[0.4, -0.2], [0.1, 0.3], [-0.5, 0.2]])[:num_classes]
    model, x, y = Linear(weight), torch.tensor(X).double() / 2, torch.tensor(LABELS)
    point = torch.cat([p.detach().flatten() for p in model.trainable.values()]).double()

    def gradient(values: Tensor) -> Tensor:
        w, b = values.split([2 * num_classes, num_classes])
        p = (x @ w.view(-1, 2).T + b).softmax(1) - nn.functional.one_hot(y, num_classes)
        return torch.cat([(p.T @ x).flatten(), p.sum(0)]) / len(x)

    h = 1e-5 * torch.eye(len(point), dtype=torch.float64)
    hessian = torch.stack([(gradient(point + e) - gradient(point - e)) / 2e-5 for e in h])
    blocks = {"all": list(model.trainable)}
    pairs = top_eigenpairs(model, shard_of(X, LABELS), torch.arange(4), blocks, 20, rng(), way)["all"]  # type: ignore
    assert_near(rebuilt(pairs), hessian, 1e-5)


NETS = {
    "regression, mlp": (Mlp(hidden=(5, 4)), (2,), 1),
    "regression, linear": (Mlp(hidden=()), (4,), 1),
    "equation, mlp": (Mlp(hidden=(5, 4)), (4,), 1),
    "classes, mlp": (Mlp(hidden=(6,), activation="relu"), (1, 4, 4), 3),
    "classes, cnn": (Cnn(channels=(2, 3), activation="tanh"), (1, 4, 4), 3),
}


def net_and_shard(case: str) -> tuple[NetModel, DenseShard]:
    spec, shape, num_scores = NETS[case]
    draws = np.random.default_rng(0)
    values = draws.normal(size=NUM).astype(np.float32) if num_scores == 1 else None
    points = Points(draws.normal(size=(NUM, *shape)).astype(np.float32), np.array([0, 1, 2, 2, 1, 0]), values)
    answers = VALUES if num_scores == 1 else classes(num_scores)
    if case.startswith("equation"):
        answers = answers.model_copy(update={"readout": "operator"})
    return NetModel(spec, shape, answers, seed=0), DenseSet.of(points).shard(np.arange(NUM))


@pytest.mark.parametrize("way", ["gram", "subspace"])
@pytest.mark.parametrize("case", NETS)
def test_networks_from_scratch_have_the_dense_matrix(case: str, way: Way) -> None:
    """S = I in a regression; one block over all weights, and blocks of their own."""
    model, shard = net_and_shard(case)
    names = list(model.trainable)
    for blocks in ({"all": names}, {name: [name] for name in names}):
        found = top_eigenpairs(model, shard, torch.arange(NUM), blocks, 200, rng(), way)
        for block, inside in blocks.items():
            assert_near(rebuilt(found[block]), dense(model, shard, torch.arange(NUM), inside), 1e-5)


def test_in_a_linear_regression_it_is_the_mean_of_the_inputs_squared() -> None:
    """H = X^T X / N, whatever the values, and the hessian of half the mean squared error."""
    model, shard = net_and_shard("regression, linear")
    pairs = top_eigenpairs(model, shard, torch.arange(NUM), {"all": list(model.trainable)}, 9, rng())["all"]
    x = torch.cat([shard.batch(torch.arange(NUM)).inputs["features"], torch.ones(NUM, 1)], 1).double()
    assert_near(rebuilt(pairs), x.T @ x / NUM, 1e-6)


@pytest.mark.parametrize("case", NETS)
def test_the_expected_fisher_information_is_its_diagonal(case: str) -> None:
    """Of both likelihoods; and a regression's drawn values have it as their mean."""
    model, shard = net_and_shard(case)
    names = list(model.trainable)
    scan = FisherScan(model, shard, [torch.arange(NUM)], names, rng())
    expected = dense(model, shard, torch.arange(NUM), names).diagonal()
    found = scan.read("expected", "all").diagonal
    torch.testing.assert_close(torch.cat([found[n].flatten() for n in names]).double(), expected, rtol=1e-4, atol=1e-7)
    if shard.labels.is_floating_point():
        many = shard_many(shard, 20_000)
        drawn = FisherScan(model, many, [torch.arange(many.num_samples)], names, rng()).read("sampled", "all").diagonal
        far = (torch.cat([drawn[n].flatten() for n in names]).double() - expected).norm()
        assert float(far) < 0.05 * float(expected.norm())


def shard_many(shard: DenseShard, num: int) -> DenseShard:
    """The same samples over and over."""
    batch = shard.batch(torch.arange(num) % shard.num_samples)
    points = Points(batch.inputs["features"].numpy(), np.zeros(num, np.int64), batch.labels.numpy())
    return DenseSet.of(points).shard(np.arange(num))


@pytest.mark.parametrize(("way", "passes"), [("gram", 1), ("subspace", ggn.POWERS + 1)])
def test_work_counts_every_backward_pass(way: Way, passes: int) -> None:
    """4 samples, 3 classes: 12 a pass, so 12 forward and 2 * 12 backward; and 3 to ask one sample for C."""
    model = Linear(torch.zeros(3, 2))
    top_eigenpairs(model, shard_of(X, LABELS), torch.arange(4), {"w": ["x.weight"]}, 2, rng(), way)  # type: ignore
    assert model.work.flops == 3 + 36 * passes


def test_gradients_of_single_samples_by_hand() -> None:
    """At w = 0, C = 2: p = 1/2, and the column of a sample is +-(x, -x) / 2."""
    model = Linear(torch.zeros(2, 2))
    model.linear.bias.data.zero_()
    (found,) = sample_gradients(model, shard_of(X, LABELS), torch.arange(4), ["x.weight"])  # type: ignore[arg-type]
    x = torch.tensor(X) / 2
    torch.testing.assert_close(found["x.weight"], torch.stack([x, -x], 1) / 2)


# --- subspace iteration


def columns_with_spectrum(values: Tensor) -> Tensor:
    """G^T (m, p) with G G^T of these eigenvalues, p = 2 m."""
    m = len(values)
    left = torch.linalg.qr(torch.randn(m, m, generator=rng(1), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(2 * m, m, generator=rng(2), dtype=torch.float64)).Q
    return left * values.sqrt() @ right.T


def test_the_error_of_subspace_iteration_falls_with_the_number_of_powers() -> None:
    """E17: towards what is left of H beyond its r largest eigenpairs, on a spectrum that decays slowly (1/k)."""
    g = columns_with_spectrum(1 / torch.arange(1, 41, dtype=torch.float64))
    rank, start = 5, torch.randn(80, 8, generator=rng(), dtype=torch.float64)
    exact_u, exact = gram_eigenpairs(g, rank)
    errors = []
    for powers in (0, 1, 2, 4, 8, 40):
        (u, values) = subspace_eigenpairs([{"x": g[:15]}, {"x": g[15:]}], {"x": start}, rank, powers)["x"]
        assert bool((values <= exact * (1 + 1e-12)).all())  # Ritz values never exceed
        errors.append(float((u @ u.T - exact_u @ exact_u.T).norm()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 1 and errors[-1] < 1e-6


def test_eigenvalues_of_the_gram_matrix_are_those_of_the_spectrum() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 1e-10], dtype=torch.float64)
    u, found = gram_eigenpairs(columns_with_spectrum(values), 4)
    torch.testing.assert_close(found, values[:3])  # the last is below the floor
    torch.testing.assert_close(u.T @ u, torch.eye(3, dtype=torch.float64))


def test_the_way_is_chosen_by_memory(shard: ArrayShard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told apart by what they cost; they agree."""
    model = tiny(TINY_BERT, "mean_pool", 3)
    needed = 4 * NUM * 2 * sum(p.numel() for p in model.trainable.values())

    def found(way: Way) -> tuple[dict[str, Eigenpairs], float]:
        model.work = Work()
        return top_eigenpairs(model, shard, torch.arange(NUM), by_layer(model), 4, rng(), way), model.work.flops

    (gram, gram_flops), (subspace, subspace_flops) = found("gram"), found("subspace")
    assert subspace_flops > 2.5 * gram_flops
    for block, pairs in subspace.items():
        torch.testing.assert_close(pairs.values, gram[block].values, rtol=1e-4, atol=0)
    for limit, flops in ((needed, gram_flops), (needed - 1, subspace_flops)):
        monkeypatch.setattr(ggn, "GRAM_BYTES", limit)
        assert found("auto")[1] == flops
