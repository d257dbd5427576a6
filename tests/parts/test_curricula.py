"""Orders and visible sets of the curricula, on a model whose difficulties can be read off the samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import after_rounds, make_tiny, shard_of
from torch import Tensor, nn

from fibec_ray.config.load import load_method
from fibec_ray.config.names import config_folder
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.model_types import Batch, Outputs, Work
from fibec_ray.models.alone import Alone
from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.curriculum.controls import RandomOrder, StepMatched
from fibec_ray.parts.curriculum.equal_work import EqualWork
from fibec_ray.parts.curriculum.pacing import PACINGS, Paced, softly_visible
from fibec_ray.parts.curriculum.scored import FisherOrder, LossOrder, RarityOrder, batch_difficulties
from fibec_ray.types import SETUP_ROUND

ROUNDS = 10


class OneWeight(Alone):
    """Loss w x with x the token id: the trace of sample x is x^2.

    A small model of its own that implements what `LocalModel` asks of a scanned model.
    """

    def __init__(self) -> None:
        linear = nn.Linear(1, 1, bias=False)
        self.holders: dict[str, nn.Module] = {"lora_B": linear}
        self.trainable: dict[str, nn.Parameter] = {"lora_B.weight": linear.weight}
        self.num_layers, self.work, self.num_passes = 1, Work(), 0

    def is_adapter(self, name: str) -> bool:
        return True

    def train(self, mode: bool) -> None:
        """No dropout."""

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        self.num_passes += 1
        out = self.holders["lora_B"](batch.inputs["input_ids"].float())
        return Outputs(out.squeeze(1), out)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scan_of(ids: Sequence[int], batch_size: int, model: OneWeight | None = None) -> FisherScan:
    batches = list(torch.arange(len(ids)).split(batch_size))
    shard = shard_of([[i] for i in ids])
    return FisherScan(model or OneWeight(), shard, batches, ["lora_B.weight"], rng())  # type: ignore[arg-type]


def prepared(curriculum: Curriculum, scan: FisherScan) -> dict[str, Tensor]:
    return curriculum.prepare(scan, rng(), SETUP_ROUND)


def shown_by(curriculum: Curriculum, memory: dict[str, Tensor], scan: FisherScan, round_: int) -> list[Tensor]:
    return curriculum.visible(memory, scan.batches, round_, ROUNDS, rng(round_))


def sets(batches: Sequence[Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


IDS = [3, 1, 2, 2, 1, 1, 5, 0, 4]
"""traces 9, 1, 4, 4, 1, 1, 25, 0, 16"""


def test_batches_are_ordered_by_the_mean_of_their_traces() -> None:
    """Pairs of 9 + 1, 4 + 4, 1 + 1, 25 + 0, and 16 alone: 5, 4, 1, 12.5, 16, so batches 2, 1, 0, 3, 4."""
    memory = prepared(FisherOrder(), scan_of(IDS, 2))
    assert memory["order"].tolist() == [2, 1, 0, 3, 4] and memory["order"].dtype == torch.int64
    assert memory["batch_difficulty"].tolist() == [5, 4, 1, 12.5, 16]
    assert memory["sample_difficulty"].tolist() == [9, 1, 4, 4, 1, 1, 25, 0, 16]


def test_a_short_last_batch_looks_easy_by_sum_and_not_by_mean() -> None:
    """Batches of 9 + 1, 4 + 4, and 7 alone: 10, 8, 7 by sum, 5, 4, 7 by mean."""
    traces, batches = torch.tensor([9.0, 1.0, 4.0, 4.0, 7.0]), list(torch.arange(5).split(2))
    assert batch_difficulties(traces, batches, "sum").tolist() == [10, 8, 7]
    assert batch_difficulties(traces, batches, "mean").tolist() == [5, 4, 7]
    scan = scan_of([3, 2, 3, 0, 3], 2)  # pairs 9 + 4, 9 + 0, and 9 alone
    assert prepared(FisherOrder(reduce="sum"), scan)["order"].tolist() == [1, 2, 0]
    assert prepared(FisherOrder(reduce="mean"), scan)["order"].tolist() == [1, 0, 2]


def test_ties_keep_the_order_of_the_batches() -> None:
    assert prepared(FisherOrder(), scan_of([1, 2, 2, 1, 1, 1, 0, 1, 2, 1], 2))["order"].tolist() == [3, 2, 0, 1, 4]
    many = scan_of([1] * 40, 1)
    assert prepared(FisherOrder(), many)["order"].tolist() == list(range(40))


def test_samples_are_ordered_by_their_own_trace() -> None:
    """Rows of 0, 1, 1, 1, 4, 4, 9, 16, 25; the batches of a round are cut anew from them."""
    curriculum = FisherOrder(unit="sample", initial_fraction=0.5, full_at=0.8)
    scan = scan_of(IDS, 2)
    memory = prepared(curriculum, scan)
    assert memory["order"].tolist() == [7, 1, 4, 5, 2, 3, 0, 8, 6]
    assert sets(shown_by(curriculum, memory, scan, 0)) == [[7, 1], [4, 5], [2]]  # ceil(4.5) = 5 samples


def test_visible_batches_are_the_easiest_in_their_own_order() -> None:
    """Order 2, 1, 0, 3, 4 and T = 10, beta = .2, alpha = .8: 5 h = 1, 1.5, 2, ... so 1, 2, 2, 3, ... of them."""
    curriculum, scan = FisherOrder(), scan_of(IDS, 2)
    memory = prepared(curriculum, scan)
    visible = [sets(shown_by(curriculum, memory, scan, t)) for t in range(4)]
    assert visible[0] == [[4, 5]]
    assert visible[1] == visible[2] == [[2, 3], [4, 5]]
    assert visible[3] == [[0, 1], [2, 3], [4, 5]]
    assert sets(shown_by(curriculum, memory, scan, 8)) == sets(scan.batches)


@pytest.mark.parametrize("unit", ["batch", "sample", "sorted_batch"])
@pytest.mark.parametrize("kind", [FisherOrder, RandomOrder])
@pytest.mark.parametrize("pacing", [pacing for pacing in PACINGS if pacing != "soft"])
def test_what_is_visible_is_a_prefix_of_the_order_and_stays_visible(kind: type[Paced], unit: str, pacing: str) -> None:
    """E7: nested sets, each the first ones of the fixed order, and at the end each sample once."""
    rng = np.random.default_rng(0)
    scan = scan_of(rng.integers(0, 50, 23).tolist(), 3)
    curriculum = kind(unit=unit, pacing=pacing, initial_fraction=0.1, full_at=0.7)  # type: ignore[arg-type]
    memory = prepared(curriculum, scan)
    order = memory["order"].tolist()
    by_unit = sets(scan.batches) if unit == "batch" else [[row] for row in range(23)]
    assert sorted(order) == list(range(len(by_unit)))
    before: set[int] = set()
    for t in range(ROUNDS):
        seen = {row for batch in shown_by(curriculum, memory, scan, t) for row in batch.tolist()}
        prefix = next(n for n in range(len(order) + 1) if sum(len(by_unit[i]) for i in order[:n]) == len(seen))
        assert seen == {row for i in order[:prefix] for row in by_unit[i]} and seen >= before and seen
        before = seen
    assert before == set(range(23))


@pytest.mark.parametrize("unit", ["batch", "sample", "sorted_batch"])
@pytest.mark.parametrize("num_samples", [1, 3, 4, 23])
def test_a_random_order_shows_as_many_batches_as_a_fisher_order(unit: str, num_samples: int) -> None:
    """E25, in every round; it needs no squared gradients."""
    model = OneWeight()
    scan = scan_of(list(range(num_samples)), 4, model)
    fisher, random = FisherOrder(unit=unit), RandomOrder(unit=unit)  # type: ignore[arg-type]
    random_memory = prepared(random, scan)
    assert model.num_passes == 0 and "sample_difficulty" not in random_memory
    fisher_memory = prepared(fisher, scan)
    for t in range(ROUNDS):
        shown = [shown_by(c, m, scan, t) for c, m in ((fisher, fisher_memory), (random, random_memory))]
        assert len(shown[0]) == len(shown[1]) >= 1


@pytest.mark.parametrize("method", ["random-curriculum", "anti-curriculum", "fibecfed-random-order"])
def test_controls_show_as_much_in_each_round_as_fibecfed(method: str) -> None:
    """E25: the files agree in all that decides how many batches are visible."""
    found = []
    for name in (method, "fibecfed"):
        curriculum = load_method(config_folder() / "methods" / f"{name}.yaml").curriculum
        assert isinstance(curriculum, Paced)
        found.append((curriculum.pacing, curriculum.initial_fraction, curriculum.full_at, curriculum.unit))
    assert found[0] == found[1]


def test_a_random_order_follows_its_generator() -> None:
    scan = scan_of(list(range(40)), 1)
    orders = [RandomOrder().prepare(scan, rng(seed), 0)["order"].tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("kind", [FisherOrder, RandomOrder])
def test_an_open_curriculum_is_the_neutral_one(kind: type[Paced]) -> None:
    """beta = 1: the same batches in the same order, epoch by epoch."""
    scan = scan_of(IDS, 2)
    curriculum, neutral = kind(initial_fraction=1.0), Curriculum()
    memory = prepared(curriculum, scan)
    shown = [shown_by(c, m, scan, 0) for c, m in ((curriculum, memory), (neutral, {}))]
    epochs = [c.pick(v, torch.Generator().manual_seed(5)) for c, v in zip((curriculum, neutral), shown, strict=True)]
    assert sets(epochs[0]) == sets(epochs[1]) and sets(shown[0]) == sets(scan.batches)


def test_an_epoch_has_every_visible_batch_once_in_a_seeded_order() -> None:
    batches = list(torch.arange(60).split(2))
    epochs = [Curriculum().pick(batches, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert sets(epochs[0]) == sets(epochs[1]) != sets(epochs[2])
    assert all(sorted(sets(epoch)) == sets(batches) for epoch in epochs)
    assert sets(epochs[0]) != sets(batches)


def test_one_batch_is_always_shown() -> None:
    curriculum, scan = FisherOrder(initial_fraction=0.0), scan_of([4, 2], 8)
    memory = prepared(curriculum, scan)
    assert all(sets(shown_by(curriculum, memory, scan, t)) == [[0, 1]] for t in range(ROUNDS))


def test_hardest_first_is_the_reverse_with_ties_as_they_stood() -> None:
    """Means 5, 4, 1, 12.5, 16; and 1, 4, 4, 1 with the later of equals later."""
    assert prepared(FisherOrder(hardest_first=True), scan_of(IDS, 2))["order"].tolist() == [4, 3, 0, 1, 2]
    assert prepared(FisherOrder(hardest_first=True), scan_of([1, 2, 2, 1], 1))["order"].tolist() == [1, 2, 0, 3]


def test_length_power_multiplies_each_trace() -> None:
    """Token sums 3, 2 + 2, 1 + 1 + 1: traces 9, 16, 9 over lengths 1, 2, 3, so 9, 4, 1 by power -2."""
    shard = shard_of([[3], [2, 2], [1, 1, 1]])
    scan = FisherScan(SumOfTokens(), shard, list(torch.arange(3).split(1)), ["lora_B.weight"], rng())  # type: ignore[arg-type]
    memory = prepared(FisherOrder(length_power=-2), scan)
    torch.testing.assert_close(memory["sample_difficulty"], torch.tensor([9.0, 4.0, 1.0]))
    assert memory["order"].tolist() == [2, 1, 0]
    assert prepared(FisherOrder(), scan)["order"].tolist() == [0, 2, 1]


class SumOfTokens(OneWeight):
    """Loss w sum(x) over a sample's tokens."""

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        out = self.holders["lora_B"](batch.inputs["input_ids"].sum(1, keepdim=True).float())
        return Outputs(out.squeeze(1), out)


