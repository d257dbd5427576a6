"""Lanes: several devices on one model, whose passes are computed together.

Each device runs the same code as alone, on a `LaneModel` with its own trainable values. Passes without gradients, and
those through `per_sample_grads` and `grad`, wait for the other lanes; compatible ones become one forward or backward
pass over all samples. Local training waits until every lane asks for it, and then takes each step for all of them
(`stacked_training.py`). A lane computes everything else by itself.

Results match training each device alone, up to rounding from different padding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fibec_ray.curvature.per_sample import Caught, Part
from fibec_ray.learning.batching_scheduler import BatchingScheduler
from fibec_ray.learning.lane_passes import LEAST_FILL
from fibec_ray.learning.lane_values import LaneValues
from fibec_ray.learning.local_update import Trained, Training
from fibec_ray.learning.stacked_terms import LaneError
from fibec_ray.learning.stacked_training import LaneTraining, train_stacked
from fibec_ray.model_types import Batch, LaneBatch, LanedModel, Outputs, Work
from fibec_ray.tensors import Tensors, drop, select

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Pass:
    """A request for a forward pass over the lane's batch."""

    lane: LaneModel
    batch: Batch
    embeds: Tensor | None
    hidden: bool
    names: frozenset[str]
    graph: bool

    @property
    def kind(self) -> Any:
        """Passes of one kind can be computed together."""
        return self.graph, self.hidden, self.names, self.embeds is None, self.lane.training, self.lane.rank

    @property
    def length(self) -> int:
        """Positions per sample, padding included."""
        return self.batch.length


@dataclass(eq=False)
class _Shared:
    """A joint pass with a graph: its lanes, and their parts of the outputs of holders."""

    parts: dict[LaneModel, Part]
    tensors: set[int]
    """ids of the joint outputs of holders"""


@dataclass(frozen=True, eq=False)
class _Gradient:
    """A request for gradients of a value computed from a pass."""

    lane: LaneModel
    shared: _Shared
    value: Tensor
    tensors: Sequence[Tensor]
    cotangent: Tensor | None
    retain_graph: bool


class Lanes:
    """Gives `size` devices one model; `run` runs their work side by side."""

    def __init__(self, model: LanedModel, size: int):
        self._model = model
        self._scheduler = BatchingScheduler(self._answer)
        self._values = LaneValues(model.trainable, size)
        self.models = [LaneModel(model, self._scheduler, self._values, lane) for lane in range(size)]

    def run(self, pieces: Sequence[Callable[[], T]]) -> list[T]:
        """Run the pieces of work, the first on the first of `models` and so on; return their results."""
        return self._scheduler.run(pieces)

    def _answer(self, questions: dict[int, Any]) -> dict[int, Any]:
        """Answer what can be computed together. Training waits until every lane asks for it, so that all share it."""
        passes = {i: each for i, each in questions.items() if not isinstance(each, LaneTraining)}
        answers: dict[int, Any] = {}
        blamed: list[int] = []
        for group in _groups(passes or questions):
            asked = [questions[i] for i in group]
            try:
                found = self._work(asked)
            except LaneError as error:
                blamed.append(group[error.lane])
                found = [error.__cause__] * len(group)
            except Exception as error:  # raised in the work that asked, which adds where it happened
                found = [error] * len(group)
            answers |= dict(zip(group, found, strict=True))
        # The first error ends all work: that of the lane where it happened.
        return {i: answers[i] for i in [*blamed, *sorted(answers)]}

    def _work(self, asked: Sequence[Any]) -> Sequence[Any]:
        if isinstance(asked[0], LaneTraining):
            return train_stacked(self._model, self._values, asked)
        return _pass(self._model, asked) if isinstance(asked[0], _Pass) else _gradients(self._model, asked)


