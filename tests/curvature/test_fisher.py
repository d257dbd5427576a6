"""Squared per-sample gradients against what they stand for: one backward pass per sample, by autograd (E1 to E5)."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import of_texts
from conftest import TINY_BERT, TINY_LLAMA, classes, shard_of
from torch import Tensor, nn

from fibec_ray.batch_facts import BatchFacts
from fibec_ray.curvature.fisher import Fisher, FisherScan, batch_squares, by_length, momentum
from fibec_ray.curvature.per_sample import catch
from fibec_ray.data.encoded import ArrayShard, EncodedSet
from fibec_ray.likelihoods import Label
from fibec_ray.model_types import Batch, Outputs, Work
from fibec_ray.models.alone import Alone
from fibec_ray.models.backbone import prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.curriculum.scored import batch_difficulties
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.tensors import Tensors

LENGTHS = [7, 3, 5, 3, 6, 4]
"""tokens per sample: any batch of them is padded"""
ALL = torch.arange(len(LENGTHS))


@pytest.fixture
def shard() -> ArrayShard:
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.integers(1, 60, length) for length in LENGTHS]).astype(np.int32)
    labels, answer_at = np.array([0, 1, 2, 2, 1, 0]), np.array(LENGTHS, dtype=np.int32) - 1
    texts = np.ones(len(tokens), np.uint8)
    return EncodedSet(tokens, np.cumsum([0, *LENGTHS]), labels, answer_at, None, 0, texts).shard(np.arange(6))


def tiny(config: dict[str, Any], head: Any, spec: dict[str, Any] | None = None, **peft: Any) -> TorchModel:
    backbone = Backbone(
        init="random", config={**config, "vocab_size": 60}, tokenizer="minilm", head=head, **(spec or {})
    )
    words = (5, 6, 7) if head.endswith("lm") else None
    folder = prepare(backbone, 0, 3, Path(os.environ["FIBEC_RAY_CACHE"]))
    model = TorchModel(ModelSpec(backbone, Lora(**{"r": 4, "alpha": 8, **peft}), classes(3, words), 0), folder)
    model.train(False)
    return model


def away_from_zero(model: TorchModel) -> TorchModel:
    """B as after some training, so that gradients reach A."""
    rng = torch.Generator().manual_seed(1)
    model.load({n: 0.1 * torch.randn(p.shape, generator=rng) for n, p in model.trainable.items() if "lora_B" in n})
    return model


def scan_of(
    model: TorchModel, shard: ArrayShard, batches: Sequence[Tensor], names: Collection[str] | None = None
) -> FisherScan:
    rng = torch.Generator().manual_seed(0)
    return FisherScan(model, shard, batches, list(model.trainable) if names is None else names, rng)


def fisher_of(model: TorchModel, shard: ArrayShard, batches: Sequence[Tensor], label: Label = "observed") -> Fisher:
    """Of all trainable tensors, a head included."""
    return scan_of(model, shard, batches).read(label, "all")


def one_by_one(model: TorchModel, shard: ArrayShard) -> Tensors:
    """The oracle: squares (n, *shape) from a loop of single samples, so without padding."""
    rows = []
    for row in range(shard.num_samples):
        loss = model.forward(shard.batch(torch.tensor([row]))).losses.sum()
        rows.append([grad.square() for grad in torch.autograd.grad(loss, list(model.trainable.values()))])
    return {name: torch.stack(values) for name, values in zip(model.trainable, zip(*rows, strict=True), strict=True)}


def assert_close(found: Tensors, expected: Tensors) -> None:
    """To 1e-6 of the size that matrices of the kind have in this model (float32 keeps 1e-7 of a number)."""
    assert found.keys() == expected.keys()
    size: dict[str, float] = {}
    for name, value in expected.items():
        assert found[name].shape == value.shape and value.any(), name
        size[leaf(name)] = max(size.get(leaf(name), 0.0), float(value.norm()))
    for name, value in expected.items():
        assert float((found[name] - value).norm()) < 1e-6 * size[leaf(name)], name


def leaf(name: str) -> str:
    """`base_model...query.lora_A.weight` -> `lora_A.weight`"""
    return ".".join(name.rsplit(".", 2)[-2:])


def leaves(names: Any) -> set[str]:
    return {leaf(name) for name in names}


LORA = {"lora_A.weight", "lora_B.weight"}
MODELS = {
    "encoder with our head": (TINY_BERT, "mean_pool", {}, LORA | {"head.weight", "head.bias"}),
    "encoder, rslora": (TINY_BERT, "mean_pool", {"use_rslora": True}, LORA | {"head.weight", "head.bias"}),
    "encoder with its own head": (TINY_BERT, "model", {}, LORA | {"classifier.weight", "classifier.bias"}),
    "encoder with a verbaliser": (TINY_BERT, "masked_lm", {}, LORA),
    "decoder with a verbaliser": (TINY_LLAMA, "causal_lm", {}, LORA),
    "decoder, rslora": (TINY_LLAMA, "causal_lm", {"use_rslora": True}, LORA),
    "every Linear adapted": (TINY_BERT, "masked_lm", {"target_modules": ("query", "key", "value", "dense")}, LORA),
}
each_model = pytest.mark.parametrize(("config", "head", "peft", "kinds"), MODELS.values(), ids=MODELS)


@each_model
def test_squares_of_a_padded_batch_are_those_of_single_samples(
    config: Any, head: str, peft: Any, kinds: set[str], shard: ArrayShard
) -> None:
    """E1, diagonals: lora_A, lora_B, weight and bias of a head."""
    model = away_from_zero(tiny(config, head, **peft))
    assert leaves(model.trainable) == kinds
    squares, losses = batch_squares(model, shard, ALL, list(model.trainable))
    assert_close(squares, one_by_one(model, shard))
    alone = torch.cat([model.forward(shard.batch(row.view(1))).losses for row in ALL])
    torch.testing.assert_close(losses, alone.detach(), rtol=1e-5, atol=1e-6)


@each_model
def test_a_scan_has_the_trace_of_each_sample_and_the_mean_diagonal(
    config: Any, head: str, peft: Any, kinds: set[str], shard: ArrayShard
) -> None:
    """E1, traces: ||g_i||^2 over all tensors; the diagonal is (1/n) sum_i g_i^2."""
    model = away_from_zero(tiny(config, head, **peft))
    scan = fisher_of(model, shard, list(torch.tensor([5, 0, 2, 3, 1, 4]).split(4)))
    squares = one_by_one(model, shard)
    traces = torch.stack([value.flatten(1).sum(1) for value in squares.values()]).sum(0)
    torch.testing.assert_close(scan.traces, traces, rtol=1e-5, atol=0)
    assert float((scan.traces - traces).norm() / traces.norm()) < 1e-6
    assert_close(scan.diagonal, {name: value.mean(0) for name, value in squares.items()})


class Single(nn.Module):
    """One sample through a TorchModel, as torch.func wants it."""

    def __init__(self, model: TorchModel):
        super().__init__()
        self.peft_model, self.run = model.peft_model, model.forward

    def forward(self, *sample: Tensor) -> Tensor:
        batch = of_texts(*(value.unsqueeze(0) for value in sample))
        # torch.func hides the mask's values.
        return self.run(replace(batch, known=BatchFacts(frozenset({"attention_mask"}), None))).losses[0]


@pytest.mark.parametrize("head", ["causal_lm", "model"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_squares_are_those_of_vmapped_gradients(head: str, use_rslora: bool, shard: ArrayShard) -> None:
    """E1, by torch.func. On the decoder with eager attention only: the other models branch on mask values."""
    model = away_from_zero(tiny(TINY_LLAMA, head, {"attention": "eager"}, use_rslora=use_rslora))
    single, batch = Single(model), shard.batch(ALL)
    names = {id(p): name for name, p in model.trainable.items()}
    params = {name: p.detach() for name, p in single.named_parameters() if id(p) in names}
    saved = {name: names[id(p)] for name, p in single.named_parameters() if id(p) in names}

    def loss(values: Tensors, *sample: Tensor) -> Tensor:
        return torch.func.functional_call(single, values, sample)

    ids, mask, answer_at = (batch.inputs[name] for name in ("input_ids", "attention_mask", "answer_at"))
    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0, 0))(params, ids, mask, batch.labels, answer_at)
    squares, _ = batch_squares(model, shard, ALL, list(model.trainable))
    assert_close(squares, {saved[name]: grad.square() for name, grad in grads.items()})


@pytest.mark.parametrize("config", [TINY_BERT, TINY_LLAMA], ids=["encoder", "decoder"])
def test_traces_are_those_of_the_ghost_form(config: Any, shard: ArrayShard) -> None:
    """E1: ||G_i||^2 = <E E^T, A A^T>, with no gradient of a weight formed."""
    model = away_from_zero(tiny(config, "model"))
    names = [name for name in model.trainable if "lora_" in name]
    squares, _ = batch_squares(model, shard, ALL, names)
    with catch(model.holders, names, len(ALL)) as caught:
        losses = model.forward(shard.batch(ALL)).losses
    grads = torch.autograd.grad(losses.sum(), caught.tensors)
    ghosts = {}
    for name, e in zip(caught.modules, grads, strict=True):
        a = caught.inputs[name]
        ghosts[f"{name}.weight"] = ((e @ e.transpose(1, 2)) * (a @ a.transpose(1, 2))).sum((1, 2))
    traces = {name: value.sum((1, 2)) for name, value in squares.items()}
    for name, ghost in ghosts.items():
        torch.testing.assert_close(traces[name], ghost, rtol=1e-5, atol=1e-6 * float(ghost.max()))


def test_doubling_alpha_at_the_start_makes_squares_of_b_four_times_as_large(shard: ArrayShard) -> None:
    """E1: s = alpha / r multiplies the gradient of B once, and B = 0 keeps the forward pass as it is. Exactly."""
    single, double = (tiny(TINY_BERT, "mean_pool", alpha=alpha) for alpha in (8, 16))
    names = [name for name in single.trainable if "lora_B" in name]
    (once, losses), (twice, same) = (batch_squares(model, shard, ALL, names) for model in (single, double))
    assert torch.equal(losses, same)
    assert all(torch.equal(4 * once[name], twice[name]) and once[name].any() for name in names)


def test_rslora_scales_by_the_root_of_the_rank(shard: ArrayShard) -> None:
    """r = 4: s = 8 / 2 in place of 8 / 4, so squares of B are four times as large at the start."""
    plain, rooted = (tiny(TINY_BERT, "mean_pool", use_rslora=use) for use in (False, True))
    names = [name for name in plain.trainable if "lora_B" in name]
    (once, _), (twice, _) = (batch_squares(model, shard, ALL, names) for model in (plain, rooted))
    assert all(torch.equal(4 * once[name], twice[name]) for name in names)


@each_model
def test_at_the_start_a_has_no_fisher_information_and_b_has(
    config: Any, head: str, peft: Any, kinds: set[str], shard: ArrayShard
) -> None:
    """E2: B = 0 lets no gradient through to A."""
    model = tiny(config, head, **peft)
    diagonal = fisher_of(model, shard, [ALL]).diagonal
    for name, value in diagonal.items():
        assert bool(value.any()) != ("lora_A" in name), name


def test_a_mean_over_the_batch_would_be_wrong_by_its_size_squared(shard: ArrayShard) -> None:
    """E2, why the loss is summed: with B = 4, traces of the mean are 16 times too small."""
    model = away_from_zero(tiny(TINY_BERT, "mean_pool"))
    rows, names = torch.arange(4), list(model.trainable)
    with catch(model.holders, names, len(rows)) as caught:
        losses = model.forward(shard.batch(rows)).losses
    wrong = caught.squares(torch.autograd.grad(losses.mean(), caught.tensors))
    squares, _ = batch_squares(model, shard, rows, names)
    for name in names:
        torch.testing.assert_close(16 * wrong[name], squares[name], rtol=1e-5, atol=0)


def test_difficulty_adds_up_over_disjoint_batches(shard: ArrayShard) -> None:
    """E3: batches of 2 and 4 samples are together as hard as the batch of all 6, however they were scanned."""
    model = away_from_zero(tiny(TINY_BERT, "mean_pool"))
    apart, together = list(ALL.split([2, 4])), [ALL]
    parts, whole = (fisher_of(model, shard, batches) for batches in (apart, together))
    sum_of_parts = batch_difficulties(parts.traces, apart, "sum").sum()
    torch.testing.assert_close(sum_of_parts, batch_difficulties(whole.traces, together, "sum")[0], rtol=1e-5, atol=0)
    assert_close(parts.diagonal, whole.diagonal)


def test_the_order_of_samples_in_a_batch_means_nothing(shard: ArrayShard) -> None:
    """E3: each sample keeps its own squares wherever it stands in the batch."""
    model = away_from_zero(tiny(TINY_BERT, "mean_pool"))
    shuffled = torch.tensor([4, 1, 5, 0, 3, 2])
    squares, losses = batch_squares(model, shard, ALL, list(model.trainable))
    other, other_losses = batch_squares(model, shard, shuffled, list(model.trainable))
    assert_close(other, {name: value[shuffled] for name, value in squares.items()})
    torch.testing.assert_close(other_losses, losses[shuffled])


def test_a_sample_that_is_there_twice_counts_twice(shard: ArrayShard) -> None:
    """E3: for the difficulty of the batch, and for the diagonal, whose n is then one larger."""
    model = away_from_zero(tiny(TINY_BERT, "mean_pool"))
    once, twice = (fisher_of(model, shard, [rows]) for rows in (torch.tensor([0, 1]), torch.tensor([0, 0, 1])))
    alone = fisher_of(model, shard, [torch.tensor([0])])
    assert torch.allclose(
        batch_difficulties(twice.traces, [torch.tensor([0, 0, 1])], "sum"),
        batch_difficulties(once.traces, [torch.tensor([0, 1])], "sum") + alone.traces[0],
        rtol=1e-5,
    )
    assert_close(
        twice.diagonal, {name: (2 * value + alone.diagonal[name]) / 3 for name, value in once.diagonal.items()}
    )


class Logistic(Alone):
    """Softmax regression on (B, S) token ids, scores x W^T with W (C, S); the loss is that of the label.

    A small model of its own that implements what `LocalModel` asks of a scanned model.
    """

    def __init__(self, weight: Tensor):
        linear = nn.Linear(weight.shape[1], len(weight), bias=False)
        linear.weight.data.copy_(weight)
        self.holders: dict[str, nn.Module] = {"lora_B": linear}
        self.trainable: dict[str, nn.Parameter] = {"lora_B.weight": linear.weight}
        self.linear, self.work = linear, Work()

    def is_adapter(self, name: str) -> bool:
        return True

    def train(self, mode: bool) -> None:
        """No dropout."""

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        scores = self.linear(batch.inputs["input_ids"].float())
        self.work.flops += 2 * scores.numel()  # a forward and a backward pass
        self.work.backward_flops += scores.numel()
        return Outputs(nn.functional.cross_entropy(scores, batch.labels, reduction="none"), scores)


X = torch.tensor([[1, 2], [3, 1], [2, 0], [0, 1]])
WEIGHTS = torch.tensor([[0.4, -0.2], [0.1, 0.3], [-0.5, 0.2]])


def logistic_fisher(label: Label, weights: Tensor = WEIGHTS, seed: int = 0, copies: int = 1) -> tuple[Fisher, float]:
    """Fisher information and flops on X with labels 0, 1, 1, 0."""
    model, shard = Logistic(weights), shard_of(X.repeat(copies, 1).tolist(), [0, 1, 1, 0] * copies)
    rng = torch.Generator().manual_seed(seed)
    scan = FisherScan(model, shard, [torch.arange(4 * copies)], ["lora_B.weight"], rng)  # type: ignore[arg-type]
    return scan.read(label), model.work.flops


def expected_by_hand(weights: Tensor) -> Tensor:
    """E4: sum_y p_y (p - onehot_y)_c^2 x_j^2 = p_c (1 - p_c) x_j^2, (n, C, S)."""
    p = (X.float() @ weights.T).softmax(1)
    return (p * (1 - p)).unsqueeze(2) * X.float().square().unsqueeze(1)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_expected_fisher_of_softmax_regression_is_the_closed_form(num_classes: int) -> None:
    """E4: X^T diag(p (1 - p)) X / n on the diagonal, whatever the labels."""
    found, _ = logistic_fisher("expected", WEIGHTS[:num_classes])
    squares = expected_by_hand(WEIGHTS[:num_classes])
    torch.testing.assert_close(found.diagonal["lora_B.weight"], squares.mean(0))
    torch.testing.assert_close(found.traces, squares.sum((1, 2)))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, to forget an earlier peak")
def test_ten_thousand_samples_take_no_more_memory_than_a_hundred() -> None:
    """Peak of the process within 10 %: what a scan holds is bounded by one batch, but for two numbers a sample."""
    model, rng = tiny(TINY_BERT, "mean_pool"), np.random.default_rng(0)

    def peak_of(num_samples: int) -> int:
        shard = shard_of(rng.integers(1, 60, (num_samples, 4)).tolist())
        Path("/proc/self/clear_refs").write_text("5")
        fisher_of(model, shard, torch.arange(num_samples).split(32))
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1])

    peak_of(100)
    assert peak_of(10_000) < 1.1 * peak_of(100)


def test_sampled_labels_give_the_expected_fisher_in_the_mean() -> None:
    """E4: over 4,000 draws for each sample, within five standard errors; never the same as one draw."""
    found, _ = logistic_fisher("sampled", copies=4000)
    p, x = (X.float() @ WEIGHTS.T).softmax(1), X.float().square().sum(1, keepdim=True)
    traces = ((torch.eye(3) - p.unsqueeze(1)).square().sum(2)) * x  # (4, C): the trace for each label
    mean = (p * traces).sum(1)
    error = ((p * traces.square()).sum(1) - mean.square()).sqrt() / 4000**0.5
    assert ((found.traces.view(4000, 4).mean(0) - mean).abs() <= 5 * error + 1e-6).all()
    assert found.traces.view(4000, 4)[:, 0].unique().numel() == 3


def test_a_drawn_label_depends_on_the_generator_alone(shard: ArrayShard) -> None:
    """Not on the batches that a sample is scanned with."""
    model = away_from_zero(tiny(TINY_BERT, "mean_pool"))
    whole, split = fisher_of(model, shard, [ALL], "sampled"), fisher_of(model, shard, list(ALL.split(2)), "sampled")
    torch.testing.assert_close(whole.traces, split.traces, rtol=1e-4, atol=0)
    other = FisherScan(model, shard, [ALL], list(model.trainable), torch.Generator().manual_seed(1)).read(
        "sampled", "all"
    )
    assert not torch.allclose(other.traces, whole.traces, rtol=1e-2)


@pytest.mark.parametrize(("config", "head"), [(TINY_BERT, "mean_pool"), (TINY_LLAMA, "causal_lm")])
def test_the_expected_fisher_is_the_mean_over_labels_of_single_samples(
    config: Any, head: str, shard: ArrayShard
) -> None:
    """By one backward pass for each sample and class, through p restricted to the classes; losses are the observed."""
    model = away_from_zero(tiny(config, head))
    expected = {name: torch.zeros(6, *p.shape) for name, p in model.trainable.items()}
    for row in range(6):
        log_p = model.forward(shard.batch(torch.tensor([row]))).scores.log_softmax(1)[0]
        for value in log_p:
            grads = torch.autograd.grad(value, list(model.trainable.values()), retain_graph=True)
            for name, grad in zip(model.trainable, grads, strict=True):
                expected[name][row] += value.detach().exp() * grad.square()
    squares, losses = batch_squares(model, shard, ALL, list(model.trainable), "expected")
    assert_close(squares, expected)
    torch.testing.assert_close(losses, batch_squares(model, shard, ALL, list(model.trainable))[1])


def test_work_counts_every_backward_pass() -> None:
    """Softmax over 3 classes and 4 samples: 12 a pass; one forward and one backward, or C = 3 backward passes."""
    assert [logistic_fisher(label)[1] for label in ("observed", "sampled", "expected")] == [24, 24, 48]


def test_constant_fisher_information_is_a_fixed_point_of_momentum() -> None:
    """E5. gamma = 0.9 on values that a float holds exactly enough: F stays within a rounding of F~."""
    constant = {"w": torch.tensor([0.25, 3.0, 0.0])}
    state: Tensors = {}
    for _ in range(20):
        state = momentum(state, constant, 0.9)
        torch.testing.assert_close(state["w"], constant["w"], rtol=1e-6, atol=0)


def test_momentum_zero_gives_the_last_and_one_the_first() -> None:
    """E5."""
    rounds = [{"w": torch.tensor([value])} for value in (1.0, 5.0, 2.0)]
    last: Tensors = {}
    first: Tensors = {}
    for new in rounds:
        last, first = momentum(last, new, 0.0), momentum(first, new, 1.0)
    assert (last["w"].item(), first["w"].item()) == (2.0, 1.0)


def test_momentum_by_hand() -> None:
    """E5: 1, then 0.75 * 1 + 0.25 * 5 = 2, then 0.75 * 2 + 0.25 * 2 = 2."""
    state: Tensors = {}
    found = []
    for value in (1.0, 5.0, 2.0):
        state = momentum(state, {"w": torch.tensor([value])}, 0.75)
        found.append(state["w"].item())
    assert found == [1.0, 2.0, 2.0]


def test_groups_of_like_length() -> None:
    shard = shard_of([[1] * length for length in (4, 1, 2, 4)])
    assert shard.lengths.tolist() == [4, 1, 2, 4]
    groups = by_length(shard, torch.tensor([3, 0, 2, 1]), 3)
    assert [group.tolist() for group in groups] == [[1, 2, 3], [0]]


def test_grouping_by_length_changes_no_result(shard: ArrayShard) -> None:
    """A scan regroups samples to save padding; each sample has the squares of its own batch as it stood."""
    model = away_from_zero(tiny(TINY_LLAMA, "causal_lm"))
    batches = list(torch.tensor([0, 1, 2, 3, 4, 5]).split(2))
    scan = fisher_of(model, shard, batches)
    assert [g.tolist() for g in by_length(shard, ALL, 2)] != [b.tolist() for b in batches]
    as_they_stood = [batch_squares(model, shard, rows, list(model.trainable)) for rows in batches]
    joined = {name: torch.cat([squares[name] for squares, _ in as_they_stood]) for name in model.trainable}
    assert_close(scan.diagonal, {name: value.mean(0) for name, value in joined.items()})
    traces = torch.stack([value.flatten(1).sum(1) for value in joined.values()]).sum(0)
    torch.testing.assert_close(scan.traces, traces, rtol=1e-5, atol=0)
    torch.testing.assert_close(scan.losses, torch.cat([losses for _, losses in as_they_stood]))


@pytest.mark.parametrize(("config", "head"), [(TINY_BERT, "mean_pool"), (TINY_LLAMA, "causal_lm")])
def test_a_bfloat16_base_gives_float32_squares(config: Any, head: str, shard: ArrayShard) -> None:
    """They are finite, and about those of the float32 base."""
    model, exact = (away_from_zero(tiny(config, head, {"dtype": dtype})) for dtype in ("bfloat16", "float32"))
    squares, losses = batch_squares(model, shard, ALL, list(model.trainable))
    assert losses.dtype == torch.float32 and losses.isfinite().all()
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in squares.values())
    scans = [fisher_of(m, shard, [ALL]) for m in (model, exact)]
    assert scans[0].traces.dtype == torch.float32
    torch.testing.assert_close(scans[0].traces, scans[1].traces, rtol=0.2, atol=0)


def test_in_float64_the_two_ways_differ_by_rounding_alone(shard: ArrayShard) -> None:
    """E1, each tensor to 1e-6 of its own size: what float32 forward passes blur."""
    model = away_from_zero(tiny(TINY_LLAMA, "model"))
    model.peft_model.double()
    squares, _ = batch_squares(model, shard, ALL, list(model.trainable))
    for name, value in one_by_one(model, shard).items():
        assert value.any() and float((squares[name] - value).norm() / value.norm()) < 1e-6, name


def test_a_scan_runs_when_first_asked_and_knows_only_its_rows(shard: ArrayShard) -> None:
    model = tiny(TINY_BERT, "mean_pool")
    scan = scan_of(model, shard, [torch.tensor([4, 1])])
    assert scan.found is None and model.work.num_tokens == 0
    fisher = scan.read()
    assert fisher.traces.isnan().tolist() == fisher.losses.isnan().tolist() == [True, False, True, True, False, True]
    assert model.work.num_tokens == 2 * 6  # both padded to the longer one
    assert leaves(fisher.diagonal) == LORA
    assert scan.read() is fisher is scan.found and model.work.num_tokens == 2 * 6
    assert leaves(scan.read(scope="all").diagonal) == LORA | {"head.weight", "head.bias"}
    assert model.work.num_tokens == 4 * 6


def test_scanning_leaves_the_model_as_it_was(shard: ArrayShard) -> None:
    model = away_from_zero(tiny(TINY_BERT, "mean_pool"))
    before = model.read()
    assert fisher_of(model, shard, [ALL]).traces.isfinite().all()
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.trainable.items())
    assert not any(module._forward_hooks for module in model.holders.values())
