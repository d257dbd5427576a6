"""Each likelihood against torch's distributions, all its labels one by one, and dense matrices made by autograd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, distributions, nn

from fibec_ray.answers import Answers
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.curvature.ggn import sample_gradients, top_eigenpairs
from fibec_ray.curvature.kfac import kronecker_factors
from fibec_ray.errors import ModelError
from fibec_ray.likelihoods import LIKELIHOODS, TOKEN_DRAWS, Bernoulli, Categorical, Label, Likelihood, Normal, Tokens
from fibec_ray.model_types import Batch, Outputs, Work
from fibec_ray.models.alone import Alone
from fibec_ray.responses import ResponseTokens
from fibec_ray.tensors import Tensors

NUM, WIDTH = 5, 2
COUNTS = (2, 1, 2, 2, 1)
"""Tags of each sample, with the likelihood `Tokens`."""
NUM_SCORES = {"categorical": 3, "normal": 1, "bernoulli": 3, "tokens": 3}
EXACT = ("categorical", "normal", "bernoulli")
each = pytest.mark.parametrize("name", NUM_SCORES)
each_exact = pytest.mark.parametrize("name", EXACT)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tags(rows: Tensor, targets: Tensor) -> ResponseTokens:
    """The likelihood of the samples at `rows`. targets: (B, WIDTH); only the first COUNTS of a row are used."""
    counts = torch.tensor(COUNTS)[rows % NUM]
    sample, column = (torch.arange(WIDTH) < counts.unsqueeze(1)).nonzero(as_tuple=True)
    return ResponseTokens(targets[sample, column], sample, column, counts, WIDTH)


def labels_of(name: str) -> Tensor:
    if name == "normal":
        return torch.randn(NUM, generator=rng(2))
    shape = {"categorical": (NUM,), "bernoulli": (NUM, 3), "tokens": (NUM, WIDTH)}[name]
    return torch.randint(0, 2 if name == "bernoulli" else 3, shape, generator=rng(2))


@dataclass
class Rows:
    """The same NUM samples over and over."""

    labels: Tensor
    num_samples: int = NUM
    x: Tensor = field(default_factory=lambda: torch.randn(NUM, WIDTH, 3, generator=rng(1)))

    @property
    def lengths(self) -> Tensor:
        return torch.ones(self.num_samples, dtype=torch.int64)

    def batch(self, rows: Tensor) -> Batch:
        return Batch({"features": self.x[rows % NUM], "rows": rows}, self.labels[rows % NUM])


class TwoLayers(Alone):
    """tanh(x W1 + b1) W2 + b2 for each of a sample's WIDTH positions; only `Tokens` has scores beyond the first."""

    def __init__(self, name: str):
        torch.manual_seed(0)
        self.name = name
        self.holders: dict[str, nn.Module] = {"first": nn.Linear(3, 2), "second": nn.Linear(2, NUM_SCORES[name])}
        self.trainable = {
            f"{prefix}.{n}": p for prefix, module in self.holders.items() for n, p in module.named_parameters()
        }
        self.work = Work()

    def train(self, mode: bool) -> None:
        """No dropout."""

    def is_adapter(self, name: str) -> bool:
        return True

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        states = self.holders["second"](self.holders["first"](batch.inputs["features"]).tanh())
        likelihood, scores = LIKELIHOODS[self.name], states[:, 0]
        made: Likelihood
        if likelihood is Tokens:
            response = tags(batch.inputs["rows"], batch.labels)
            made, scores = Tokens(response), states[response.sample, response.column]
        else:
            made = likelihood()
        return Outputs(made.losses(scores, batch.labels), scores, likelihood=made)


def flat(tensors: Any) -> Tensor:
    return torch.cat([value.flatten() for value in tensors]).double()


def of(model: TwoLayers, found: Tensors) -> Tensor:
    """In the order of the model's tensors, (p,) float64."""
    return flat(found[name] for name in model.trainable)


def alone(model: TwoLayers, shard: Rows, row: int) -> Outputs:
    return model.forward(shard.batch(torch.tensor([row])))


