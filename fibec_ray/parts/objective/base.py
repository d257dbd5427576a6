"""The base class of all objectives; used as it is, it is the plain loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fibec_ray.parts.part import Need, Part
from fibec_ray.tensors import Tensors
from fibec_ray.types import Asked, DeviceUpdate, Extra


class Objective(Part):
    """Terms added to the task's loss on a device, and corrections of its gradients.

    Device half: `weigh`, `penalty`, `teachers` and `feature_penalty`, `correct`, `remember`, `finish`. Server half:
    `expected_extras`, `fault`, `absorb`. By default nothing is added.
    """

    costs = {"feature_penalty": ("teachers",)}

    kind: str = "plain"

    side_by_side: ClassVar[bool] = False
    """True if several devices can share one call: `penalty` works under torch.vmap, and `correct` works entry by entry,
    on parameters, gradients and memory with a leading device axis and a control without one. Otherwise both are called
    for each device
    """
    lowers_rank: ClassVar[bool] = False
    """True if training can lower the rank of a device's adapter below its limit: `rank` in its memory"""

    @property
    def needs(self) -> tuple[Need, ...]:
        """ "extras" if the objective sends any."""
        return () if type(self).expected_extras is Objective.expected_extras else ("extras",)

    @property
    def lacks(self) -> tuple[Need, ...]:
        """ "gradients" and "per_sample" with a `feature_penalty` or `weigh`, which change each sample's gradient."""
        plain = type(self).feature_penalty is Objective.feature_penalty and not self.has_weights
        return () if plain else ("gradients", "per_sample")

    @property
    def has_weights(self) -> bool:
        """True if `weigh` does something."""
        return type(self).weigh is not Objective.weigh

    @property
    def has_penalty(self) -> bool:
        """True if `penalty` adds something."""
        return type(self).penalty is not Objective.penalty

    @property
    def has_correction(self) -> bool:
        """True if `correct` does something."""
        return type(self).correct is not Objective.correct

    def weigh(self, losses: Tensor) -> Tensor:
        """Factors (B,) on the losses of a step's samples, applied before the mean. losses: (B,), detached."""
        return torch.ones_like(losses)

    def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        """A scalar added to the loss of each step. anchor: the moving tensors as they were when training began."""
        return None

    def teachers(self, received: Tensors, memory: Tensors) -> Sequence[Tensors]:
        """Values of the trainable tensors for which the visible samples' features are computed, once a round.

        received: all trainable tensors at the start of the round. If this is empty, `feature_penalty` is not called in
        the round.
        """
        return ()

    def feature_penalty(self, features: Tensor, references: Sequence[Tensor]) -> Tensor:
        """A scalar added to the loss of each step. features: (B, H) of the batch. references: the same under each
        teacher.
        """
        raise NotImplementedError

    def correct(self, params: Mapping[str, nn.Parameter], memory: Tensors, control: Tensors) -> None:
        """Change the gradients in place, after backward and before clipping. May also update the memory."""

    def remember(self, memory: Tensors, shared: Tensors) -> Tensors:
        """The memory after the last step, before `finish`. shared: the trained values of the shared tensors."""
        return memory

    def finish(
        self, memory: Tensors, control: Tensors, delta: Tensors, num_steps: int, lr: float
    ) -> tuple[Tensors, Tensors]:
        """After the last step: the device's new memory, and the extras to send."""
        return memory, {}

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        """The tensors that `finish` adds to an update, by name. An update with missing or additional ones is
        quarantined.
        """
        return {}

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        """Why an update with well-formed tensors must not be absorbed; None if it may."""
        return None

    def absorb(self, shared: Tensors, control: Tensors, extras: Sequence[Tensors], num_devices: int) -> Tensors:
        """The next control, from what `finish` added to the combined updates, in cohort order.

        Before round 1 it is called with an empty control and no extras. shared: the tensors that devices train and
        send.
        """
        return control
