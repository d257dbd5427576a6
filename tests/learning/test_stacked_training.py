"""Groups of lanes with uneven work train as each device alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import shard_of
from other_device import moved, without_transfers
from torch import Tensor, nn

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning import lane_passes, optimiser_step, stacked_training
from fibec_ray.learning.guarded_steps import Guard
from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.lanes import LaneModel, Lanes
from fibec_ray.learning.local_update import FREE, Moves, Steps, Terms, Trained, local_update
from fibec_ray.parts.objective import OBJECTIVES
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.privacy.base import StepGuard
from fibec_ray.parts.solver.base import Pull
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors

LOCAL = LocalTraining(optimizer="sgd", learning_rate=0.3, clip=0.5)
SHARDS = [
    shard_of([[5, 6, 7, 8], [9, 8, 7], [6, 6, 6, 6], [8, 9]]),
    shard_of([[5, 6, 7, 9, 4], [4, 8], [9, 9, 9]]),
    shard_of([[7] * 12, [6] * 3]),
]
ROWS = [[[0, 1], [2, 3], [1, 2], [3, 0]], [[0, 1], [2]], [[0], [0, 1], [1]]]
"""Batches of each lane: 4, 2 and 3 of them, of one or two samples."""


@pytest.fixture
def model(tiny_settings: Any, tmp_path: Path) -> Any:
    experiment, run = check(tiny_settings("fedavg"), "test"), tmp_path / "run"
    run.mkdir()
    prepared = prepare(experiment, run)
    found: Any = WorkerSpec(experiment.job(prepared.answers(experiment.task)), run, cache_dir()).worker().model
    rng = torch.Generator().manual_seed(5)
    found.load({name: 0.1 * torch.randn(p.shape, generator=rng) for name, p in found.trainable.items()})
    return found


def steps_of(lane: int, local: LocalTraining = LOCAL, repeats: int = 1) -> Steps:
    return Steps([torch.tensor(rows) for rows in ROWS[lane]], local, local.learning_rate, repeats)


def both(
    model: Any,
    terms: Sequence[Terms],
    moves: Sequence[Moves] = (FREE,) * 3,
    local: LocalTraining = LOCAL,
    repeats: int = 1,
    rule: StepGuard | None = None,
) -> list[tuple[Trained, Tensors, Tensors]]:
    """Train three lanes alone and together, compare them, and return what each lane did, its values and memory."""
    start, alone = model.read(), []

    def guard(lane: int) -> Guard | None:
        return None if rule is None else Guard(rule, torch.Generator().manual_seed(lane))

    for lane in range(3):
        model.load(start)
        own = replace(terms[lane], memory=dict(terms[lane].memory))
        trained = local_update(model, SHARDS[lane], steps_of(lane, local, repeats), own, moves[lane], guard(lane))
        alone.append((trained, model.read(), own.memory))
    model.load(start)
    lanes = Lanes(model, 3)
    owns = [replace(each, memory=dict(each.memory)) for each in terms]

    def piece(lane: int) -> Trained:
        steps = steps_of(lane, local, repeats)
        return local_update(lanes.models[lane], SHARDS[lane], steps, owns[lane], moves[lane], guard(lane))

    together = lanes.run([lambda lane=lane: piece(lane) for lane in range(3)])  # type: ignore[misc]
    found = [(trained, lanes.models[lane].read(), owns[lane].memory) for lane, trained in enumerate(together)]
    for (one, values, memory), (other, wanted, wanted_memory) in zip(found, alone, strict=True):
        assert (one.num_steps, one.num_samples) == (other.num_steps, other.num_samples)
        torch.testing.assert_close(one.mean_loss, other.mean_loss, atol=2e-6, rtol=2e-6)
        for left, right in ((values, wanted), (memory, wanted_memory), (one.squares, other.squares)):
            torch.testing.assert_close(left, right, atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(one.centre, other.centre, atol=2e-6, rtol=2e-6)
    assert any(not torch.equal(value, start[name]) for name, value in found[0][1].items())
    return found


PLAIN = [Terms()] * 3


@pytest.mark.parametrize("fill", [0.1, 0.75, 2.0], ids=["one pass", "few passes", "a pass for each"])
def test_uneven_steps_batches_and_lengths(model: Any, fill: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_passes, "LEAST_FILL", fill)
    both(model, PLAIN)


def test_batches_that_would_be_mostly_padding_have_passes_of_their_own() -> None:
    batches = [shard.batch(torch.tensor([0])) for shard in SHARDS]
    assert lane_passes.alike(batches) == [[2], [0, 1]]  # 12, 4 and 5 tokens
    pair = SHARDS[0].batch(torch.tensor([0, 1]))
    assert lane_passes.alike([pair, batches[0]]) == [[0], [1]], "half of the second lane's rows would be copies"


@pytest.mark.parametrize("fill", [0.1, 2.0], ids=["one pass", "a pass for each"])
def test_clipped_gradients_of_samples_and_their_noise(model: Any, fill: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that fill up a batch do not count, a lane draws its own noise, and frozen entries have no norm."""
    monkeypatch.setattr(lane_passes, "LEAST_FILL", fill)
    names = [name for name in model.trainable if "lora_A" in name]
    rng = torch.Generator().manual_seed(1)
    keep = [{name: torch.rand(model.trainable[name].shape, generator=rng) > 0.5 for name in names} for _ in range(3)]
    frozen = {name: torch.zeros_like(mask) for name, mask in keep[1].items()}
    moves = [Moves(keep=keep[0]), Moves(keep=frozen), Moves(keep=keep[2])]
    both(model, PLAIN, moves, rule=StepGuard(0.1, 0.5))