def jacobian(model: TwoLayers, scores: Tensor) -> Tensor:
    """(scores.numel(), p) float64, row by row."""
    tensors = list(model.trainable.values())
    return torch.stack([flat(torch.autograd.grad(s, tensors, retain_graph=True)) for s in scores.flatten()])


def every_label(out: Outputs) -> Iterator[tuple[Tensor, Likelihood]]:
    """All labels (1, ...) of one sample, and the likelihood that has them as its labels."""
    likelihood, (rows, num_scores) = out.likelihood, out.scores.shape
    if isinstance(likelihood, Categorical):
        yield from ((torch.tensor([c]), likelihood) for c in range(num_scores))
    elif isinstance(likelihood, Bernoulli):
        yield from ((torch.tensor([bits]), likelihood) for bits in product((0, 1), repeat=num_scores))
    elif isinstance(likelihood, Tokens):
        counts = likelihood.response.counts
        for found in product(range(num_scores), repeat=rows):
            response = ResponseTokens(torch.tensor(found), torch.zeros(rows).long(), torch.arange(rows), counts, WIDTH)
            yield torch.zeros(1, WIDTH).long(), Tokens(response)


def probability(out: Outputs, labels: Tensor, likelihood: Likelihood) -> float:
    """p(labels | scores). A mean over tokens is not the log of their joint probability, so that is taken apart."""
    losses = likelihood.losses(out.scores, labels)
    count = likelihood.num_tokens if likelihood.num_tokens is not None else torch.ones(1)
    return float((-losses.detach() * count).exp())


def expected_squares(model: TwoLayers, out: Outputs) -> Tensor:
    """E_y[(d log p(y | s))^2] of one sample, (p,) float64: over all labels one by one, or by quadrature."""
    tensors = list(model.trainable.values())
    if isinstance(out.likelihood, Normal):
        nodes, weights = np.polynomial.hermite_e.hermegauss(5)
        pairs: Any = [
            ((out.scores[:, 0] + float(node)).detach(), out.likelihood, weight / weights.sum())
            for node, weight in zip(nodes, weights, strict=True)
        ]
    else:
        pairs = [(labels, likelihood, probability(out, labels, likelihood)) for labels, likelihood in every_label(out)]
    assert sum(weight for *_, weight in pairs) == pytest.approx(1, abs=1e-5)
    total: Any = 0.0
    for labels, likelihood, weight in pairs:
        loss = likelihood.losses(out.scores, labels).sum()
        total = total + weight * flat(torch.autograd.grad(loss, tensors, retain_graph=True)).square()
    return total


def scanned(model: TwoLayers, shard: Rows, label: Label, seed: int = 3) -> Any:
    batches = list(torch.arange(shard.num_samples).split(2 if shard.num_samples == NUM else 1000))
    return FisherScan(model, shard, batches, list(model.trainable), rng(seed)).read(label)


# --- losses and predictions


@each
def test_losses_are_those_of_torchs_distributions(name: str) -> None:
    model, shard = TwoLayers(name), Rows(labels_of(name))
    out, y = model.forward(shard.batch(torch.arange(NUM))), labels_of(name)
    by_hand = {
        "categorical": lambda: -distributions.Categorical(logits=out.scores).log_prob(y),
        "normal": lambda: -distributions.Normal(out.scores[:, 0], 1.0).log_prob(y) - 0.5 * np.log(2 * np.pi),
        "bernoulli": lambda: -distributions.Bernoulli(logits=out.scores).log_prob(y.float()).sum(1),
    }
    if name != "tokens":
        torch.testing.assert_close(out.losses, by_hand[name]())
        return
    assert isinstance(out.likelihood, Tokens)
    found = -distributions.Categorical(logits=out.scores).log_prob(out.likelihood.response.targets)
    torch.testing.assert_close(out.losses, torch.stack([part.mean() for part in found.split(list(COUNTS))]))


