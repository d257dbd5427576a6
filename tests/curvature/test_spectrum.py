"""Spectra that can be written down, the two rules on them, and Hessian products against dense Hessians (E11)."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BERT, TINY_LLAMA, classes, shard_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from fibec_ray.curvature.spectrum import (
    CHUNK,
    MatVec,
    Rule,
    SpectrumSettings,
    hessian_product,
    keep_ratio,
    lipschitz,
    lossless_gap,
    ritz,
    share_above,
    slq_plateau,
)
from fibec_ray.data.encoded import ArrayShard
from fibec_ray.model_types import Batch, Outputs, Work
from fibec_ray.models.backbone import prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.tensors import Tensors

RULES: list[Rule] = ["lossless_gap", "slq_plateau"]
each_rule = pytest.mark.parametrize("rule", RULES)
TWO_LEVELS = [1.0, 1.0, 1.0, 50.0, 50.0, 50.0]
SAMPLES = [[1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11, 12, 13], [14, 15], [16, 17, 18]]
LABELS = [0, 1, 2, 2, 1, 0]


class Polynomial:
    """loss_i = label_i sum_j (a_j w_j^2 / 2 + c_j w_j^3 / 6), so H = mean(label) diag(a + c w).

    A small model of its own that implements what `LocalModel` asks of a model whose Hessian is taken.
    """

    num_layers = 1

    def __init__(self, squares: Sequence[float], cubes: Sequence[float] | None = None, at: float = 1.0):
        self.squares = torch.tensor(squares)
        self.cubes = torch.tensor(cubes) if cubes is not None else torch.zeros(len(squares))
        self.trainable = {"w": nn.Parameter(torch.full((len(squares),), at))}
        self.work = Work()

    def forward(self, batch: Batch) -> Outputs:
        w = self.trainable["w"]
        value = (self.squares * w.square() / 2 + self.cubes * w.pow(3) / 6).sum()
        self.work.flops += 2
        return Outputs(batch.labels * value, torch.zeros(len(batch.labels), 1))

    def train(self, mode: bool) -> None:
        """No dropout."""

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        self.trainable["w"].copy_(values["w"])

    def read(self, names: Collection[str] | None = None) -> Tensors:
        return {"w": self.trainable["w"].detach().clone()}


ONE = shard_of([[1]], [1])


def ratio(rule: Rule, model: Any, shard: ArrayShard = ONE, seed: int = 0, **changes: Any) -> float:
    return keep_ratio(rule, model, shard, list(model.trainable), SpectrumSettings(**changes), rng(seed))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def even(values: Sequence[float]) -> tuple[Tensor, Tensor]:
    """A spectrum whose eigenvalues are all known."""
    return double(values), torch.full((len(values),), 1 / len(values), dtype=torch.float64)


def times(matrix: Tensor) -> MatVec:
    return lambda vector: matrix @ vector


def turned(values: Sequence[float], seed: int = 1) -> Tensor:
    """A dense symmetric matrix with these eigenvalues."""
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng(seed), dtype=torch.float64))
    return basis @ torch.diag(double(values)) @ basis.T


# --- the gap rule


def test_the_first_gap_of_two_levels_keeps_half() -> None:
    """E11: 1, 1, 1, 50, 50, 50 and L = 0: l_4 - l_3 = 49 > 0, m = 3, 1 - 3/6. Equal up to rounding is no gap."""
    assert lossless_gap(*even(TWO_LEVELS), lipschitz=0.0) == 0.5
    assert lossless_gap(*even([1, 1 + 1e-9, 1 + 2e-9, 50, 50, 50]), lipschitz=0.0) == 0.5


def test_a_ramp_below_the_threshold_keeps_all() -> None:
    """E11: gaps of 1. 4 L = 1.2: none is wider. 4 L = .8: the first is, m = 1 of 10. A gap of exactly 4 L is none."""
    ramp = even(range(10))
    assert lossless_gap(*ramp, lipschitz=0.3) == 1.0
    assert lossless_gap(*ramp, lipschitz=0.25) == 1.0
    assert lossless_gap(*ramp, lipschitz=0.2) == pytest.approx(0.9)


def test_the_lowest_wide_gap_counts_however_wide_a_later_one_is() -> None:
    assert lossless_gap(*even([0, 1, 4, 5, 100]), lipschitz=0.5) == pytest.approx(3 / 5)


def test_ritz_values_stand_for_the_share_of_their_weights() -> None:
    assert lossless_gap(double([0, 1, 9]), double([0.7, 0.2, 0.1]), lipschitz=1.0) == pytest.approx(0.1)


def test_one_value_or_none_but_equal_ones_keep_all() -> None:
    for values in ([3.0], [0.0, 0.0], [-2.0, -2.0, -2.0]):
        assert lossless_gap(*even(values), lipschitz=0.0) == 1.0


spectra = st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=12).map(sorted)


@given(values=spectra, bound=st.floats(0, 1e12))
def test_the_gap_rule_keeps_something(values: list[float], bound: float) -> None:
    assert 0 < lossless_gap(*even(values), lipschitz=bound) <= 1


# --- the plateau rule


def test_a_point_spectrum_by_hand() -> None:
    """Half at 0, half at 1. Above 0: half of the first and the second, 3/4. From t = .1 on 1/2, three changes of 0."""
    spectrum = even([0, 1])
    assert share_above(*spectrum, 0.0) == pytest.approx(0.75, abs=1e-3)
    assert slq_plateau(*spectrum) == pytest.approx(0.5, abs=1e-6)


def test_plateaus_beyond_the_first_increments_are_found() -> None:
    """Ten values, .05 to .95: t = .1, .2, ... loses one each time and falls below half at .6; .05 and .025 also.

    Halved again, to .0125, three steps fit below the first value: nothing is lost, and all is kept.
    """
    spectrum = even([0.05 + 0.1 * i for i in range(10)])
    assert slq_plateau(*spectrum) == pytest.approx(1.0, abs=1e-3)
    # With twenty more at 10, more than half is beyond all of these: flat from t = 1 on.
    spectrum = even([0.05 + 0.1 * i for i in range(10)] + [10.0] * 20)
    assert slq_plateau(*spectrum) == pytest.approx(share_above(*spectrum, 5.0)) != 1.0


def test_a_spectrum_within_sigma_of_zero_keeps_part_of_its_smoothed_half() -> None:
    """.9 at 0 and .1 at 1: .55 above 0. The plateau at .1 is less than half of that, so it is never the answer."""
    values, weights = double([0, 1]), double([0.9, 0.1])
    assert share_above(values, weights, 0.0) == pytest.approx(0.55, abs=1e-3)
    assert share_above(values, weights, 0.1) == pytest.approx(0.1, abs=1e-3)
    assert 0.55 / 2 < slq_plateau(values, weights) < 0.55


def test_degenerate_spectra_have_an_answer() -> None:
    assert slq_plateau(*even([-1, -2])) == 0
    assert slq_plateau(*even([5])) == slq_plateau(*even([1e17])) == slq_plateau(*even([1e9] * 3)) == 1
    assert slq_plateau(*even([-1e9, 1e9])) == pytest.approx(0.5)
    for values in ([0, 0, 0], [1e-12], [-1e-12, 1e-12]):
        assert 0.25 <= slq_plateau(*even(values)) <= 0.51


@settings(deadline=None)
@given(values=spectra)
def test_the_plateau_rule_ends_and_never_goes_below_half_of_the_start(values: list[float]) -> None:
    first = share_above(*even(values), 0.0)
    assert first / 2 <= slq_plateau(*even(values)) <= first <= 1


def test_the_smoothed_share_is_that_of_ten_thousand_bins() -> None:
    """The published code: a Gaussian density on a grid, normalised, summed up to t."""
    values, weights = torch.randn(40, generator=rng(), dtype=torch.float64).sort()[0], torch.rand(40, generator=rng())
    weights = weights.double() / weights.sum()
    grid = torch.linspace(float(values[0]) - 0.01, float(values[-1]) + 0.01, 10000, dtype=torch.float64)
    sigma2 = 1e-5 * max(1.0, float(grid[-1] - grid[0]))
    density = (-(grid.unsqueeze(1) - values).square() / (2 * sigma2)).exp() @ weights
    for t in (-1.0, 0.0, 0.1, 0.37, 2.0):
        binned = 1 - float(density[grid <= t].sum() / density.sum())
        assert share_above(values, weights, t) == pytest.approx(binned, abs=2e-3)


# --- the spectrum


def test_a_diagonal_matrix_gives_its_distribution() -> None:
    """E11, 30 x 30: 0 to 29. And each of them twice, 60 x 60 in 50 iterations, where Lanczos finds 30 and stops."""
    for copies in (1, 2):
        diagonal = torch.arange(30, dtype=torch.float64).repeat_interleave(copies)
        values, weights = ritz(lambda v, by=diagonal: by * v, len(diagonal), 50, 1, rng())  # type: ignore[misc]
        torch.testing.assert_close(values, torch.arange(30, dtype=torch.float64).repeat_interleave(len(values) // 30))
        for t in range(30):
            assert float(weights[values <= t + 0.5].sum()) == pytest.approx((t + 1) / 30)
            assert share_above(values, weights, t + 0.5) == pytest.approx(1 - (t + 1) / 30, abs=0.03)


def test_as_many_iterations_as_dimensions_are_exact() -> None:
    matrix = turned(torch.randn(20, generator=rng()).tolist())
    for iterations in (20, 99):
        values, weights = ritz(times(matrix), 20, iterations, 3, rng())
        torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix))
        assert weights.tolist() == [1 / 20] * 20


def test_few_iterations_find_the_outermost_values_and_the_distribution() -> None:
    matrix = turned([*torch.linspace(-1, 1, 398).tolist(), -4.0, 9.0])
    exact = torch.linalg.eigvalsh(matrix)
    values, weights = ritz(times(matrix), 400, 30, 4, rng())
    assert len(values) == 120 and bool((values.diff() >= 0).all()) and float(weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(values[[0, -1]], exact[[0, -1]])
    for t in (-2.0, -0.5, 0.0, 0.5, 2.0):
        assert float(weights[values <= t].sum()) == pytest.approx(float((exact <= t).double().mean()), abs=0.05)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_lanczos_stops_at_the_number_of_distinct_values_at_any_scale(scale: float) -> None:
    values, weights = ritz(times(scale * turned(TWO_LEVELS)), 6, 5, 1, rng())
    torch.testing.assert_close(values, scale * double([1, 50]))
    assert float(weights.sum()) == pytest.approx(1)
    # Of a diagonal matrix random signs see every direction alike.
    values, weights = ritz(times(scale * torch.diag(double(TWO_LEVELS))), 6, 5, 1, rng())
    torch.testing.assert_close(weights, double([0.5, 0.5]))


def test_a_single_eigenvalue_is_found() -> None:
    for value in (0.0, 3.0, -1e-9):
        values, weights = ritz(lambda v, by=value: by * v, 9, 4, 1, rng())  # type: ignore[misc]
        torch.testing.assert_close(values, double([value]))
        assert weights.tolist() == [1.0]


def test_probes_belong_to_the_generator() -> None:
    matrix = turned(list(range(40)))
    torch.manual_seed(1)
    once = ritz(times(matrix), 40, 10, 2, rng())
    torch.manual_seed(2)
    again, other = ritz(times(matrix), 40, 10, 2, rng()), ritz(times(matrix), 40, 10, 2, rng(7))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once[0], other[0])


# --- the Hessian of models


def tiny(config: dict[str, Any], head: Any, attention: str = "sdpa") -> TorchModel:
    """B as after some training, so that no part of the Hessian is zero."""
    backbone: dict[str, Any] = {"init": "random", "config": {**config, "vocab_size": 60}, "tokenizer": "minilm"}
    spec = Backbone(**backbone, head=head, attention=attention)
    folder = prepare(spec, 0, 3, Path(os.environ["FIBEC_RAY_CACHE"]))
    answers = classes(3, (5, 6, 7) if head.endswith("lm") else None)
    model = TorchModel(ModelSpec(spec, Lora(r=2, alpha=8), answers, 0), folder)
    model.load({n: 0.1 * torch.randn(p.shape, generator=rng(1)) for n, p in model.trainable.items() if "lora_B" in n})
    model.train(False)
    return model


def dense_hessian(model: TorchModel, batch: Batch, names: Sequence[str]) -> Tensor:
    """(d, d) by torch's own function, with the parameters swapped for slices of one vector."""
    params = [model.trainable[name] for name in names]
    inner = {id(param): name for name, param in model.peft_model.named_parameters()}
    losses = Losses(model)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([param.numel() for param in params])
        values = {f"net.{inner[id(p)]}": part.view_as(p) for p, part in zip(params, parts, strict=True)}
        return functional_call(losses, values, (batch,)).mean()

    flat = torch.cat([param.detach().flatten() for param in params])
    return torch.autograd.functional.hessian(loss, flat)


