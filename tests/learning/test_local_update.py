"""A device's training steps: what a mask holds fast (E12), and single steps by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BERT, TINY_LLAMA, classes, shard_of
from torch import Tensor, nn

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.data.encoded import ArrayShard
from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.local_update import Moves, Steps, Terms, Trained, local_update
from fibec_ray.model_types import Batch, LocalModel, Outputs, Work
from fibec_ray.models.alone import Alone
from fibec_ray.models.backbone import prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.objective.proximal import Proximal
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.solver.base import Pull
from fibec_ray.tensors import Tensors, digest


class Line(Alone):
    """Loss (w_0 x_0 + w_1 x_1)^2 / 2 with x the two token ids of a sample: its gradient is (w x) x.

    A small model of its own that implements what `LocalModel` asks of a trained model.
    """

    def __init__(self, *weights: float) -> None:
        self.linear = nn.Linear(len(weights), 1, bias=False)
        self.trainable: dict[str, nn.Parameter] = {"line.weight": self.linear.weight}
        self.holders: dict[str, nn.Module] = {"line": self.linear}
        self.num_layers, self.work = 1, Work()
        self.modes: list[bool] = []
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([weights]))

    def train(self, mode: bool) -> None:
        self.modes.append(mode)

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        out = self.linear(batch.inputs["input_ids"].float())
        return Outputs(out.squeeze(1).square() / 2, out)

    @property
    def weights(self) -> list[float]:
        return self.linear.weight.detach().flatten().tolist()


SGD = {"optimizer": "sgd", "weight_decay": 0.0, "clip": None}


def update(
    model: Any,
    shard: ArrayShard,
    batches: Any,
    rate: float = 0.1,
    keep: Tensors | None = None,
    objective: Objective | None = None,
    **settings: Any,
) -> Trained:
    checked: LocalModel = model
    steps = Steps(batches, LocalTraining(**settings), rate)
    return local_update(checked, shard, steps, Terms(objective or Objective()), Moves(keep=keep or {}))


def test_one_sgd_step_by_hand() -> None:
    """w = [1, 1], samples [1, 2] and [2, 0]: w x = 3 and 2, losses 4.5 and 2, gradients [3, 6] and [4, 0].

    Their mean is [3.5, 3], and w - 0.1 * mean = [.65, .7].
    """
    model = Line(1.0, 1.0)
    trained = update(model, shard_of([[1, 2], [2, 0]]), [torch.tensor([0, 1])], **SGD)
    assert model.weights == pytest.approx([0.65, 0.7])
    assert trained == Trained(num_steps=1, num_samples=2, mean_loss=3.25, squares={})
    assert model.modes == [True, False]


def test_weight_decay_of_sgd_by_hand() -> None:
    """Gradient [1, 0] + 0.5 * [1, 1]: w = [1, 1] - 0.1 * [1.5, .5]."""
    model = Line(1.0, 1.0)
    update(model, shard_of([[1, 0]]), [torch.tensor([0])], **{**SGD, "weight_decay": 0.5})
    assert model.weights == pytest.approx([0.85, 0.95])


def test_momentum_of_sgd_by_hand() -> None:
    """Loss w^2 / 2 twice: w = 1 - .1 = .9, then the step is .1 (.9 + .5 * 1) = .14, so .76."""
    model = Line(1.0, 1.0)
    update(model, shard_of([[1, 0]]), [torch.tensor([0])] * 2, **{**SGD, "momentum": 0.5})
    assert model.weights == pytest.approx([0.76, 1.0])


def test_the_first_step_of_adamw_has_the_size_of_the_rate() -> None:
    """w (1 - .1 * .5) - .1 * sign(g) = .95 - .1; where g = 0 only the decay."""
    model = Line(1.0, 1.0)
    update(model, shard_of([[2, 0]]), [torch.tensor([0])], weight_decay=0.5, clip=None)
    assert model.weights == pytest.approx([0.85, 0.95])


def test_watched_squares_are_those_of_each_sample_at_the_parameters_of_its_step() -> None:
    """w = [1, 1], then [.65, .7] (see above). Gradients (w x) x: [3, 6] and [4, 0]; then, for [1, 2], 2.05 [1, 2].

    Mean squares over three samples; weight decay, clipping and the penalty do not show in them.
    """
    samples, batches = shard_of([[1, 2], [2, 0]]), [torch.tensor([0, 1]), torch.tensor([0])]
    trained = trained_on(Line(1.0, 1.0), samples, batches, SGD, Objective())
    expected = [(9 + 16 + 2.05**2) / 3, (36 + 0 + 4.1**2) / 3]
    assert trained.squares["line.weight"].flatten().tolist() == pytest.approx(expected)
    tempered = {"optimizer": "sgd", "weight_decay": 0.5, "clip": 1e-3}
    first = trained_on(Line(1.0, 1.0), samples, batches[:1], tempered, Proximal(mu=3.0))
    assert first.squares["line.weight"].flatten().tolist() == pytest.approx([12.5, 18])


def trained_on(model: Any, shard: ArrayShard, batches: Any, settings: Any, objective: Objective) -> Trained:
    steps = Steps(batches, LocalTraining(**settings), 0.1)
    return local_update(model, shard, steps, Terms(objective), Moves(watch=["line.weight"]))


@pytest.mark.parametrize(("config", "head"), [(TINY_BERT, "mean_pool"), (TINY_LLAMA, "causal_lm")])
def test_watching_changes_no_bit_of_training_and_finds_what_a_pass_finds(config: Any, head: str) -> None:
    """With one step, the squares are those of a Fisher pass at the parameters before it."""
    shard, batches = shard_of([[5, 6, 7], [8, 9], [1, 2, 3, 4]], [0, 1, 1]), [torch.arange(3)]
    plain, seen = transformer(config, head), transformer(config, head)
    fisher = FisherScan(seen, shard, batches, list(seen.trainable), torch.Generator()).read(scope="all").diagonal
    steps = Steps(batches, LocalTraining(), 0.01)
    local_update(plain, shard, steps)
    trained = local_update(seen, shard, steps, moves=Moves(watch=list(seen.trainable)))
    assert digest(plain.read()) == digest(seen.read())
    assert trained.squares.keys() == fisher.keys()
    for name, value in trained.squares.items():
        torch.testing.assert_close(value, fisher[name], rtol=1e-4, atol=1e-6 * float(fisher[name].max()))


def test_the_mean_loss_is_over_steps_and_before_each() -> None:
    """Losses 1/2 and .81/2, whatever the batch sizes (here 1 and 2)."""
    shard = shard_of([[1, 0], [1, 0], [1, 0]])
    trained = update(Line(1.0, 1.0), shard, [torch.tensor([0]), torch.tensor([1, 2])], **SGD)
    assert trained.mean_loss == pytest.approx((0.5 + 0.405) / 2)
    assert (trained.num_steps, trained.num_samples) == (2, 3)


def test_clipping_by_hand() -> None:
    """Gradient [3, 4] has norm 5: clipped to 1 it is [.6, .8]."""
    model = Line(1.0, 0.0)  # w x = 1 for x = [1, .], so the gradient is x
    update(model, shard_of([[1, 0]]), [torch.tensor([0])], **{**SGD, "clip": 2.0})
    assert model.weights == pytest.approx([0.9, 0.0])  # norm 1: left alone
    model = Line(-1.0, 1.0)  # w x = 1 for x = [3, 4]
    update(model, shard_of([[3, 4]]), [torch.tensor([0])], **{**SGD, "clip": 1.0})
    assert model.weights == pytest.approx([-1.06, 0.92], rel=1e-5)


def test_masked_entries_do_not_count_in_the_norm() -> None:
    """Gradient [3, 4] with the second entry held: norm 3, so that the first moves by 0.1 * 1 and not by 0.1 * 3 / 5."""
    model = Line(-1.0, 1.0)
    keep = {"line.weight": torch.tensor([[True, False]])}
    update(model, shard_of([[3, 4]]), [torch.tensor([0])], keep=keep, **{**SGD, "clip": 1.0})
    assert model.weights == pytest.approx([-1.1, 1.0], rel=1e-5) and model.weights[1] == 1.0


@pytest.mark.parametrize(("max_steps", "num_steps"), [(None, 7), (1, 1), (3, 3), (7, 7), (20, 7)])
def test_max_steps_ends_the_round(max_steps: int | None, num_steps: int) -> None:
    """No batch is drawn that is not trained on."""
    batches = iter([torch.tensor([0])] * 7)
    trained = update(Line(1.0, 1.0), shard_of([[1, 0]]), batches, max_steps=max_steps, **SGD)
    assert trained.num_steps == trained.num_samples == num_steps
    assert len(list(batches)) == 7 - num_steps


def test_the_proximal_pull_starts_with_the_second_step() -> None:
    """Loss w^2 / 2, mu = 2: w = 1 - .1 = .9, then .9 - .1 (.9 + 2 (.9 - 1)) = .83. The logged loss is without it."""
    model = Line(1.0, 1.0)
    trained = update(model, shard_of([[1, 0]]), [torch.tensor([0])] * 2, objective=Proximal(mu=2.0), **SGD)
    assert model.weights == pytest.approx([0.83, 1.0])
    assert trained.mean_loss == pytest.approx((0.5 + 0.405) / 2)


def test_mu_zero_takes_the_plain_steps_bit_for_bit() -> None:
    """E19: FedProx without a pull is FedAvg."""
    found = []
    for objective in (Objective(), Proximal(mu=0.0)):
        model = Line(0.3, -0.7)
        update(model, shard_of([[1, 2], [3, 1]]), [torch.tensor([0]), torch.tensor([1])] * 3, objective=objective)
        found.append(model.weights)
    assert found[0] == found[1]


def transformer(config: dict[str, Any], head: Any) -> TorchModel:
    backbone = Backbone(init="random", config={**config, "vocab_size": 60}, tokenizer="minilm", head=head)
    words = (5, 6) if head == "causal_lm" else None
    folder = prepare(backbone, 0, 2, Path(os.environ["FIBEC_RAY_CACHE"]))
    model = TorchModel(ModelSpec(backbone, Lora(r=4, alpha=8), classes(2, words), 0), folder)
    rng = torch.Generator().manual_seed(1)
    # Not zero: so that weight decay has something to pull at.
    model.load({n: 0.1 * torch.randn(p.shape, generator=rng) for n, p in model.trainable.items() if "lora_B" in n})
    return model


OPTIMIZERS = {
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd", "weight_decay": 0.1, "momentum": 0.9},
}


@pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(("config", "head"), [(TINY_BERT, "mean_pool"), (TINY_LLAMA, "causal_lm")])
def test_masked_entries_are_bit_identical_and_the_others_move(config: Any, head: str, settings: Any) -> None:
    """E12: over several steps with weight decay and momentum; tensors without a mask move as a whole."""
    model = transformer(config, head)
    before, rng = model.read(), torch.Generator().manual_seed(2)
    masked = [name for name in before if "layers.1." in name or "layer.1." in name]
    keep = {name: torch.rand(len(before[name]), generator=rng).gt(0.5) for name in masked}
    keep = {name: rows.unsqueeze(1).expand_as(before[name]).clone() for name, rows in keep.items()}
    shard = shard_of([[3, 9, 4], [5, 2], [8, 7, 6, 1], [4, 4]], labels=[0, 1, 0, 1])
    trained = update(model, shard, [torch.tensor([0, 1]), torch.tensor([2, 3])] * 3, rate=0.05, keep=keep, **settings)
    assert trained.num_steps == 6 and len(masked) == 4
    for name, value in model.read().items():
        may_move = keep.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[~may_move], before[name][~may_move]), name
        assert (value != before[name])[may_move].all(), name


def test_a_mask_that_keeps_all_changes_nothing() -> None:
    """E13: bit for bit."""
    found = []
    for keep_all in (True, False):
        model = transformer(TINY_BERT, "mean_pool")
        keep = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.trainable.items() if keep_all}
        update(model, shard_of([[3, 9, 4], [5, 2]], labels=[0, 1]), [torch.tensor([0, 1])] * 3, keep=keep)
        found.append(model.read())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


# --- what a solver asks for


@pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_moving_some_tensors_is_backend_choice_the_others(settings: Any) -> None:
    """Bit for bit what a mask over all of the others gives, norm and weight decay included."""
    batches = [torch.tensor([0, 1])] * 3
    found = []
    for masked in (False, True):
        model = transformer(TINY_BERT, "mean_pool")
        before = model.read()
        head = [name for name in before if name.startswith("head.")]
        keep = {n: torch.zeros_like(v, dtype=torch.bool) for n, v in before.items() if masked and n not in head}
        local = LocalTraining(**settings)
        shard = shard_of([[3, 9, 4], [5, 2]], labels=[0, 1])
        moves = Moves(names=None if masked else head, keep=keep)
        local_update(model, shard, Steps(batches, local, 0.05), moves=moves)
        found.append(model.read())
        assert {n for n, v in found[-1].items() if not torch.equal(v, before[n])} == set(head)
    assert digest(found[0]) == digest(found[1])


def pulled(model: Any, pull: Pull, num_batches: int, repeats: int = 1) -> Trained:
    """By plain SGD on the loss w_0^2 / 2, at rate .1."""
    batches, local = [torch.tensor([0])] * num_batches, LocalTraining(**{**SGD, "max_steps": 2})
    return local_update(model, shard_of([[1, 0]]), Steps(batches, local, 0.1, repeats), moves=Moves(pull=pull))


def test_the_pull_by_hand() -> None:
    """Gradient [1, 0], so [.9, 1]; then (w + .1 * 5 c) / 1.5 with c = [.3, 4]. The logged loss is without it."""
    model = Line(1.0, 1.0)
    centre = {"line.weight": torch.tensor([[0.3, 4.0]])}
    trained = pulled(model, Pull(centre, 5.0), 1)
    assert model.weights == pytest.approx([0.7, 2.0])
    assert trained.mean_loss == 0.5 and trained.centre["line.weight"].tolist() == centre["line.weight"].tolist()


def test_the_pull_has_its_own_step_whatever_the_optimiser_and_clipping() -> None:
    """lambda = 1e9: at the centre, but for the share 1e-8 that is left; with AdamW as well."""
    for settings in (SGD, {**SGD, "clip": 1e-3}, {"optimizer": "adamw"}):
        model = Line(1.0, 1.0)
        pull = Pull({"line.weight": torch.tensor([[0.5, 2.0]])}, 1e9)
        shard, local = shard_of([[1, 0]]), LocalTraining(**settings)
        local_update(model, shard, Steps([torch.tensor([0])], local, 0.1), moves=Moves(pull=pull))  # type: ignore[arg-type]
        assert model.weights == pytest.approx([0.5, 2.0], abs=1e-6)


def test_the_centre_follows_after_the_steps_on_each_batch() -> None:
    """lambda = 10, c = w = 1: w = .9, (.9 + 1) / 2 = .95; w = .855, .9275; c = .96375, half of the way.

    Then w = .83475, .89925; .809325, .8865375; c = .92514375. Two batches are two steps in the log and before
    `max_steps`. The centre that was given stays as it was.
    """
    model, centre = Line(1.0, 1.0), {"line.weight": torch.ones(1, 2)}
    trained = pulled(model, Pull(centre, 10.0, follow=0.5), 3, repeats=2)
    assert model.weights == pytest.approx([0.8865375, 1.0])
    assert trained.centre["line.weight"].tolist()[0] == pytest.approx([0.92514375, 1.0])
    assert centre["line.weight"].tolist() == [[1, 1]]
    assert (trained.num_steps, trained.num_samples) == (2, 2)


def test_a_pull_of_no_strength_takes_the_plain_steps_bit_for_bit() -> None:
    found = []
    for pull in (None, Pull({"line.weight": torch.tensor([[5.0, -3.0]])}, 0.0)):
        model = Line(0.3, -0.7)
        shard, batches = shard_of([[1, 2], [3, 1]]), [torch.tensor([0]), torch.tensor([1])] * 3
        local_update(model, shard, Steps(batches, LocalTraining(), 0.1), moves=Moves(pull=pull))  # type: ignore[arg-type]
        found.append(model.weights)
    assert found[0] == found[1]
