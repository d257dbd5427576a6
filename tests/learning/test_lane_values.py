"""The values of lanes, and their copy on the host when they are on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fibec_ray.learning.lane_values import LaneValues


def made(copied: bool) -> LaneValues:
    return LaneValues({"a": nn.Parameter(torch.tensor([1.0, 2.0])), "b": nn.Parameter(torch.zeros(1))}, 3, copied)


def of_lane(values: LaneValues, lane: int) -> list[list[float]]:
    return [value.tolist() for value in values.read(lane).values()]


@pytest.mark.parametrize("copied", [False, True])
def test_each_lane_starts_with_the_models_values(copied: bool) -> None:
    values = made(copied)
    assert [of_lane(values, lane) for lane in range(3)] == [[[1.0, 2.0], [0.0]]] * 3
    assert {name: tuple(stack.shape) for name, stack in values.stacks.items()} == {"a": (3, 2), "b": (3, 1)}


@pytest.mark.parametrize("copied", [False, True])
def test_loading_a_lane_changes_only_its_own_values(copied: bool) -> None:
    values = made(copied)
    values.load(1, {"a": torch.tensor([5.0, 6.0])})
    assert values.parameters(1)["a"].tolist() == [5.0, 6.0] == values.stacks["a"][1].tolist()
    assert [of_lane(values, lane) for lane in (0, 2)] == [[[1.0, 2.0], [0.0]]] * 2


@pytest.mark.parametrize("copied", [False, True])
def test_training_and_loading_in_turn(copied: bool) -> None:
    """A lane that loads after training must not bring back another lane's values from before."""
    values = made(copied)
    values.load(0, {"a": torch.tensor([3.0, 3.0])})
    values.stacks["a"].add_(10.0)
    values.changed()
    values.load(1, {"a": torch.tensor([7.0, 7.0]), "b": torch.ones(1)})
    assert values.stacks["a"].tolist() == [[13.0, 13.0], [7.0, 7.0], [11.0, 12.0]]
    assert [of_lane(values, lane) for lane in range(3)] == [
        [[13.0, 13.0], [0.0]],
        [[7.0, 7.0], [1.0]],
        [[11.0, 12.0], [0.0]],
    ]


@pytest.mark.parametrize("copied", [False, True])
def test_reads_are_copies(copied: bool) -> None:
    values = made(copied)
    before = values.read(0, {"a"})
    values.stacks["a"].zero_()
    values.changed()
    assert before["a"].tolist() == [1.0, 2.0] and values.read(0)["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("copied", [False, True])
def test_a_lane_that_loads_does_not_end_the_graph_of_another(copied: bool) -> None:
    values = made(copied)
    own = values.parameters(0)["a"]
    loss = (own**2).sum()
    values.load(1, {"a": torch.ones(2)})
    assert values.parameters(1)["a"].tolist() == [1.0, 1.0]
    assert torch.autograd.grad(loss, own)[0].tolist() == [2.0, 4.0]


def test_a_lane_that_changes_its_own_values_ends_its_graph() -> None:
    values = made(copied=False)
    own = values.parameters(0)["a"]
    loss = (own**2).sum()
    values.load(0, {"a": torch.ones(2)})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, own)


def test_a_round_moves_one_tensor_per_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lanes load and read two tensors: two transfers each way."""
    values = LaneValues({"a": nn.Parameter(torch.zeros(2)), "b": nn.Parameter(torch.zeros(1))}, 10, copied=True)
    moved: list[tuple[int, ...]] = []
    copy = Tensor.copy_

    def counted(self: Tensor, source: Tensor, *rest: object) -> Tensor:
        moved.extend([tuple(self.shape)] if len(self) == 10 else [])
        return copy(self, source)

    monkeypatch.setattr(Tensor, "copy_", counted)
    for lane in range(10):
        values.load(lane, {"a": torch.ones(2), "b": torch.ones(1)})
    assert values.stacks["a"].sum() == 20 and sorted(moved) == [(10, 1), (10, 1), (10, 2), (10, 2)]
    moved.clear()
    values.changed()
    assert sum(float(values.read(lane)["a"].sum()) for lane in range(10)) == 20
    assert sorted(moved) == [(10, 1), (10, 2)]