def test_when_a_curriculum_is_due() -> None:
    """Scored at init: never again, or n rounds later. Else from round w on, at the first participation."""
    scored = {"order": torch.tensor([0]), "scored_round": torch.tensor(4)}
    once, every = FisherOrder(), FisherOrder(rescore_every=3)
    late = FisherOrder(score_at="first_participation", score_from_round=2)
    assert (once.needs_setup, every.needs_setup, late.needs_setup) == (True, True, False)
    assert [once.due(scored, t) for t in (5, 99)] == [False, False]
    assert [every.due(scored, t) for t in (4, 6, 7, 9)] == [False, False, True, True]
    assert [late.due({}, t) for t in (0, 1, 2, 5)] == [False, False, True, True] and not late.due(scored, 9)


def test_before_its_first_scoring_a_device_sees_as_many_batches_in_no_order() -> None:
    late, scan = FisherOrder(score_at="first_participation", score_from_round=5, full_at=0.5), scan_of(IDS, 2)
    by_sample = late.model_copy(update={"unit": "sample"})
    for t, count in ((0, 1), (1, 2), (3, 4), (5, 5)):  # ceil(5 (.2 + .8 t / 5))
        assert sets(shown_by(late, {}, scan, t)) == sets(scan.batches)[:count]
        assert len(torch.cat(shown_by(by_sample, {}, scan, t))) == math.ceil(9 * (0.2 + 0.16 * t) - 1e-9)