class LaneModel:
    """One lane: a `LocalModel` with its own trainable values, initially the model's."""

    def __init__(self, model: LanedModel, scheduler: BatchingScheduler, values: LaneValues, lane: int):
        self._model, self._scheduler, self._values, self._lane = model, scheduler, values, lane
        self.holders, self.adapter_config = model.holders, model.adapter_config
        self.layer_of, self.is_adapter, self.embed = model.layer_of, model.is_adapter, model.embed
        self.shared: _Shared | None = None
        """the pass that `grad` differentiates"""
        self.num_layers, self.work = model.num_layers, Work()
        self.training, self.rank = False, None  # type: bool, int | None

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        return self._values.parameters(self._lane)

    @property
    def server_only(self) -> Collection[str]:
        return self._model.server_only

    def load(self, values: Mapping[str, Tensor]) -> None:
        # All lanes have one broadcast, so they share what only the server changes.
        self._model.load(select(values, self._model.server_only))
        self._values.load(self._lane, drop(values, self._model.server_only))

    def read(self, names: Collection[str] | None = None) -> Tensors:
        wanted = [name for name in self._model.server_only if names is None or name in names]
        return self._values.read(self._lane, names) | (self._model.read(wanted) if wanted else {})

    def train_in_group(self, training: Training) -> Trained:
        steps = training.steps
        # Picked here, so that an error of a curriculum is one of this device.
        rows = list(islice(steps.batches, steps.settings.max_steps))
        training = replace(training, steps=replace(steps, batches=rows))
        found: Trained = self._scheduler.ask(LaneTraining(self._lane, training, self.rank))
        return found

    def set_rank(self, rank: int | None) -> None:
        self.rank = rank

    def train(self, mode: bool) -> None:
        self.training = mode

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        graph = torch.is_grad_enabled()
        self.work.add(self._model.cost(batch, graph))
        question = _Pass(self, batch, embeds, hidden, frozenset(), graph)
        # A separate graph: a backward pass outside `grad` would otherwise go through those of all lanes.
        out, _ = _pass(self._model, [question])[0] if graph else self._scheduler.ask(question)
        return out

    def stacked(self, values: Mapping[str, Tensor], batch: Batch) -> tuple[Outputs, Caught]:
        """One pass over the lane's own batch, by itself; see `LanedModel.stacked`."""
        self.work.add(self._model.cost(batch, torch.is_grad_enabled()))
        self._model.train(self.training)
        self._model.set_rank(self.rank)
        return self._model.stacked(values, batch)

    def per_sample_grads(
        self, batch: Batch, names: Collection[str] = (), embeds: Tensor | None = None, hidden: bool = False
    ) -> tuple[Outputs, Caught]:
        self.work.add(self._model.cost(batch, graph=True))
        with torch.enable_grad():
            found: tuple[Outputs, Caught] = self._scheduler.ask(
                _Pass(self, batch, embeds, hidden, frozenset(names), graph=True)
            )
        return found

    def grad(
        self, value: Tensor, tensors: Sequence[Tensor], cotangent: Tensor | None = None, retain_graph: bool = False
    ) -> list[Tensor | None]:
        assert self.shared is not None, "call `per_sample_grads` before `grad`"
        found: list[Tensor | None] = self._scheduler.ask(
            _Gradient(self, self.shared, value, tensors, cotangent, retain_graph)
        )
        return found


def _groups(questions: dict[int, Any]) -> list[list[int]]:
    """Group the requests that can be computed together, in an order that depends only on the requests."""
    kinds: dict[Any, list[int]] = {}
    for i, question in questions.items():
        kinds.setdefault(question.shared if isinstance(question, _Gradient) else question.kind, []).append(i)
    groups = []
    for members in kinds.values():
        passes = isinstance(questions[members[0]], _Pass)
        groups.extend(_by_length(members, questions) if passes else [members])
    return groups


def _by_length(members: list[int], questions: dict[int, Any]) -> list[list[int]]:
    """Group passes by length, longest first; start a new group where a batch would be mostly padding."""
    groups: list[list[int]] = []
    for i in sorted(members, key=lambda i: -questions[i].length):
        if groups and questions[i].length >= LEAST_FILL * questions[groups[-1][0]].length:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [sorted(group) for group in groups]


def _pass(model: LanedModel, asked: Sequence[_Pass]) -> list[tuple[Outputs, Caught]]:
    """One forward pass for all requests."""
    first = asked[0]
    model.train(first.lane.training)
    model.set_rank(first.lane.rank)
    with torch.set_grad_enabled(first.graph):
        lanes = [LaneBatch(each.lane.trainable, each.batch, each.embeds) for each in asked]
        outs, caught = model.together(lanes, first.names, first.hidden)
    shared = _Shared(_parts(asked), {id(tensor) for tensor in caught.tensors})
    for lane in shared.parts:
        lane.shared = shared
    return [(out, caught.part(part)) for out, part in zip(outs, shared.parts.values(), strict=True)]


def _parts(asked: Sequence[_Pass]) -> dict[LaneModel, Part]:
    k = asked[0].batch.rows_each
    padded, ends = max(each.length for each in asked), list(accumulate(each.batch.num_samples for each in asked))
    starts = [0, *ends]
    return {
        each.lane: Part(slice(start, end), each.length // k, padded // k, ends[-1], k)
        for each, start, end in zip(asked, starts, ends, strict=False)
    }


def _gradients(model: LanedModel, asked: Sequence[_Gradient]) -> list[list[Tensor | None]]:
    """One backward pass through a joint graph for all requests.

    Each request gets the gradients of its own tensors, and its own rows of the gradients of joint tensors. Sums over
    lanes mix nothing: no lane's value depends on another's tensors or rows.
    """
    shared = asked[0].shared
    wanted = {id(tensor): tensor for each in asked for tensor in each.tensors}
    # Lanes that have not asked yet may still do so.
    retain = any(each.retain_graph for each in asked) or len(asked) < len(shared.parts)
    values, cotangents = [each.value for each in asked], [each.cotangent for each in asked]
    grads = model.derive(values, list(wanted.values()), cotangents, retain)
    by_id = dict(zip(wanted, grads, strict=True))

    def own(each: _Gradient, tensor: Tensor) -> Tensor | None:
        grad = by_id[id(tensor)]
        return grad if grad is None or id(tensor) not in shared.tensors else shared.parts[each.lane].of(grad)

    return [[own(each, tensor) for tensor in each.tensors] for each in asked]