def test_predictions_and_truth_by_hand() -> None:
    scores = torch.tensor([[2.0, -1.0, 3.0], [0.5, 0.1, -4.0]])
    assert Categorical().predicted(scores).tolist() == [2, 0]
    assert Bernoulli().predicted(scores).tolist() == [[1, 0, 1], [1, 1, 0]]
    assert Bernoulli().truth(torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [[1, 0, 0]]
    assert Normal().predicted(scores[:, :1]).tolist() == [2.0, 0.5]
    response = ResponseTokens(torch.tensor([2, 0]), torch.tensor([0, 1]), torch.tensor([0, 0]), torch.ones(2).long(), 1)
    tokens = Tokens(response)
    assert tokens.predicted(scores).tolist() == tokens.truth(torch.zeros(2)).tolist() == [1, 1]
    assert tokens.predicted(scores.flip(0)).tolist() == [0, 0]


def test_only_tokens_have_counts_and_rows_of_their_own() -> None:
    out = TwoLayers("tokens").forward(Rows(labels_of("tokens")).batch(torch.arange(NUM)))
    assert out.likelihood.num_tokens is not None and out.likelihood.num_tokens.tolist() == list(COUNTS)
    assert out.likelihood.rows([2, 3]) == [3, 5] and Categorical().rows([2, 3]) == [2, 3]
    parts = out.likelihood.split([2, 3])
    losses = [part.losses(s, torch.empty(0)) for part, s in zip(parts, out.scores.split([3, 5]), strict=True)]
    assert torch.equal(torch.cat(losses), out.losses)
    assert Bernoulli().num_tokens is None and Bernoulli().split([1, 4]) == [Bernoulli(), Bernoulli()]


# --- Fisher information


@each
def test_the_observed_fisher_is_that_of_samples_one_by_one(name: str) -> None:
    model, shard = TwoLayers(name), Rows(labels_of(name))
    tensors = list(model.trainable.values())
    squares = [flat(torch.autograd.grad(alone(model, shard, i).losses.sum(), tensors)).square() for i in range(NUM)]
    found = scanned(model, shard, "observed")
    torch.testing.assert_close(of(model, found.diagonal), sum(squares) / NUM, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.traces.double(), torch.stack(squares).sum(1), rtol=1e-4, atol=1e-7)


@each_exact
def test_the_expected_fisher_is_the_mean_over_all_labels(name: str) -> None:
    model, shard = TwoLayers(name), Rows(labels_of(name))
    expected = sum(expected_squares(model, alone(model, shard, i)) for i in range(NUM)) / NUM
    found = scanned(model, shard, "expected")
    torch.testing.assert_close(of(model, found.diagonal), expected, rtol=1e-4, atol=1e-7)


def test_sequences_of_tokens_have_too_many_labels() -> None:
    with pytest.raises(ModelError, match="too many labels for label: expected; set label to sampled or observed"):
        scanned(TwoLayers("tokens"), Rows(labels_of("tokens")), "expected")


@each
def test_the_sampled_fisher_has_the_expected_one_as_its_mean(name: str) -> None:
    """20,000 draws: a relative error of some percent at most."""
    model, shard = TwoLayers(name), Rows(labels_of(name))
    expected = sum(expected_squares(model, alone(model, shard, i)) for i in range(NUM)) / NUM
    found = of(model, scanned(model, Rows(labels_of(name), num_samples=20_000), "sampled").diagonal)
    assert float((found - expected).norm()) < 0.04 * float(expected.norm())


@each_exact
@pytest.mark.parametrize("label", ["expected", "sampled"])
def test_kronecker_factors_have_the_same_second_moments(name: str, label: Label) -> None:
    """G of the last layer is E[e e^T] with e the gradient of log p in the scores: S, averaged over samples."""
    model, shard = TwoLayers(name), Rows(labels_of(name), NUM if label == "expected" else 20_000)
    rows = torch.arange(shard.num_samples)
    found = kronecker_factors(model, shard, rows, ["second.weight"], label, 1000, rng()).outputs["second"].double()  # type: ignore[arg-type]
    expected = sum(curvature(alone(model, shard, i)) for i in range(NUM)) / NUM
    assert float((found - expected).norm()) < (1e-5 if label == "expected" else 0.04) * float(expected.norm())


# --- draws


def drawn_labels(out: Outputs, draws: Tensor) -> list[int]:
    """The number of each drawn label in `every_label`: the value that `sampled` gives has the label's loss."""
    found = [likelihood.losses(out.scores, labels) for labels, likelihood in every_label(out)]
    losses = torch.cat(found).detach()
    rows = out.scores.repeat(len(draws), 1)
    made = out.likelihood
    if isinstance(made, Tokens):
        many, count = torch.arange(len(draws)), len(out.scores)
        sample, column = many.repeat_interleave(count), torch.arange(count).repeat(len(draws))
        targets = made.response.targets.repeat(len(draws))
        made = Tokens(ResponseTokens(targets, sample, column, torch.full((len(draws),), count), WIDTH))
    distance = (made.sampled(rows, draws).detach().abs().unsqueeze(1) - losses).abs()
    assert float(distance.min(1).values.max()) < 1e-5 and float(losses.sort().values.diff().min()) > 1e-4
    return distance.argmin(1).tolist()


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "tokens"])
def test_labels_are_drawn_with_their_probabilities(name: str) -> None:
    """Pearson's statistic of 8,000 draws is below the quantile of 1 - 1e-4."""
    out, num = alone(TwoLayers(name), Rows(labels_of(name)), 0), 8000
    p = torch.tensor([probability(out, labels, likelihood) for labels, likelihood in every_label(out)])
    counts = torch.bincount(torch.tensor(drawn_labels(out, torch.rand(num, generator=rng(5)))), minlength=len(p))
    statistic = float(((counts - num * p).square() / (num * p)).sum())
    quantile = {3: 18.4, 8: 29.9, 9: 31.8}[len(p)]  # chi-square with one degree of freedom fewer
    assert statistic < quantile


