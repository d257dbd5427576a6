"""Floating point operations of device-rounds and evaluations, as the round log will count them.

Batches are the real ones. Which of them a difficulty curriculum shows first is not known before the run, so its rounds
are right in number of samples, but their lengths only on average. Hessian-spectrum estimates are not included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.learning.batches import fixed_batches, steps_of, until_drop_out
from fibec_ray.learning.job import Job
from fibec_ray.parts.part import Passes
from fibec_ray.preflight.rehearsal import Rehearsal, named
from fibec_ray.preflight.samples import Lengths, Samples
from fibec_ray.preflight.trial import Ask, Training
from fibec_ray.tensors import Tensors
from fibec_ray.types import SETUP_ROUND


@dataclass
class Amount:
    """Work of some passes. steps: forward and backward passes, each with a fixed cost in time.

    recomputed: operations repeated by activation checkpointing; they take time but are not in the log.
    """

    flops: float = 0.0
    steps: int = 0
    recomputed: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.flops + other.flops, self.steps + other.steps, self.recomputed + other.recomputed)

    def times(self, factor: float) -> Amount:
        """The amount, multiplied by a factor."""
        return Amount(self.flops * factor, round(self.steps * factor), self.recomputed * factor)


@dataclass
class Devices:
    """The work of a run's devices. Query rounds in order, since some work happens at first participations."""

    rehearsal: Rehearsal
    samples: Samples
    _memory: dict[int, Tensors] = field(default_factory=dict)
    """the curriculum's, by device"""
    _took_part: Counter[int] = field(default_factory=Counter)

    @property
    def job(self) -> Job:
        """The job that is planned."""
        return self.rehearsal.job

    def setup(self, device: int) -> Amount:
        """The setup phase of one device."""
        method, lengths = self.rehearsal.method, self.samples.train[device]
        if not method.needs_setup:
            return Amount()
        ordering = self._order(device, SETUP_ROUND) if method.curriculum.needs_setup else []
        total = self._scans(lengths, [*ordering, *self.rehearsal.found.setup_scans])
        for passes in self.rehearsal.score_passes:
            total += self._own_passes(lengths, passes)
        return total + self._trained(lengths, self._batches(device), self.rehearsal.found.setup_trainings)

    def device_round(self, device: int, round_: int, share: float = 1.0) -> Amount:
        """One device-round. share: below 1, of its batches, if the device drops out in mid-round."""
        job, curriculum = self.job, self.rehearsal.method.curriculum
        lengths, batches = self.samples.train[device], self._batches(device)
        taken, total = self.rehearsal.participation(self._took_part[device]), Amount()
        with named(curriculum, "due or visible"):
            if curriculum.due(self._memory.get(device, {}), round_):
                total += self._scans(lengths, self._order(device, round_))
            rng = seeds.generator(job.seed, "visible", device, round_)
            visible = curriculum.visible(self._memory.get(device, {}), batches, round_, job.rounds, rng) or batches
        if share < 1:
            visible = until_drop_out(list(visible), share, seeds.generator(job.seed, "drop_out", device, round_))
        seen = lengths[torch.cat(visible).numpy()]
        total += self._training(lengths, visible, len(batches), round_, taken.trainings)
        total += self._scans(seen, taken.scans)
        total += self._grouped(seen, job.local.batch_size).times(taken.num_teachers)
        for passes in self.rehearsal.round_passes(round_):
            total += self._own_passes(lengths, passes)
        self._took_part[device] += 1
        return total

    def evaluation(self, keeps_personal: bool) -> Amount:
        """The global model on the test set, and each device's own model on its test shard if there are own models."""
        total = self._grouped(self.samples.test, self.job.eval_batch_size)
        references = self.job.method.solver.num_references
        for device in range(self.job.num_devices if keeps_personal else 0):
            own = self._grouped(self.samples.own_test[device], self.job.eval_batch_size)
            total += own
            if references and len(self.samples.own_test[device]):  # features first, then the mix
                compared = self._drawn(self.samples.train[device], references)
                total += own + self._grouped(compared, references)
            if len(self.samples.own_test[device]):
                total += self._trained(self.samples.train[device], self._batches(device), self.rehearsal.found.tuning)
        return total

    def _training(
        self, lengths: Lengths, visible: Sequence[Tensor], num_batches: int, round_: int, trainings: Sequence[Training]
    ) -> Amount:
        job = self.job
        if job.pooled_cohort is not None:
            steps = len(steps_of(round_, num_batches, job.local.epochs, *job.pooled_cohort))
            return self._trained(lengths, visible, [Training(1, 1, False)]).times(steps / num_batches)
        longest = job.method.curriculum.max_length(round_, job.rounds, job.max_length)
        return self._trained(lengths if longest is None else np.minimum(lengths, longest), visible, trainings)

    def _trained(self, lengths: Lengths, batches: Sequence[Tensor], trainings: Sequence[Training]) -> Amount:
        most, times = self.job.local.max_steps, {0: 0.0, 1: 0.0}
        """passes over the batches, by the number of backward passes of each"""
        for training in trainings:
            steps, passes = len(batches) * training.epochs, training.forwards or training.repeats
            share = min(steps, most) / steps if steps and most else 1.0
            times[0 if training.forwards else 1] += passes * training.epochs * share
        total = Amount()
        for backwards, count in times.items():
            one = (self._pass(lengths[rows.numpy()], backwards) for rows in (batches if count else ()))
            total += sum(one, Amount()).times(count)
        return total

    def _order(self, device: int, round_: int) -> Sequence[Ask]:
        """Let the curriculum make a new memory of the device's data. Returns the passes it makes."""
        lengths = torch.from_numpy(self.samples.train[device])
        self._memory[device], asked = self.rehearsal.order(lengths, self._batches(device), round_, device)
        return asked

    def _scans(self, lengths: Lengths, asked: Sequence[Ask]) -> Amount:
        """The passes of one scan over samples."""
        total, size = Amount(), min(len(lengths), self.job.local.batch_size)
        for ask in dict.fromkeys(asked):
            # Losses need their own pass only if they are requested first.
            if ask or ask == asked[0]:
                total += self._grouped(lengths, size, self.job.answers.backwards(ask[0]) if ask else 0)
        return total

    def _own_passes(self, lengths: Lengths, passes: Passes) -> Amount:
        drawn = self._drawn(lengths, passes.max_samples)
        return self._grouped(drawn, passes.group or self.job.local.batch_size, passes.backwards)

    def _batches(self, device: int) -> list[Tensor]:
        count, size = len(self.samples.train[device]), self.job.local.batch_size
        return fixed_batches(self.job.seed, device, count, size)

    def _grouped(self, lengths: Lengths, size: int, backwards: int = 0) -> Amount:
        """Passes over samples sorted by length."""
        ordered = np.sort(lengths)
        return sum((self._pass(ordered[i : i + size], backwards) for i in range(0, len(ordered), size)), Amount())

    def _pass(self, lengths: Lengths, backwards: int = 0) -> Amount:
        flops = self.rehearsal.anatomy.forward_flops(len(lengths), int(lengths.max()))
        flops += self.rehearsal.anatomy.answer_flops * self.samples.answer_share * float(lengths.sum())
        recomputed = flops * backwards if self.job.backbone.recomputes else 0.0
        return Amount(flops * (1 + backwards * self.rehearsal.anatomy.backward_share), 1 + backwards, recomputed)

    def _drawn(self, lengths: Lengths, most: int | None) -> Lengths:
        """At most `most` samples, spread evenly over the sorted lengths."""
        if most is None or len(lengths) <= most:
            return lengths
        return np.sort(lengths)[np.linspace(0, len(lengths) - 1, most).astype(int)]
