"""Trains a group of devices with one forward pass, one backward pass and one optimiser step for all of them.

Each trained tensor is one tensor for the whole group, with a leading lane axis. Batches are on the model's device
before the first step, and nothing returns to the host until the last one. Lanes with the most steps come first, so a
lane that has finished is dropped from the end.

Results match training each device alone, up to rounding.

Shapes: D lanes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from fibec_ray.learning.guarded_steps import GuardedSteps
from fibec_ray.learning.lane_passes import LanePass, passes_of_step
from fibec_ray.learning.lane_values import LaneValues
from fibec_ray.learning.local_update import Trained, Training
from fibec_ray.learning.optimiser_step import OptimiserStep, add_grad
from fibec_ray.learning.stacked_terms import LaneError, StackedTerms
from fibec_ray.model_types import LanedModel
from fibec_ray.parts.solver.base import Pull
from fibec_ray.tensors import Tensors


@dataclass(frozen=True, eq=False)
class LaneTraining:
    """The training of lane number `lane`."""

    lane: int
    training: Training
    rank: int | None = None

    @property
    def kind(self) -> Hashable:
        """Trainings of the same kind can be computed together."""
        steps, terms, moves = self.training.steps, self.training.terms, self.training.moves
        pull = None if moves.pull is None else (moves.pull.strength, moves.pull.follow, frozenset(moves.pull.centre))
        names = None if moves.names is None else frozenset(moves.names)
        masks = frozenset(moves.keep), frozenset(moves.watch), pull
        objective = id(terms.objective), len(terms.references)  # all devices of a process share one
        rule = None if self.training.guard is None else self.training.guard.rule
        return steps.settings, steps.rate, steps.repeats, names, masks, objective, rule, self.rank


def train_stacked(model: LanedModel, values: LaneValues, asked: Sequence[LaneTraining]) -> list[Trained]:
    """Train lanes of one kind, changing their values in place. Returns a result for each.

    Raises LaneError, with the lane's place in `asked`, if work for one lane fails.
    """
    rows = [list(islice(one.training.steps.batches, one.training.steps.settings.max_steps)) for one in asked]
    order = sorted(range(len(asked)), key=lambda i: -len(rows[i]))
    group = _Group(model, values, [asked[i] for i in order], [rows[i] for i in order])
    model.set_rank(asked[0].rank)
    model.train(True)
    try:
        group.run()
    except LaneError as error:
        raise LaneError(order[error.lane]) from error.__cause__
    model.train(False)
    found = dict(zip(order, group.results(), strict=True))
    return [found[i] for i in range(len(asked))]


class _Group:
    """A group in training. asked: most steps first. rows: for each lane, the rows of its batches."""

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
        keep = self._stacked([training.moves.keep for training in self._trainings])
        self._optimiser = OptimiserStep(
            {name: self._params[name] for name in moving},
            self._steps.settings,
            self._steps.rate,
            keep,
            self._pull(),
            stacked=True,
        )
        self._centres = self._optimiser.centre
        """those of all lanes; after `narrow` the optimiser has views of them"""
        self._watch = [name for name in self._moves.watch if name in self._optimiser.params]
        guards = [training.guard for training in self._trainings if training.guard is not None]
        shapes = {name: param.shape[1:] for name, param in self._optimiser.params.items()}
        self._guarded = GuardedSteps(guards, shapes, {n: m for n, m in keep.items() if n in shapes}) if guards else None
        self._terms = StackedTerms([training.terms.on(self._device) for training in self._trainings])
        self._losses: list[Tensor] = []
        self._squares: Tensors = {}

    def run(self) -> None:
        """Take all steps."""
        for of_step in self.passes():
            self._narrow(sum(len(one.lanes) for one in of_step))
            for _ in range(self._steps.repeats):
                self._take(of_step)
            self._optimiser.follow()

    def passes(self) -> list[list[LanePass]]:
        """The passes of each step, with all batches on the model's device. Counts their work."""
        steps = range(len(self._rows[0]))
        return [passes_of_step(self._model, self._trainings, self._rows, step, self._device) for step in steps]

    def results(self) -> list[Trained]:
        """Write back the values, and return each lane's result."""
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
        own_centre = {name: value[place].clone() for name, value in centre.items()}
        return Trained(num_steps, num_samples, loss, own, own_centre)

    def _take(self, passes: Sequence[LanePass]) -> None:
        """One optimiser step of the active lanes."""
        params, losses = self._active_params(), torch.zeros(self._active, device=self._device)
        for param in params.values():
            param.grad = None
        for one in passes:
            if self._guarded is None:
                self._differentiate(one, params, losses)
            else:
                self._add_clipped(self._guarded, one, params, losses)
        if self._guarded is not None:
            self._add_noise(self._guarded, passes, params)
        self._terms.differentiate(params, self._optimiser)
        self._terms.correct(params)
        self._optimiser.step()
        self._losses.append(losses)

    def _differentiate(self, one: LanePass, params: Mapping[str, nn.Parameter], losses: Tensor) -> None:
        """Add the gradients of one pass to `.grad`, its lanes' losses to `losses`, and squares to their sums."""
        leaves = self._leaves(one, params)
        with torch.enable_grad():
            out, caught = self._model.stacked(leaves, one.batch, self._watch, self._terms.has_references)
            of_lanes = one.lane_losses(out.losses)
            total = self._terms.mean_losses(one, out.losses).sum() + self._terms.feature_penalties(one, out)
        wanted = [*leaves.values(), *caught.tensors]
        grads = self._model.derive([total], wanted, [None], retain_graph=False)
        for param, grad in zip(params.values(), grads, strict=False):
            add_grad(param, grad, one.at)
        at = slice(self._active) if one.at is None else one.at
        losses[at] = of_lanes.detach()
        # The loss was a mean over samples; scale gradients back to those of a sum.
        scale = one.counts.square()
        for name, value in caught.sums_of_squares(grads[len(leaves) :], len(one.lanes)).items():
            if name not in self._squares:
                self._squares[name] = value.new_zeros(len(self._trainings), *value.shape[1:])
            self._squares[name][at] += value * scale.view(-1, *[1] * (value.dim() - 1))

    def _add_clipped(
        self, guarded: GuardedSteps, one: LanePass, params: Mapping[str, nn.Parameter], losses: Tensor
    ) -> None:
        """Add sums of clipped gradients of samples to `.grad`, and the lanes' losses to `losses`."""
        leaves = self._leaves(one, params)
        with torch.enable_grad():
            out, caught = self._model.stacked(leaves, one.batch, guarded.names)
            counted = one.shares > 0
            total = (out.losses * counted.flatten()).sum()
        grads = self._model.derive([total], caught.tensors, [None], retain_graph=False)
        for name, value in guarded.sums(caught, grads, one.lanes, counted).items():
            add_grad(params[name], value.to(params[name]), one.at)
        losses[slice(self._active) if one.at is None else one.at] = one.lane_losses(out.losses).detach()

    def _add_noise(self, guarded: GuardedSteps, passes: Sequence[LanePass], params: Mapping[str, nn.Parameter]) -> None:
        """Turn the sums in `.grad` into means with noise."""
        counts = torch.zeros(self._active, dtype=torch.int64, device=self._device)
        for one in passes:
            counts[slice(self._active) if one.at is None else one.at] = one.counts
        sums = {name: param.grad for name, param in params.items() if param.grad is not None}
        for name, value in guarded.mean(sums, counts).items():
            params[name].grad = value.to(params[name]).contiguous()

    def _leaves(self, one: LanePass, params: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        """The parameters of a pass's lanes."""
        return params if one.at is None else {n: nn.Parameter(p.detach()[one.at]) for n, p in params.items()}

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

    def _stacked(self, tensors: Sequence[Mapping[str, Tensor]]) -> Tensors:
        return {name: torch.stack([one[name].to(self._device) for one in tensors]) for name in tensors[0]}

    def _pull(self) -> Pull | None:
        """The pull of all lanes."""
        pulls = [training.moves.pull for training in self._trainings]
        if (first := pulls[0]) is None:
            return None
        return replace(first, centre=self._stacked([pull.centre for pull in pulls if pull is not None]))


def _rows_of(stacks: Mapping[str, Tensor], lanes: Sequence[int]) -> Tensors:
    """The lanes' rows, in this order: views if the lanes are consecutive, else copies."""
    start = lanes[0]
    if list(lanes) == list(range(start, start + len(lanes))):
        return {name: value[start : start + len(lanes)] for name, value in stacks.items()}
    return {name: value[torch.tensor(lanes, device=value.device)] for name, value in stacks.items()}


@torch.no_grad()
def _write_rows(stacks: Mapping[str, Tensor], lanes: Sequence[int], rows: Mapping[str, Tensor]) -> None:
    for name, value in rows.items():
        if value.untyped_storage().data_ptr() != stacks[name].untyped_storage().data_ptr():
            stacks[name][torch.tensor(lanes, device=value.device)] = value