class Losses(nn.Module):
    def __init__(self, model: TorchModel):
        super().__init__()
        self.net, self.model = model.peft_model, model

    def forward(self, batch: Batch) -> Tensor:
        return self.model.forward(batch).losses


MODELS = [(TINY_BERT, "mean_pool"), (TINY_LLAMA, "causal_lm")]
each_model = pytest.mark.parametrize(("config", "head"), MODELS, ids=["encoder", "decoder"])


@each_model
def test_products_are_those_of_the_dense_hessian(config: Any, head: str) -> None:
    """Two tensors of one layer and one of another; fused attention here, plain attention in the reference."""
    model, plain = tiny(config, head), tiny(config, head, attention="eager")
    names = [name for name in model.trainable if "lora_" in name]
    names = [*names[:2], names[-1]]
    batch = shard_of(SAMPLES, LABELS).batch(torch.arange(6))
    expected = dense_hessian(plain, batch, names)
    product = hessian_product(model, [batch], names)
    found = torch.stack([product(unit) for unit in torch.eye(len(expected), dtype=torch.float64)])
    size = float(expected.norm())
    assert size > 0 and float((found.float() - expected).norm()) < 1e-4 * size
    assert float((found - found.T).norm()) < 1e-5 * size


def test_batches_are_averaged_over_their_samples() -> None:
    """Labels 1, 3 and 5 weigh the losses: the mean is 3, not that of the batches' means 2 and 5."""
    shard = shard_of([[1], [1], [1]], [1, 3, 5])
    batches = [shard.batch(torch.tensor(rows)) for rows in ([0, 1], [2])]
    product = hessian_product(Polynomial([1.0, 10.0]), batches, ["w"])
    assert product(double([1, 1])).tolist() == [3, 30]