def test_waiting_for_a_round_needs_scoring_at_participation() -> None:
    with pytest.raises(ValueError, match="score_from_round has an effect only with score_at: first_participation"):
        FisherOrder(score_from_round=3)


def test_a_step_matched_control_draws_as_many_batches_from_all_anew() -> None:
    """The count of the linear pacing each round; other batches in other rounds; the same again for a round."""
    scan, control, paced = scan_of(list(range(40)), 2), StepMatched(full_at=1.0), RandomOrder(full_at=1.0)
    memory, drawn = prepared(paced, scan), []
    assert not control.due({}, 3) and not control.needs_setup
    for t in range(ROUNDS):
        drawn.append(sets(shown_by(control, {}, scan, t)))
        assert len(drawn[t]) == len(shown_by(paced, memory, scan, t)) and drawn[t] == sets(
            shown_by(control, {}, scan, t)
        )
        assert all(batch in sets(scan.batches) for batch in drawn[t])
    assert not all(batch in drawn[1] for batch in drawn[0])  # no prefix of one order


def test_equal_work_is_a_few_batches_of_any_device_drawn_anew() -> None:
    """Three of ten batches, others in other rounds, the same again for a round; a device with two has both."""
    large, small, equal = scan_of(list(range(40)), 4), scan_of(list(range(8)), 4), EqualWork(batches=3)
    assert not equal.due({}, 3) and not equal.needs_setup
    drawn = [sets(shown_by(equal, {}, large, t)) for t in range(ROUNDS)]
    assert all(len(batches) == 3 and all(batch in sets(large.batches) for batch in batches) for batches in drawn)
    assert drawn[0] == sets(shown_by(equal, {}, large, 0)) and any(drawn[0] != other for other in drawn[1:])
    assert sets(shown_by(equal, {}, small, 0)) == sets(small.batches)


