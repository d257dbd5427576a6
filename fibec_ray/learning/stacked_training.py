"""Trains a group of devices with one forward pass, one backward pass and one optimiser step for all of them.

Each trained tensor is one tensor for the whole group, with a leading lane axis. Batches are on the model's device
before the first step, and nothing returns to the host until the last one. The lanes with the most steps come first: a
lane that has taken all of its steps is cut off the end.

Results match training each device alone, up to rounding.

Shapes: D lanes, B samples of the largest batch of a pass.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fibec_ray.learning.lane_values import LaneValues
from fibec_ray.learning.local_update import Seen, Terms, Trained, Training
from fibec_ray.learning.optimiser_step import OptimiserStep
from fibec_ray.model_types import Batch, LanedModel, Outputs
from fibec_ray.parts.solver.base import Pull
from fibec_ray.tensors import Tensors

LEAST_FILL = 0.75
"""Batches share a pass if each has at least this share of the pass's positions; padding costs compute."""


@dataclass(frozen=True, eq=False)
class LaneTraining:
    """A training of the lane with number `lane`."""

    lane: int
    training: Training
    rank: int | None = None

    @property
    def kind(self) -> Hashable:
        """Trainings of one kind can be computed together."""
        steps, terms, moves = self.training.steps, self.training.terms, self.training.moves
        pull = None if moves.pull is None else (moves.pull.strength, moves.pull.follow, frozenset(moves.pull.centre))
        names = None if moves.names is None else frozenset(moves.names)
        masks = frozenset(moves.keep), frozenset(moves.watch), pull
        objective = id(terms.objective), len(terms.references)  # a process has one for all devices
        return steps.settings, steps.rate, steps.repeats, names, masks, objective, self.rank


def train_stacked(model: LanedModel, values: LaneValues, asked: Sequence[LaneTraining]) -> list[Trained]:
    """Train lanes of one kind, changing their values in place. Returns what each did."""
    rows = [list(islice(one.training.steps.batches, one.training.steps.settings.max_steps)) for one in asked]
    order = sorted(range(len(asked)), key=lambda i: -len(rows[i]))
    group = _Group(model, values, [asked[i] for i in order], [rows[i] for i in order])
    model.set_rank(asked[0].rank)
    model.train(True)
    group.run()
    model.train(False)
    found = dict(zip(order, group.results(), strict=True))
    return [found[i] for i in range(len(asked))]


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass of a step: some lanes, and their samples on the model's device."""

    lanes: Sequence[int]
    """places in the group"""
    batch: Batch
    shares: Tensor
    """(D, B) weight of each sample in its lane's mean loss; 0 for samples that only fill up"""
    rows: Sequence[Tensor]
    """each lane's own rows of its shard"""
    at: Tensor | None
    """`lanes`, on the device; None: all active ones"""

    @property
    def counts(self) -> Tensor:
        """(D,) samples of each lane."""
        return self.shares.count_nonzero(1)

    def lane_losses(self, losses: Tensor) -> Tensor:
        """Mean losses (D,) of samples' losses (D B,)."""
        return (losses.view(self.shares.shape) * self.shares).sum(1)


