"""Floating point operations of device-rounds and evaluations, as the round log will count them.

Batches are the real ones; which of them a curriculum shows first is not known before the run, so that a round of a
curriculum by difficulty is right in number of samples, and on average in their length. Not counted: looks at spectra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.curvature.fisher import Label
from fibec_ray.curvature.ggn import TOKEN_DRAWS
from fibec_ray.learning.batches import fixed_batches
from fibec_ray.learning.job import Job
from fibec_ray.learning.pooled import steps_of
from fibec_ray.models.spec import Backbone
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fedfisher import FedFisher
from fibec_ray.parts.aggregator.fipa import Fipa
from fibec_ray.parts.aggregator.fisher_merging import FisherMerging
from fibec_ray.parts.aggregator.server_optimisers import ServerOptimiser
from fibec_ray.parts.curriculum.fisher_order import FisherOrder
from fibec_ray.parts.curriculum.loss_order import LossOrder
from fibec_ray.parts.curriculum.scored import Scored
from fibec_ray.parts.mask.fisher_neurons import FisherNeurons
from fibec_ray.parts.objective.moon import Moon
from fibec_ray.parts.sharing.gal import GlobalLayers
from fibec_ray.parts.sharing.sensitivity import CHUNK
from fibec_ray.parts.solver.ditto import Ditto
from fibec_ray.parts.solver.fedrep import FedRep
from fibec_ray.parts.solver.fine_tune import FineTune
from fibec_ray.parts.solver.idle import Idle
from fibec_ray.parts.solver.pfedme import PFedMe
from fibec_ray.preflight.anatomy import Anatomy
from fibec_ray.preflight.samples import Lengths, Samples


@dataclass
class Amount:
    """Work of some passes. steps: forward passes with what follows them, each of which has a fixed cost in time. again:
    operations that are done once more because blocks keep nothing, which takes time and is not in the log."""

    flops: float = 0.0
    steps: int = 0
    again: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.flops + other.flops, self.steps + other.steps, self.again + other.again)

    def times(self, factor: float) -> Amount:
        return Amount(self.flops * factor, round(self.steps * factor), self.again * factor)


@dataclass
class Devices:
    """The work of a run's devices. Rounds must be asked for in order: some work is done at first participations."""

    job: Job
    anatomy: Anatomy
    samples: Samples
    _scored: dict[int, int] = field(default_factory=dict)
    """the round in which a device's data were last put in order"""
    _seen: set[int] = field(default_factory=set)

    def opening(self, device: int) -> Amount:
        """The initialisation phase of one device."""
        method, total = self.job.method, Amount()
        if not method.opens:
            return total
        if method.curriculum.opens:
            total += self._ordering(device)
            self._scored[device] = 0
        mask = method.mask
        if isinstance(mask, FisherNeurons) and mask.opens and not self._same_pass():
            total += self._scan(self.samples.train[device], self._labels(mask.label))
        if isinstance(method.sharing, GlobalLayers):
            chosen = self._drawn(self.samples.train[device], method.sharing.max_samples)
            total += self._grouped(chosen, CHUNK)
            if method.sharing.score_by != "similarity":
                total += self._grouped(chosen, CHUNK, backwards=1)
        return total

    def device_round(self, device: int, round_: int) -> Amount:
        job, method = self.job, self.job.method
        lengths, batches = self.samples.train[device], self._batches(device)
        total = Amount()
        if self._is_due(device, round_):
            total += self._ordering(device)
            self._scored[device] = round_
        visible = self._visible(batches, round_)
        total += self._training(lengths, visible, len(batches), round_)
        mask = method.mask
        if isinstance(mask, FisherNeurons) and (
            mask.source == "pass" or not (mask.opens or device in self._seen or "personal" not in mask.needs)
        ):
            total += self._scan(lengths[torch.cat(visible).numpy()], self._labels(mask.label))
        if isinstance(method.objective, Moon) and device in self._seen:
            total += self._grouped(lengths[torch.cat(visible).numpy()], job.local.batch_size).times(2)
        total += self._evidence(method.aggregator, lengths, round_)
        self._seen.add(device)
        return total

    def evaluation(self, keeps_personal: bool) -> Amount:
        """The global model on the test set, and each device's own on its own test shard if there is one."""
        total = self._grouped(self.samples.test, self.job.eval_batch_size)
        for device in range(self.job.num_devices if keeps_personal else 0):
            total += self._grouped(self.samples.own_test[device], self.job.eval_batch_size)
            solver = self.job.method.solver
            if isinstance(solver, FineTune) and len(self.samples.own_test[device]):
                lengths, batches = self.samples.train[device], self._batches(device)
                total += self._trained(lengths, batches, solver.epochs)
        return total

    def _training(self, lengths: Lengths, visible: Sequence[Tensor], num_batches: int, round_: int) -> Amount:
        job, solver = self.job, self.job.method.solver
        if isinstance(solver, Idle):
            return Amount()
        if job.stands_for is not None:
            steps = len(steps_of(round_, num_batches, job.local.epochs, *job.stands_for))
            return self._trained(lengths, visible, 1).times(steps / num_batches)
        longest = job.method.curriculum.max_length(round_, job.rounds, job.max_length)
        lengths = lengths if longest is None else np.minimum(lengths, longest)
        once = self._trained(lengths, visible, job.local.epochs)
        if isinstance(solver, Ditto):
            return once.times(2)
        if isinstance(solver, PFedMe):
            return once.times(solver.inner_steps)
        if isinstance(solver, FedRep):
            return once + self._trained(lengths, visible, solver.head_epochs)
        return once

    def _trained(self, lengths: Lengths, batches: Sequence[Tensor], epochs: int) -> Amount:
        total, most = Amount(), self.job.local.max_steps
        for rows in batches:
            total += self._pass(lengths[rows.numpy()], backwards=1)
        steps = len(batches) * epochs
        return total.times(epochs * (min(steps, most) / steps if most is not None else 1.0))

    def _evidence(self, aggregator: Aggregator, lengths: Lengths, round_: int) -> Amount:
        if isinstance(aggregator, ServerOptimiser):
            return self._evidence(aggregator.of, lengths, round_)
        if isinstance(aggregator, FisherMerging | FedFisher):
            return self._scan(self._drawn(lengths, aggregator.max_samples), self._labels(aggregator.label))
        if isinstance(aggregator, Fipa) and round_ >= aggregator.warmup_rounds:
            backwards = TOKEN_DRAWS if self.job.answers_in_text else max(1, self.job.num_classes - 1)
            return self._grouped(self._drawn(lengths, aggregator.max_samples), CHUNK, backwards)
        return Amount()

    def _ordering(self, device: int) -> Amount:
        curriculum, lengths = self.job.method.curriculum, self.samples.train[device]
        if isinstance(curriculum, FisherOrder):
            return self._scan(lengths, self._labels(curriculum.label))
        return self._scan(lengths, 0) if isinstance(curriculum, LossOrder) else Amount()

    def _same_pass(self) -> bool:
        """True if curriculum and mask ask for the same squared gradients in the initialisation phase."""
        curriculum, mask = self.job.method.curriculum, self.job.method.mask
        if not (isinstance(curriculum, FisherOrder) and isinstance(mask, FisherNeurons) and curriculum.opens):
            return False
        return (curriculum.label, curriculum.scope) == (mask.label, "adapter")

    def _is_due(self, device: int, round_: int) -> bool:
        curriculum = self.job.method.curriculum
        if not isinstance(curriculum, Scored):
            return False
        if device not in self._scored:
            return round_ >= curriculum.score_from_round
        every = curriculum.rescore_every
        return every is not None and round_ - self._scored[device] >= every

    def _visible(self, batches: Sequence[Tensor], round_: int) -> list[Tensor]:
        """As many batches as the curriculum shows."""
        rng = seeds.generator(self.job.seed, "preflight", round_)
        return self.job.method.curriculum.visible({}, batches, round_, self.job.rounds, rng)

    def _batches(self, device: int) -> list[Tensor]:
        count, size = len(self.samples.train[device]), self.job.local.batch_size
        return fixed_batches(self.job.seed, device, count, size)

    def _labels(self, label: Label) -> int:
        """Backward passes of a sample."""
        return self.job.num_classes if label == "expected" else 1

    def _scan(self, lengths: Lengths, backwards: int) -> Amount:
        return self._grouped(lengths, min(len(lengths), self.job.local.batch_size), backwards)

    def _grouped(self, lengths: Lengths, size: int, backwards: int = 0) -> Amount:
        """Passes over samples that stand in the order of their lengths."""
        total = Amount()
        for group in _split(np.sort(lengths), size):
            total += self._pass(group, backwards)
        return total

    def _pass(self, lengths: Lengths, backwards: int = 0) -> Amount:
        flops = self.anatomy.forward_flops(len(lengths), int(lengths.max()))
        flops += self.anatomy.answer_flops * self.samples.answer_share * float(lengths.sum())
        again = flops * backwards if self._recomputes else 0.0
        return Amount(flops * (1 + backwards * self.anatomy.backward_share), 1 + backwards, again)

    @property
    def _recomputes(self) -> bool:
        return isinstance(self.job.backbone, Backbone) and self.job.backbone.checkpointing

    def _drawn(self, lengths: Lengths, most: int | None) -> Lengths:
        """As many samples as that, of all lengths."""
        if most is None or len(lengths) <= most:
            return lengths
        return np.sort(lengths)[np.linspace(0, len(lengths) - 1, most).astype(int)]


def _split(lengths: Lengths, size: int) -> list[Lengths]:
    return [lengths[i : i + size] for i in range(0, len(lengths), size)] if len(lengths) else []