def test_soft_pacing_prefers_the_easy_and_ends_with_all() -> None:
    """h = .5, kappa = .1 of 100 units: the first tenth nearly always, the middle half the time, the last hardly."""
    curriculum, scan = FisherOrder(pacing="soft", initial_fraction=0.5, full_at=0.5), scan_of(list(range(100)), 1)
    memory = prepared(curriculum, scan)
    order = memory["order"].tolist()
    hits = torch.zeros(100)
    for seed in range(200):
        for batch in curriculum.visible(memory, scan.batches, 0, ROUNDS, rng(seed)):
            hits[order.index(int(batch))] += 1 / 200
    chances = torch.sigmoid((50 - torch.arange(100.0)) / 10)
    assert ((hits - chances).abs() <= 5 * (chances * (1 - chances) / 200).sqrt() + 1e-6).all()
    assert sets(shown_by(curriculum, memory, scan, 5)) == sets(scan.batches)


def test_soft_pacing_shows_the_easiest_rather_than_nothing() -> None:
    assert softly_visible(0.0, 4, 1e-3, rng()).tolist() == [0]
    assert all(len(softly_visible(0.0, 3, 0.5, rng(seed))) >= 1 for seed in range(50))


def test_softness_needs_pacing_soft() -> None:
    with pytest.raises(ValueError, match="softness has an effect only with pacing: soft"):
        FisherOrder(softness=0.2)


def test_self_paced_learning_takes_low_losses_first_without_a_backward_pass() -> None:
    """Loss w x with w = 1 is the token id; ids 3 1 2 2 1 1 5 0 4 in pairs: 2, 2, 1, 2.5, and 4 alone."""
    model = OneWeight()
    torch.nn.init.ones_(model.trainable["lora_B.weight"])
    scan = scan_of(IDS, 2, model)
    memory = prepared(LossOrder(), scan)
    assert memory["batch_difficulty"].tolist() == [2, 2, 1, 2.5, 4] and memory["order"].tolist() == [2, 0, 1, 3, 4]
    assert scan.found is None and scan.known_losses is not None and model.num_passes == 5
    assert not LossOrder().needs_setup and LossOrder().due(memory, 1) and LossOrder(rescore_every=None).due({}, 0)