def test_masks_squares_repeats_and_pulls(model: Any) -> None:
    rng = torch.Generator().manual_seed(1)
    names = [name for name in model.trainable if "lora_A" in name]
    moves = []
    for _ in range(3):
        keep = {name: torch.rand(model.trainable[name].shape, generator=rng) > 0.5 for name in names}
        centre = {name: torch.randn(p.shape, generator=rng) for name, p in model.trainable.items()}
        moves.append(Moves(keep=keep, pull=Pull(centre, 0.1, follow=0.2), watch=names))
    found = both(model, PLAIN, moves, repeats=2)
    assert found[1][0].squares.keys() == set(names) and found[1][0].centre.keys() == model.trainable.keys()


def test_only_some_tensors_move(model: Any) -> None:
    start, head = model.read(), [name for name in model.trainable if not model.is_adapter(name)]
    for _, values, _ in both(model, PLAIN, [Moves(names=head)] * 3):
        assert [name for name, value in values.items() if not torch.equal(value, start[name])] == head


class Leaning(Objective):
    """Not side by side: pulls towards 0, counts the device's steps, and replaces a gradient."""

    kind: str = "leaning"

    def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        return 0.01 * sum((value**2).sum() for value in params.values())  # type: ignore[return-value]

    def correct(self, params: Mapping[str, nn.Parameter], memory: Tensors, control: Tensors) -> None:
        memory["steps"] = memory.get("steps", torch.zeros(())) + 1
        first = next(iter(params.values()))
        assert first.grad is not None
        first.grad = first.grad * 0.5 + control["shift"]


def test_an_objective_that_is_not_side_by_side_is_called_lane_by_lane(model: Any) -> None:
    found = both(model, [Terms(Leaning(), {}, {"shift": torch.tensor(0.01)})] * 3)
    assert [float(memory["steps"]) for _, _, memory in found] == [4, 2, 3]


def memory_of(model: Any, seed: int) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(p.shape, generator=rng) for name, p in model.trainable.items()}


@pytest.mark.parametrize("kind", ["proximal", "feddyn", "scaffold"])
def test_objectives_that_work_side_by_side(model: Any, kind: str) -> None:
    objective = OBJECTIVES[kind]()
    assert objective.side_by_side
    control = memory_of(model, 9) if kind == "scaffold" else {}
    both(model, [Terms(objective, {} if kind == "proximal" else memory_of(model, lane), control) for lane in range(3)])


def test_devices_with_and_without_a_memory(model: Any) -> None:
    """The second of SCAFFOLD's devices takes part for the first time."""
    objective, control = OBJECTIVES["scaffold"](), memory_of(model, 9)
    both(model, [Terms(objective, {} if lane == 1 else memory_of(model, lane), control) for lane in range(3)])


def test_adamw_keeps_its_moments_when_a_lane_ends(model: Any) -> None:
    """With few steps and gradients far from 0, AdamW agrees as closely as SGD does."""
    local = LocalTraining(optimizer="adamw", learning_rate=1e-3)
    head = [name for name in model.trainable if not model.is_adapter(name)]
    both(model, PLAIN, [Moves(names=head)] * 3, local)


def test_a_penalty_of_several_values_is_refused(model: Any) -> None:
    class Wide(Leaning):
        def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
            return next(iter(params.values())).flatten()[:2]

    lanes = Lanes(model, 2)
    pieces = [
        lambda lane=lane: local_update(lanes.models[lane], SHARDS[lane], steps_of(lane), Terms(Wide()))
        for lane in range(2)
    ]
    with pytest.raises(ConfigError, match=r"penalty returned \(2,\) values; return one"):
        lanes.run(pieces)  # type: ignore[arg-type]