def test_a_drawn_value_is_normal_around_the_score() -> None:
    """The value is noise times the score, so that its gradient is that of -log p at a drawn value."""
    scores = torch.ones(20_000, 1)
    noise = Normal().sampled(scores, torch.rand(20_000, generator=rng()))
    assert float(noise.mean().abs()) < 0.03 and float(noise.var()) == pytest.approx(1, abs=0.05)
    assert float((noise.square() < 1).float().mean()) == pytest.approx(0.683, abs=0.02)
    assert bool(Normal().sampled(torch.ones(1, 1), torch.zeros(1)).isfinite())


@each
def test_a_samples_draw_does_not_depend_on_its_batch(name: str) -> None:
    model, shard, draws = TwoLayers(name), Rows(labels_of(name)), torch.rand(NUM, generator=rng())
    out = model.forward(shard.batch(torch.arange(NUM)))
    together = out.likelihood.sampled(out.scores, draws)
    for i in range(NUM):
        one = alone(model, shard, i)
        torch.testing.assert_close(one.likelihood.sampled(one.scores, draws[i : i + 1])[0], together[i])


# --- Gauss-Newton matrices


def curvature(out: Outputs) -> Tensor:
    """S of one sample, float64: the Hessian of its loss in its scores, which the labels do not change."""
    labels = {Normal: torch.zeros(1), Bernoulli: torch.zeros(1, out.scores.shape[1])}
    y = labels.get(type(out.likelihood), torch.zeros(1).long())
    scores = out.scores.detach().double()
    found = torch.autograd.functional.hessian(lambda s: out.likelihood.losses(s, y).sum(), scores)
    return found.reshape(scores.numel(), scores.numel())


@each_exact
def test_columns_times_their_transpose_are_the_curvature(name: str) -> None:
    out = alone(TwoLayers(name), Rows(labels_of(name)), 1)
    num, column = out.likelihood.columns(out.scores)
    assert num == out.likelihood.num_columns(NUM_SCORES[name]) and out.likelihood.num_draws == 0
    factor = torch.stack([column(c).flatten() for c in range(num)], 1).double()
    torch.testing.assert_close(factor @ factor.T, curvature(out), rtol=0, atol=1e-6)
    assert len(list(out.likelihood.expected(out.scores))) == out.likelihood.num_labels(NUM_SCORES[name])