def test_products_count_as_work() -> None:
    """2 flops a gradient, and as much a product. A single batch keeps its gradient; of several each is made anew."""
    for rows, flops in (([[0, 1]], 2 + 3 * 2), ([[0], [1]], 3 * 2 * (2 + 2))):
        model, shard = Polynomial([1.0]), shard_of([[1], [1]], [1, 1])
        product = hessian_product(model, [shard.batch(torch.tensor(part)) for part in rows], ["w"])
        for _ in range(3):
            product(double([1]))
        assert model.work.flops == flops


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        ratio("slq_plateau", Polynomial([1.0, math.inf]))


# --- the Lipschitz constant


def test_a_quadratic_loss_has_lipschitz_constant_zero() -> None:
    model = Polynomial(TWO_LEVELS)
    assert lipschitz(model, [ONE.batch(torch.tensor([0]))], ["w"], SpectrumSettings(), rng()) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("num_entries", [4, 30])
def test_the_lipschitz_constant_of_a_cubic_loss_by_hand(num_entries: int) -> None:
    """H(D) - H(0) = diag(c D) and every entry of D is one step of .5, up or down: the norm is .5 max |c|."""
    cubes = [1.0] * (num_entries - 1) + [-8.0]
    how = SpectrumSettings(step=0.5, num_steps=1)
    model: Any = Polynomial([1.0] * num_entries, cubes)
    assert lipschitz(model, [ONE.batch(torch.tensor([0]))], ["w"], how, rng()) == pytest.approx(4)
    # Three steps in random directions: 1.5 at most, and an odd number of halves.
    found = lipschitz(model, [ONE.batch(torch.tensor([0]))], ["w"], SpectrumSettings(step=0.5), rng())
    assert found <= 12 + 1e-4 and found >= 0.5