def test_losses_of_a_fisher_pass_are_not_computed_again() -> None:
    model = OneWeight()
    scan = scan_of(IDS, 2, model)
    fisher = scan.read()
    assert torch.equal(scan.losses, fisher.losses) and model.num_passes == 5


@pytest.mark.parametrize("method", ["slw-authors", "shortformer-authors"])
@pytest.mark.parametrize("num_samples", [1, 5, 23])
def test_short_samples_come_first_as_in_a_co_author_s_code(method: str, num_samples: int) -> None:
    """Sort by length, cut into batches, train on the first ceil(num_batches (.6 + .4 t / (.5 T))) of them in order."""
    lengths = np.random.default_rng(1).integers(1, 9, num_samples).tolist()
    model, shard = OneWeight(), shard_of([[1] * length for length in lengths])
    batches = list(torch.randperm(num_samples, generator=rng()).split(4))
    scan = FisherScan(model, shard, batches, ["lora_B.weight"], rng())  # type: ignore[arg-type]
    curriculum = load_method(config_folder() / "methods" / f"{method}.yaml").curriculum
    memory = prepared(curriculum, scan)
    by_length = sorted(range(num_samples), key=lambda row: lengths[row])
    cut = [by_length[start : start + 4] for start in range(0, num_samples, 4)]
    for t in range(ROUNDS):
        shown = min(math.ceil(len(cut) * (0.6 + 0.4 * t / (0.5 * ROUNDS)) - 1e-9), len(cut))
        visible = shown_by(curriculum, memory, scan, t)
        assert sets(curriculum.pick(visible, rng(t))) == cut[:shown]
    assert model.num_passes == 0 and not curriculum.needs_setup


def test_rare_words_are_hard_by_hand() -> None:
    """E25: tokens 1 1 1 2 | 1 3 | 2 1: counts 5, 2, 1, plus one 6, 3, 2 of 11. The model is not run."""
    model, shard = OneWeight(), shard_of([[1, 1, 1, 2], [1, 3], [2, 1]])
    scan = FisherScan(model, shard, list(torch.arange(3).split(1)), ["lora_B.weight"], rng())  # type: ignore[arg-type]
    surprise = {1: math.log(11 / 6), 2: math.log(11 / 3), 3: math.log(11 / 2)}
    expected = [3 * surprise[1] + surprise[2], surprise[1] + surprise[3], surprise[2] + surprise[1]]
    memory = prepared(RarityOrder(), scan)
    torch.testing.assert_close(memory["sample_difficulty"], torch.tensor(expected))
    assert memory["order"].tolist() == [2, 1, 0] and model.num_passes == 0
    assert prepared(RarityOrder(per_token=True), scan)["order"].tolist() == [0, 2, 1]


def test_words_of_all_devices_are_counted_as_in_a_co_author_s_code(tmp_path: Path) -> None:
    """Sum -log(count / total) over a text's tokens, with counts of all devices' texts; rare words last."""
    _, worker_spec, _ = after_rounds(0, make_tiny("voc-authors"), tmp_path / "run")
    worker, curriculum = worker_spec.worker(), worker_spec.job.method.curriculum
    shards = [worker.data.train_shard(device) for device in range(worker.data.num_devices)]
    texts = [
        [shard.batch(torch.tensor([row])).inputs["input_ids"][0].tolist() for row in range(shard.num_samples)]
        for shard in shards
    ]
    counts = Counter(token for of_device in texts for text in of_device for token in text)
    for device, of_device in enumerate(texts):
        scan = worker.scan(shards[device], worker.batches(device), worker.initial, SETUP_ROUND, device)
        expected = torch.tensor(
            [sum(-math.log(counts[token] / counts.total()) for token in text) for text in of_device]
        )
        memory = prepared(curriculum, scan)
        torch.testing.assert_close(memory["sample_difficulty"], expected)
        assert torch.equal(memory["order"], torch.argsort(memory["sample_difficulty"], stable=True))
        assert worker.data.num_words(device) == len({token for text in of_device for token in text})
    with pytest.raises(ValueError, match="counted_on: federation counts .* set score_at: init too"):
        RarityOrder(counted_on="federation")


