"""The objective's terms in the training of several devices at once.

Shapes: D lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from fibec_ray.learning.lane_passes import LanePass
from fibec_ray.learning.local_update import Seen, Terms
from fibec_ray.learning.optimiser_step import OptimiserStep, add_grad
from fibec_ray.model_types import Batch, Outputs


class LaneError(Exception):
    """An error in the work of one lane. The original error is its cause. lane: the place in the group."""

    def __init__(self, lane: int):
        super().__init__(lane)
        self.lane = lane


class StackedTerms:
    """The objective's terms of all lanes.

    An objective that is `side_by_side` gets stacked tensors. Any other is called lane by lane.
    """

    def __init__(self, terms: Sequence[Terms]):
        self._terms, self._active = list(terms), len(terms)
        self._objective = terms[0].objective
        self.has_references = bool(terms[0].references)
        alike = len({frozenset((n, v.shape) for n, v in one.memory.items()) for one in terms}) == 1
        self._corrects_all = self._objective.side_by_side and alike and self._objective.has_correction
        first = terms[0].memory if self._corrects_all else {}
        self._memory = {name: torch.stack([one.memory[name] for one in terms]) for name in first}

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
            add_grad(param, grad, None)

    def correct(self, params: Mapping[str, nn.Parameter]) -> None:
        """Call the objective's `correct`."""
        if not self._objective.has_correction:
            return
        if self._corrects_all:
            self._objective.correct(params, self._memory, self._terms[0].control)
            return
        views_of = [_lane_view(params, lane) for lane in range(self._active)]
        for lane, views in enumerate(views_of):
            with _blamed(lane):
                self._objective.correct(views, self._terms[lane].memory, self._terms[lane].control)
            for name, view in views.items():
                _keep_grad(params[name], lane, view.grad)

    def mean_losses(self, one: LanePass, losses: Tensor) -> Tensor:
        """Mean loss of each lane, (D,), from the samples' losses (D B,), each times the objective's factor."""
        if not self._objective.has_weights:
            return one.lane_losses(losses)
        factors, width = torch.ones_like(losses), one.shares.shape[1]
        for i, place in enumerate(one.lanes):
            own = slice(i * width, i * width + len(one.rows[i]))
            with _blamed(place):
                factors[own] = self._terms[place].weights(losses[own])
        return one.lane_losses(losses * factors)

    def feature_penalties(self, one: LanePass, out: Outputs) -> Tensor | float:
        """The sum of the lanes' terms for the features of a pass."""
        if not self.has_references:
            return 0.0
        total, width = out.losses.new_zeros(()), one.shares.shape[1]
        for i, place in enumerate(one.lanes):
            own = slice(i * width, i * width + len(one.rows[i]))
            seen = Seen(one.rows[i], _samples(one.batch, own), _outputs(out, own))
            with _blamed(place):
                total = total + self._terms[place].feature_penalty(seen)
        return total

    def narrow(self, count: int) -> None:
        """Go on with the first `count` lanes."""
        self._keep(range(count, self._active))
        self._active = count
        self._memory = {name: value[:count] for name, value in self._memory.items()}

    def end(self, originals: Iterable[Terms]) -> None:
        """Copy the memories back to the terms that training was called with."""
        self._keep(range(self._active))
        for original, terms in zip(originals, self._terms, strict=True):
            original.memory.update({name: value.cpu() for name, value in terms.memory.items()})

    def _keep(self, lanes: Iterable[int]) -> None:
        for lane in lanes:
            self._terms[lane].memory.update({name: value[lane].clone() for name, value in self._memory.items()})

    def _penalties(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        """One value for each lane with a penalty; None if no lane has one."""
        if self._objective.side_by_side:
            zero = next(iter(params.values())).new_zeros(())

            def one(of_lane: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
                found = self._terms[0].penalty(of_lane, start)
                return zero if found is None else found.reshape(())

            penalties: Tensor = torch.vmap(one)(dict(params), dict(anchor))
            return penalties
        apart = {name: value.unbind() for name, value in params.items()}
        found = []
        for lane, terms in enumerate(self._terms[: self._active]):
            with _blamed(lane):
                own, start = ({n: v[lane] for n, v in values.items()} for values in (apart, anchor))
                found.append(terms.penalty(own, start))
        given = [value.reshape(()) for value in found if value is not None]
        return torch.stack(given) if given else None


@contextmanager
def _blamed(lane: int) -> Iterator[None]:
    """A block that works for one lane alone."""
    try:
        yield
    except Exception as error:
        raise LaneError(lane) from error


def _lane_view(params: Mapping[str, nn.Parameter], lane: int) -> dict[str, nn.Parameter]:
    """One lane's parameters and gradients, which share memory with the stack."""
    views = {}
    for name, param in params.items():
        views[name] = nn.Parameter(param.detach()[lane])
        views[name].grad = None if param.grad is None else param.grad[lane]
    return views


def _keep_grad(param: nn.Parameter, lane: int, own: Tensor | None) -> None:
    """Copy a lane's gradient into the stack if `correct` replaced it by a new tensor."""
    if own is None:
        return
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    if own.data_ptr() != param.grad[lane].data_ptr():
        param.grad[lane].copy_(own)


def _samples(batch: Batch, rows: slice) -> Batch:
    return Batch({name: value[rows] for name, value in batch.inputs.items()}, batch.labels[rows])


def _outputs(out: Outputs, rows: slice) -> Outputs:
    hidden = tuple(states[rows] for states in out.hidden)
    return replace(out, losses=out.losses[rows], hidden=hidden, last=None if out.last is None else out.last[rows])