# --- the whole


def test_two_levels_of_a_quadratic_loss_keep_half() -> None:
    """E11, from the loss on. Plateau: nothing below t = .4."""
    model = Polynomial(TWO_LEVELS)
    assert ratio("lossless_gap", model) == 0.5
    assert ratio("lossless_gap", model, num_iterations=5) == pytest.approx(0.5)
    assert ratio("slq_plateau", model) == 1.0


def test_a_changing_curvature_hides_the_gap() -> None:
    """49 between the levels; H changes by c D with |c| = 100 and |D| = .2: 4 L = 80 > 49. With |D| = .1, 40."""
    model = Polynomial(TWO_LEVELS, [100.0] * 6, at=0.0)
    assert ratio("lossless_gap", model, step=0.2, num_steps=1) == 1.0
    assert ratio("lossless_gap", model, step=0.1, num_steps=1) == 0.5


@each_rule
@each_model
def test_ratios_of_language_models(rule: Rule, config: Any, head: str) -> None:
    """In range, the same each time, for a known number of passes; parameters are untouched and no gradient is left."""
    model, shard = tiny(config, head), shard_of(SAMPLES, LABELS)
    before = model.read()
    model.forward(shard.batch(torch.arange(shard.num_samples)))
    one_pass = model.work.flops
    torch.manual_seed(1)
    found = [ratio(rule, model, shard, seed=3, num_iterations=20)]
    products = 1 + 21  # a graph, and a product for each iteration and one more
    displaced = 2 * 11 * (2 + 2)  # two displacements; a graph and a product at both ends for each of ten and one more
    assert model.work.flops == one_pass * (1 + products + (displaced if rule == "lossless_gap" else 0))
    torch.manual_seed(2)
    found.append(ratio(rule, model, shard, seed=3, num_iterations=20))
    assert found[0] == found[1] and 0 < found[0] <= 1
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.trainable.items())


def test_the_same_samples_in_chunks_give_the_same_ratio() -> None:
    model, shard = Polynomial(TWO_LEVELS), shard_of([[1]] * (CHUNK + 5), [1] * (CHUNK + 5))
    assert ratio("lossless_gap", model, shard, max_samples=CHUNK + 5) == 0.5
    assert model.work.flops > ratio("lossless_gap", model, shard, max_samples=1)


def test_parameters_come_back_after_an_error() -> None:
    class Failing(Polynomial):
        def forward(self, batch: Batch) -> Outputs:
            if not torch.equal(self.trainable["w"], torch.ones(6)):
                raise RuntimeError("away from the start")
            return super().forward(batch)

    model = Failing(TWO_LEVELS)
    with pytest.raises(RuntimeError, match="away from the start"):
        ratio("lossless_gap", model)
    assert torch.equal(model.trainable["w"], torch.ones(6))


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"num_iterations": 1}, {"num_probes": 0}, {"step": 0}, {"max_sample": 3}):
        with pytest.raises(ValidationError):
            SpectrumSettings(**wrong)  # type: ignore[arg-type]