def failing(model: Any, steps: Sequence[Steps], terms: Sequence[Terms]) -> list[int]:
    """The lanes whose own work the error of a group went through."""
    lanes, went_through = Lanes(model, len(steps)), list[int]()

    def work(lane: int) -> None:
        try:
            local_update(lanes.models[lane], SHARDS[lane], steps[lane], terms[lane])
        except KeyError:
            went_through.append(lane)
            raise

    with pytest.raises(KeyError, match="nothing"):
        lanes.run([lambda lane=lane: work(lane) for lane in range(len(steps))])  # type: ignore[misc]
    return went_through


def test_an_error_in_ones_own_objective_is_of_the_device_where_it_happens(model: Any) -> None:
    """The error's lane is the second of three, and the last in the group, which is sorted by steps."""

    class Broken(Leaning):
        def correct(self, params: Mapping[str, nn.Parameter], memory: Tensors, control: Tensors) -> None:
            if "broken" in memory:
                raise KeyError("nothing")

    objective = Broken()
    terms = [Terms(objective, {"broken": torch.zeros(())} if lane == 1 else {}) for lane in range(3)]
    assert failing(model, [steps_of(lane) for lane in range(3)], terms) == [1]


def test_an_error_in_picking_batches_is_of_the_device_where_it_happens(model: Any) -> None:
    def broken() -> Iterator[Tensor]:
        yield torch.tensor([0])
        raise KeyError("nothing")

    assert failing(model, [steps_of(0), replace(steps_of(1), batches=broken())], PLAIN) == [1]


def test_an_objective_may_give_a_gradient_to_a_tensor_that_has_none(model: Any) -> None:
    class Giving(Objective):
        kind: str = "giving"

        def correct(self, params: Mapping[str, nn.Parameter], memory: Tensors, control: Tensors) -> None:
            for param in params.values():
                param.grad = torch.ones_like(param) if param.grad is None else param.grad

    unused = next(iter(model.trainable))
    derive = model.derive

    def without(values: Any, tensors: Any, cotangents: Any, retain_graph: bool) -> Any:
        return [None, *derive(values, tensors, cotangents, retain_graph)[1:]]

    model.derive = without
    start = model.read()[unused]
    for _, values, _ in both(model, [Terms(Giving())] * 3):
        assert not torch.equal(values[unused], start)


def test_lanes_train_together_although_one_has_other_work_first(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes, sizes = Lanes(model, 3), []
    whole = stacked_training._Group.run
    monkeypatch.setattr(
        stacked_training._Group, "run", lambda self: (sizes.append(len(self._trainings)), whole(self))[1]
    )

    def work(lane: int) -> None:
        own: LaneModel = lanes.models[lane]
        if lane == 1:
            with torch.no_grad():
                own.forward(SHARDS[lane].batch(torch.tensor([0])))
        local_update(own, SHARDS[lane], steps_of(lane))

    lanes.run([lambda lane=lane: work(lane) for lane in range(3)])  # type: ignore[misc]
    assert sizes == [3]


def test_a_lane_without_steps(model: Any) -> None:
    lanes, start = Lanes(model, 2), model.read()
    none = Steps([], LOCAL, 0.1)
    trained = lanes.run(
        [
            lambda: local_update(lanes.models[0], SHARDS[0], none),
            lambda: local_update(lanes.models[1], SHARDS[1], steps_of(1)),
        ]
    )
    assert trained[0] == Trained(0, 0, None, {}) and trained[1].num_steps == 2
    assert all(torch.equal(value, start[name]) for name, value in lanes.models[0].read().items())


def test_a_step_moves_nothing_between_devices(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a second device, with transfers and everything that waits for it forbidden."""
    # Fused optimisers do not know the meta device.
    monkeypatch.setattr(optimiser_step, "_optimizer", lambda local, params, rate: torch.optim.SGD(params, lr=rate))
    there = moved(model)
    lanes = Lanes(there, 2)
    asked = [
        stacked_training.LaneTraining(lane, stacked_training.Training(lanes.models[lane], SHARDS[lane], steps_of(lane)))
        for lane in (0, 1)
    ]
    rows = [[torch.tensor(each) for each in ROWS[lane]] for lane in (0, 1)]
    group = stacked_training._Group(there, lanes._values, asked, rows)
    passes = group.passes()
    with without_transfers():
        for of_step in passes:
            group._narrow(sum(len(one.lanes) for one in of_step))
            group._take(of_step)