class _Group:
    """A group in training. asked: those with the most steps first. rows: the rows of each one's batches."""

    def __init__(
        self, model: LanedModel, values: LaneValues, asked: Sequence[LaneTraining], rows: Sequence[Sequence[Tensor]]
    ):
        self._model, self._values, self._rows = model, values, rows
        self._trainings = [one.training for one in asked]
        self._lanes = [one.lane for one in asked]
        first = self._trainings[0]
        self._steps, self._moves = first.steps, first.moves
        self._stacks = _rows_of(values.stacks, self._lanes)
        self._device = next((value.device for value in self._stacks.values()), torch.device("cpu"))
        self._active = len(asked)
        moving = [n for n in self._stacks if self._moves.names is None or n in self._moves.names]
        self._params = {name: nn.Parameter(value) for name, value in self._stacks.items()}
        self._optimiser = OptimiserStep(
            {name: self._params[name] for name in moving},
            self._steps.settings,
            self._steps.rate,
            self._stacked([training.moves.keep for training in self._trainings]),
            self._pull(),
            stacked=True,
        )
        self._centres = self._optimiser.centre
        """of all lanes: later ones share its memory"""
        self._watch = [name for name in self._moves.watch if name in self._optimiser.params]
        self._terms = _StackedTerms([training.terms.on(self._device) for training in self._trainings])
        self._losses: list[Tensor] = []
        self._squares: Tensors = {}

    def run(self) -> None:
        """Take all steps."""
        passes = [self._passes(step) for step in range(len(self._rows[0]))]
        for of_step in passes:
            self._narrow(sum(len(one.lanes) for one in of_step))
            for _ in range(self._steps.repeats):
                self._take(of_step)
            self._optimiser.follow()

    def results(self) -> list[Trained]:
        """Write back the values, and return what each lane did."""
        self._write_back()
        self._terms.end(training.terms for training in self._trainings)
        squares = {name: value.cpu() for name, value in self._squares.items()}
        centre = {name: value.cpu() for name, value in self._centres.items()}
        losses = [part.double().mean() for part in self._lane_losses()]
        return [
            self._result(place, float(losses[place]) if self._rows[place] else None, squares, centre)
            for place in range(len(self._trainings))
        ]

    def _result(self, place: int, loss: float | None, squares: Tensors, centre: Tensors) -> Trained:
        num_steps, num_samples = len(self._rows[place]), sum(map(len, self._rows[place]))
        count = num_samples * self._steps.repeats
        own = {name: value[place] / count for name, value in squares.items()} if count else {}
        return Trained(num_steps, num_samples, loss, own, {name: value[place] for name, value in centre.items()})

    def _take(self, passes: Sequence[_Pass]) -> None:
        """One optimiser step of the active lanes."""
        params, losses = self._active_params(), torch.zeros(self._active, device=self._device)
        for param in params.values():
            param.grad = None
        for one in passes:
            self._differentiate(one, params, losses)
        self._terms.differentiate(params, self._optimiser)
        self._terms.correct(params)
        self._optimiser.step()
        self._losses.append(losses)

    def _differentiate(self, one: _Pass, params: Mapping[str, nn.Parameter], losses: Tensor) -> None:
        """Add the gradients of one pass to `.grad`, its lanes' losses to `losses`, and squares to their sums."""
        leaves = params if one.at is None else {n: nn.Parameter(p.detach()[one.at]) for n, p in params.items()}
        with torch.enable_grad():
            out, caught = self._model.stacked(leaves, one.batch, self._watch, self._terms.has_references)
            of_lanes = one.lane_losses(out.losses)
            total = of_lanes.sum() + self._terms.feature_penalties(one, out)
        wanted = [*leaves.values(), *caught.tensors]
        grads = self._model.derive([total], wanted, [None], retain_graph=False)
        for param, grad in zip(params.values(), grads, strict=False):
            _add_grad(param, grad, one.at)
        at = slice(self._active) if one.at is None else one.at
        losses[at] = of_lanes.detach()
        # The loss was a mean over samples; scale gradients back to those of a sum.
        scale = one.counts.square()
        for name, value in caught.sums_of_squares(grads[len(leaves) :], len(one.lanes)).items():
            if name not in self._squares:
                self._squares[name] = value.new_zeros(len(self._trainings), *value.shape[1:])
            self._squares[name][at] += value * scale.view(-1, *[1] * (value.dim() - 1))

    def _active_params(self) -> dict[str, nn.Parameter]:
        """Parameters of the active lanes: those that move, and all others."""
        return {**self._params, **self._optimiser.params}

    def _narrow(self, count: int) -> None:
        """Go on with the first `count` lanes."""
        if count == self._active:
            return
        self._active = count
        self._params = {name: nn.Parameter(value.detach()[:count]) for name, value in self._params.items()}
        self._optimiser.narrow(count)
        self._terms.narrow(count)

    def _write_back(self) -> None:
        _write_rows(self._values.stacks, self._lanes, self._stacks)
        self._values.changed()

    def _lane_losses(self) -> list[Tensor]:
        """The losses of each lane's steps, on the host after one copy."""
        if not self._losses:
            return [torch.zeros(0)] * len(self._trainings)
        sizes = [len(losses) for losses in self._losses]
        steps = torch.cat(self._losses).cpu().split(sizes)
        return [
            torch.stack([step[place] for step in steps if place < len(step)] or [torch.zeros(())])
            for place in range(len(self._trainings))
        ]

    def _passes(self, step: int) -> list[_Pass]:
        """The passes of a step, with all batches on the model's device."""
        active = [place for place, rows in enumerate(self._rows) if step < len(rows)]
        batches = [self._trainings[place].shard.batch(self._rows[place][step]) for place in active]
        for place, batch in zip(active, batches, strict=True):
            work = self._model.cost(batch, graph=True)
            for _ in range(self._steps.repeats):
                self._trainings[place].model.work.add(work)
        return [self._pass(members, step, batches) for members in _alike(batches)]

    def _pass(self, members: Sequence[int], step: int, batches: Sequence[Batch]) -> _Pass:
        """The pass of some of the active lanes. batches: of all of them."""
        most = max(batches[place].num_samples for place in members)
        shares, parts = torch.zeros(len(members), most), []
        for i, place in enumerate(members):
            batch, rows = batches[place], self._rows[place][step]
            shares[i, : len(rows)] = 1 / len(rows)
            if len(rows) < most:  # fill up with copies of the last sample
                filled = torch.cat([rows, rows[-1:].expand(most - len(rows))])
                batch = self._trainings[place].shard.batch(filled)
            parts.append(batch)
        joined = self._model.joined(parts).to(self._device)
        own = [self._rows[place][step].to(self._device) for place in members]
        at = None if len(members) == len(batches) else torch.tensor(members, device=self._device)
        return _Pass(members, joined, shares.to(self._device), own, at)

    def _stacked(self, tensors: Sequence[Mapping[str, Tensor]]) -> Tensors:
        return {name: torch.stack([one[name].to(self._device) for one in tensors]) for name in tensors[0]}

    def _pull(self) -> Pull | None:
        """The pull of all lanes."""
        pulls = [training.moves.pull for training in self._trainings]
        if (first := pulls[0]) is None:
            return None
        return replace(first, centre=self._stacked([pull.centre for pull in pulls if pull is not None]))