def test_columns_of_drawn_tokens_have_the_curvature_as_their_mean() -> None:
    out = alone(TwoLayers("tokens"), Rows(labels_of("tokens")), 0)
    assert out.likelihood.num_draws == out.likelihood.num_columns(3) == TOKEN_DRAWS
    many = TwoLayers("tokens").forward(Rows(labels_of("tokens")).batch(torch.zeros(4000, dtype=torch.int64)))
    num, column = many.likelihood.columns(many.scores, torch.rand(4000, 3, generator=rng()))
    assert num == 3
    found = torch.cat([column(c).view(4000, -1) for c in range(num)]).double()
    expected = curvature(out)
    assert float((found.T @ found / 4000 - expected).norm()) < 0.03 * float(expected.norm())


@each_exact
def test_the_matrix_is_the_mean_of_the_samples_own(name: str) -> None:
    """H = (1/N) sum_i J_i^T S_i J_i, from its eigenpairs and from the columns one by one."""
    model, shard, names = TwoLayers(name), Rows(labels_of(name)), list(TwoLayers(name).trainable)
    expected: Any = 0.0
    for i in range(NUM):
        out = alone(model, shard, i)
        j = jacobian(model, out.scores)
        expected = expected + j.T @ curvature(out) @ j / NUM
    pairs = top_eigenpairs(model, shard, torch.arange(NUM), {"all": names}, 50, rng())["all"]  # type: ignore[arg-type]
    u = torch.cat([pairs.vectors[n].double().flatten(0, -2) for n in names])
    assert float((u * pairs.values.double() @ u.T - expected).norm()) < 1e-5 * float(expected.norm())
    columns = sample_gradients(model, shard, torch.arange(NUM), names)  # type: ignore[arg-type]
    g = torch.cat([torch.cat([column[n].flatten(1) for n in names], 1) for column in columns]).double()
    torch.testing.assert_close(g.T @ g / NUM, expected, rtol=0, atol=1e-6)


def test_the_matrix_of_tokens_is_the_mean_over_drawn_columns() -> None:
    """Each sample's loss is a mean over its tokens, so S has 1 / T on each token's block."""
    model, shard = TwoLayers("tokens"), Rows(labels_of("tokens"))
    names = list(model.trainable)
    expected: Any = 0.0
    for i in range(NUM):
        out = alone(model, shard, i)
        j = jacobian(model, out.scores)
        expected = expected + j.T @ curvature(out) @ j / NUM
    rows, found = torch.arange(5000), torch.zeros_like(expected)
    for column in sample_gradients(model, shard, rows, names, torch.rand(5000, 4, generator=rng())):  # type: ignore[arg-type]
        g = torch.cat([column[n].flatten(1) for n in names], 1).double()
        found += g.T @ g / len(rows)
    assert float((found - expected).norm()) < 0.05 * float(expected.norm())


# --- answers


OF_ONE_LABEL: tuple[Label, ...] = ("observed", "sampled")


def test_answers_count_the_passes_of_each_likelihood() -> None:
    found = {name: Answers(likelihood=name, num_scores=1 if name == "normal" else 5) for name in EXACT}
    assert {name: one.num_columns for name, one in found.items()} == {"categorical": 4, "normal": 1, "bernoulli": 5}
    assert [one.backwards("expected") for one in found.values()] == [5, 1, 5]
    assert {one.backwards(label) for one in found.values() for label in OF_ONE_LABEL} == {1}
    texts = Answers(likelihood="tokens", num_scores=0, readout="response")
    assert (texts.num_columns, texts.backwards("sampled")) == (TOKEN_DRAWS, 1)
    with pytest.raises(ModelError, match="too many labels"):
        texts.backwards("expected")
    assert Answers.model_validate_json(texts.model_dump_json()) == texts and {texts: 1}[texts] == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"likelihood": "poisson"}, "'poisson' is unknown; choose one of: categorical, normal, bernoulli, tokens"),
        ({"num_scores": 0}, "num_scores is 0; set 0 with readout response, and 1 or more otherwise"),
        ({"readout": "response"}, "num_scores is 3; set 0 with readout response"),
        ({"likelihood": "normal"}, "num_scores is 3; likelihood normal takes 1; set 1"),
        ({"label_words": (1, 2)}, "2 label_words for 3 scores; give one for each"),
    ],
)
def test_answers_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Answers(**{"likelihood": "categorical", "num_scores": 3, **settings})