def test_the_order_of_words_means_nothing_to_rarity() -> None:
    """E25."""
    texts = [[1, 2, 3, 4], [5, 5, 1], [2, 6]]
    found = []
    for shard in (shard_of(texts), shard_of([text[::-1] for text in texts])):
        scan = FisherScan(OneWeight(), shard, [torch.arange(3)], ["lora_B.weight"], rng())  # type: ignore[arg-type]
        found.append(prepared(RarityOrder(), scan)["sample_difficulty"])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("unit", ["batch", "sample", "sorted_batch"])
def test_without_a_shuffle_every_epoch_goes_from_easy_to_hard(unit: str) -> None:
    """Batches by difficulty: 2, 1, 0, 3, 4; samples 7, 1, 4, 5, 2, 3, 0, 8, 6."""
    curriculum = FisherOrder(shuffle=False, initial_fraction=1.0, unit=unit)  # type: ignore[arg-type]
    scan = scan_of(IDS, 2)
    shown = shown_by(curriculum, prepared(curriculum, scan), scan, 0)
    expected = [[4, 5], [2, 3], [0, 1], [6, 7], [8]] if unit == "batch" else [[7, 1], [4, 5], [2, 3], [0, 8], [6]]
    assert all(sets(curriculum.pick(shown, rng(seed))) == expected for seed in range(3))


def test_an_inclusive_threshold_shows_one_unit_more_but_never_more_than_all() -> None:
    """5 h = 1, 1.5, 2, 2.5, 3, ... so 1 + 1, 2 + 1, 2 + 1, 3 + 1, 3 + 1, 4 + 1, then all 5."""
    curriculum, scan = FisherOrder(inclusive=True), scan_of(IDS, 2)
    memory = prepared(curriculum, scan)
    assert [len(shown_by(curriculum, memory, scan, t)) for t in range(ROUNDS)] == [2, 3, 3, 4, 4, 5, 5, 5, 5, 5]
    with pytest.raises(ValueError, match="inclusive has no effect with pacing: soft"):
        FisherOrder(pacing="soft", inclusive=True)


class Dropping(OneWeight):
    """The same with dropout of half of the inputs, in training mode."""

    training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        ids = nn.functional.dropout(batch.inputs["input_ids"].float(), training=self.training)
        out = self.holders["lora_B"](ids)
        return Outputs(out.squeeze(1), out)


def test_scoring_with_dropout_depends_on_the_scan_s_generator_alone() -> None:
    """Traces are 0 or (2 x)^2. The mode and torch's own generator are as before afterwards, and losses stay exact."""
    found = []
    for other in range(2):
        torch.manual_seed(other)
        scan, before = scan_of(IDS, 2, Dropping()), torch.get_rng_state()
        found.append(prepared(FisherOrder(dropout=True), scan)["sample_difficulty"])
        assert torch.equal(torch.get_rng_state(), before) and not scan.model.training  # type: ignore[attr-defined]
        assert scan.known_losses is None
        assert torch.equal(prepared(FisherOrder(), scan)["sample_difficulty"], torch.tensor(IDS).square().float())
    assert torch.equal(found[0], found[1])
    full = 4 * torch.tensor(IDS).square().float()
    assert bool(((found[0] == 0) | (found[0] == full)).all()) and 0 < int((found[0] == full).sum()) < len(IDS)


@pytest.mark.parametrize("pacing", ["linear", "soft"])
def test_a_final_fraction_leaves_the_hardest_out_for_good(pacing: str) -> None:
    """Ten samples in order of difficulty; at most 60 % are ever shown (softly: on average, and never all)."""
    curriculum = FisherOrder(unit="sample", pacing=pacing, full_at=0.5, final_fraction=0.6)  # type: ignore[arg-type]
    scan = scan_of(list(range(100)), 1)
    memory = curriculum.prepare(scan, torch.Generator(), 0)
    counts, seen = [], set[int]()
    for round_ in range(10):
        rng = torch.Generator().manual_seed(round_)
        shown = torch.cat(curriculum.visible(memory, scan.batches, round_, 10, rng)).tolist()
        counts.append(len(shown))
        seen |= set(shown)
    assert counts == sorted(counts) or pacing == "soft"
    if pacing == "linear":
        assert counts[-1] == 60 and seen == set(memory["order"][:60].tolist())
    else:
        assert max(counts) < 75 and 99 not in seen


def test_a_final_fraction_below_the_initial_one_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"final_fraction 0.1 is below initial_fraction 0.2; raise final_fraction"):
        FisherOrder(final_fraction=0.1)