class _StackedTerms:
    """The objective's terms of all lanes.

    An objective that is `side_by_side` works on stacked tensors. Any other is called for one lane after the other.
    """

    def __init__(self, terms: Sequence[Terms]):
        self._terms, self._active = list(terms), len(terms)
        self._objective = terms[0].objective
        self.has_references = bool(terms[0].references)
        names = {frozenset((n, v.shape) for n, v in one.memory.items()) for one in terms}
        self._together = self._objective.side_by_side and len(names) == 1
        first = terms[0].memory
        self._memory = {n: torch.stack([one.memory[n] for one in terms]) for n in first} if self._together else {}
        self._views: list[dict[str, nn.Parameter]] = []

    def differentiate(self, params: Mapping[str, nn.Parameter], optimiser: OptimiserStep) -> None:
        """Add the gradients of the penalties to `.grad`."""
        if not self._objective.has_penalty:
            return
        with torch.enable_grad():
            penalties = self._penalties(params, optimiser.anchor)
            if penalties is None or not penalties.requires_grad:
                return
            grads = torch.autograd.grad(penalties.sum(), list(params.values()), allow_unused=True)
        for param, grad in zip(params.values(), grads, strict=True):
            _add_grad(param, grad, None)

    def correct(self, params: Mapping[str, nn.Parameter]) -> None:
        """Call the objective's `correct`."""
        if not self._objective.has_correction:
            return
        if self._together:
            self._objective.correct(params, self._memory, self._terms[0].control)
            return
        for lane, terms in enumerate(self._terms[: self._active]):
            views = _lane_view(params, lane)
            self._objective.correct(views, terms.memory, terms.control)
            for name, view in views.items():
                grad, own = params[name].grad, view.grad
                if grad is not None and own is not None and own.data_ptr() != grad[lane].data_ptr():
                    grad[lane].copy_(own)  # a new tensor took the place of the gradient

    def feature_penalties(self, one: _Pass, out: Outputs) -> Tensor | float:
        """The sum of the lanes' terms for the features of a pass."""
        if not self.has_references:
            return 0.0
        total, width = out.losses.new_zeros(()), one.shares.shape[1]
        for i, place in enumerate(one.lanes):
            own = slice(i * width, i * width + len(one.rows[i]))
            seen = Seen(one.rows[i], _samples(one.batch, own), _outputs(out, own))
            total = total + self._terms[place].feature_penalty(seen)
        return total

    def narrow(self, count: int) -> None:
        """Go on with the first `count` lanes."""
        self._keep(range(count, self._active))
        self._active = count
        self._memory = {name: value[:count] for name, value in self._memory.items()}

    def end(self, originals: Iterable[Terms]) -> None:
        """Write changes of memories to the terms that training was asked with."""
        self._keep(range(self._active))
        for original, terms in zip(originals, self._terms, strict=True):
            original.memory.update({name: value.cpu() for name, value in terms.memory.items()})

    def _keep(self, lanes: Iterable[int]) -> None:
        for lane in lanes:
            self._terms[lane].memory.update({name: value[lane] for name, value in self._memory.items()})

    def _penalties(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        """(D,) or fewer values; None without any."""
        if self._together:
            zero = next(iter(params.values())).new_zeros(())

            def one(of_lane: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
                found = self._terms[0].penalty(of_lane, start)
                return zero if found is None else found.reshape(())

            penalties: Tensor = torch.vmap(one)(dict(params), dict(anchor))
            return penalties
        apart = {name: value.unbind() for name, value in params.items()}
        found = [
            terms.penalty({n: v[lane] for n, v in apart.items()}, {n: v[lane] for n, v in anchor.items()})
            for lane, terms in enumerate(self._terms[: self._active])
        ]
        given = [value.reshape(()) for value in found if value is not None]
        return torch.stack(given) if given else None


def _alike(batches: Sequence[Batch]) -> list[list[int]]:
    """Split lanes into passes, so that no pass is mostly padding."""
    groups: list[list[int]] = []
    size: tuple[int, int] = (0, 0)
    for i in sorted(range(len(batches)), key=lambda i: (-batches[i].length, -batches[i].num_samples)):
        rows, length = batches[i].num_samples, batches[i].length
        wider = max(size[0], rows), max(size[1], length)
        least = min(batches[j].num_samples * batches[j].length for j in [*(groups[-1] if groups else []), i])
        if groups and least >= LEAST_FILL * wider[0] * wider[1]:
            groups[-1].append(i)
            size = wider
        else:
            groups.append([i])
            size = rows, length
    return [sorted(group) for group in groups]


def _add_grad(param: nn.Parameter, grad: Tensor | None, at: Tensor | None) -> None:
    """Add to `.grad`. at: the lanes that the gradient is of; None: all."""
    if grad is None:
        return
    if at is None:
        # PyTorch's fused optimisers treat a gradient's memory as contiguous.
        param.grad = grad.contiguous() if param.grad is None else param.grad.add_(grad)
        return
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    param.grad[at] = grad


def _lane_view(params: Mapping[str, nn.Parameter], lane: int) -> dict[str, nn.Parameter]:
    """One lane's parameters and gradients, which share memory with the stack."""
    views = {}
    for name, param in params.items():
        views[name] = nn.Parameter(param.detach()[lane])
        views[name].grad = None if param.grad is None else param.grad[lane]
    return views


def _rows_of(stacks: Mapping[str, Tensor], lanes: Sequence[int]) -> Tensors:
    """The lanes' rows, in this order: of the same memory if they follow each other."""
    start = lanes[0]
    if list(lanes) == list(range(start, start + len(lanes))):
        return {name: value[start : start + len(lanes)] for name, value in stacks.items()}
    return {name: value[torch.tensor(lanes, device=value.device)] for name, value in stacks.items()}


@torch.no_grad()
def _write_rows(stacks: Mapping[str, Tensor], lanes: Sequence[int], rows: Mapping[str, Tensor]) -> None:
    for name, value in rows.items():
        if value.untyped_storage().data_ptr() != stacks[name].untyped_storage().data_ptr():
            stacks[name][torch.tensor(lanes, device=value.device)] = value


def _samples(batch: Batch, rows: slice) -> Batch:
    return Batch({name: value[rows] for name, value in batch.inputs.items()}, batch.labels[rows])


def _outputs(out: Outputs, rows: slice) -> Any:
    hidden = tuple(states[rows] for states in out.hidden)
    return replace(out, losses=out.losses[rows], hidden=hidden, last=None if out.last is None else out.last[rows])
