"""Orders and visible sets of the curricula, on a model whose difficulties can be read off the samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from conftest import shard_of
from torch import Tensor, nn

from fibec_ray.fisher import FisherScan
from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.curriculum.fisher_order import FisherOrder, batch_difficulties
from fibec_ray.parts.curriculum.paced import Paced
from fibec_ray.parts.curriculum.pacing import PACINGS
from fibec_ray.parts.curriculum.random_order import RandomOrder
from fibec_ray.types import Batch, Outputs, Work

ROUNDS = 10


class OneWeight:
    """Loss w x with x the token id: the trace of sample x is x^2.

    A small model of its own that implements what `LocalModel` asks of a scanned model.
    """

    def __init__(self) -> None:
        linear = nn.Linear(1, 1, bias=False)
        self.linears: dict[str, nn.Linear] = {"lora_B": linear}
        self.trainable: dict[str, nn.Parameter] = {"lora_B.weight": linear.weight}
        self.num_layers, self.work, self.num_passes = 1, Work(), 0

    def train(self, mode: bool) -> None:
        """No dropout."""

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        self.num_passes += 1
        out = self.linears["lora_B"](batch.input_ids.float())
        return Outputs(out.squeeze(1), out)


def scan_of(ids: Sequence[int], batch_size: int, model: OneWeight | None = None) -> FisherScan:
    batches = list(torch.arange(len(ids)).split(batch_size))
    return FisherScan(model or OneWeight(), shard_of([[i] for i in ids]), batches, ["lora_B.weight"])  # type: ignore[arg-type]


def prepared(curriculum: Curriculum, scan: FisherScan) -> dict[str, Tensor]:
    return curriculum.prepare(scan, torch.Generator().manual_seed(0))


def sets(batches: Sequence[Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


IDS = [3, 1, 2, 2, 1, 1, 5, 0, 4]
"""traces 9, 1, 4, 4, 1, 1, 25, 0, 16"""


def test_batches_are_ordered_by_the_sum_of_their_traces() -> None:
    """Pairs of 9 + 1, 4 + 4, 1 + 1, 25 + 0, and 16 alone: 10, 8, 2, 25, 16, so batches 2, 1, 0, 4, 3."""
    memory = prepared(FisherOrder(), scan_of(IDS, 2))
    assert memory["order"].tolist() == [2, 1, 0, 4, 3] and memory["order"].dtype == torch.int64
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
    assert sets(curriculum.visible(memory, scan.batches, 0, ROUNDS)) == [[7, 1], [4, 5], [2]]  # ceil(4.5) = 5 samples


def test_visible_batches_are_the_easiest_in_their_own_order() -> None:
    """Order 2, 1, 0, 4, 3 and T = 10, beta = .2, alpha = .8: 5 h = 1, 1.5, 2, ... so 1, 2, 2, 3, ... of them."""
    curriculum, scan = FisherOrder(), scan_of(IDS, 2)
    memory = prepared(curriculum, scan)
    visible = [sets(curriculum.visible(memory, scan.batches, t, ROUNDS)) for t in range(4)]
    assert visible[0] == [[4, 5]]
    assert visible[1] == visible[2] == [[2, 3], [4, 5]]
    assert visible[3] == [[0, 1], [2, 3], [4, 5]]
    assert sets(curriculum.visible(memory, scan.batches, 8, ROUNDS)) == sets(scan.batches)


@pytest.mark.parametrize("unit", ["batch", "sample"])
@pytest.mark.parametrize("kind", [FisherOrder, RandomOrder])
@pytest.mark.parametrize("pacing", PACINGS)
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
        seen = {row for batch in curriculum.visible(memory, scan.batches, t, ROUNDS) for row in batch.tolist()}
        prefix = next(n for n in range(len(order) + 1) if sum(len(by_unit[i]) for i in order[:n]) == len(seen))
        assert seen == {row for i in order[:prefix] for row in by_unit[i]} and seen >= before and seen
        before = seen
    assert before == set(range(23))


@pytest.mark.parametrize("unit", ["batch", "sample"])
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
        shown = [c.visible(m, scan.batches, t, ROUNDS) for c, m in ((fisher, fisher_memory), (random, random_memory))]
        assert len(shown[0]) == len(shown[1]) >= 1


def test_a_random_order_follows_its_generator() -> None:
    scan = scan_of(list(range(40)), 1)
    orders = [RandomOrder().prepare(scan, torch.Generator().manual_seed(seed))["order"].tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("kind", [FisherOrder, RandomOrder])
def test_an_open_curriculum_is_the_neutral_one(kind: type[Paced]) -> None:
    """beta = 1: the same batches in the same order, epoch by epoch."""
    scan = scan_of(IDS, 2)
    curriculum, neutral = kind(initial_fraction=1.0), Curriculum()
    memory = prepared(curriculum, scan)
    shown = [c.visible(m, scan.batches, 0, ROUNDS) for c, m in ((curriculum, memory), (neutral, {}))]
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
    assert all(sets(curriculum.visible(memory, scan.batches, t, ROUNDS)) == [[0, 1]] for t in range(ROUNDS))
