"""The neutral objective: the plain loss. The contract of all objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from fibec_ray.parts.part import Need, Part
from fibec_ray.tensors import Tensors
from fibec_ray.types import Asked, DeviceUpdate, Extra


class Objective(Part):
    """What a device minimises beside the task's loss, and the corrections that method needs.

    Device half: `penalty`, `teachers` and `feature_penalty`, `correct`, `remember`, `finish`. Server half:
    `expected_extras`, `fault`, `absorb`. As it stands: nothing is added.
    """

    costs = {"feature_penalty": ("teachers",)}

    kind: str = "plain"

    lowers_rank: ClassVar[bool] = False
    """True if a device's training can end with a lower rank than the device has room for: `rank` in its memory"""

    @property
    def lacks(self) -> tuple[Need, ...]:
        """A `feature_penalty` changes the gradient of each sample."""
        return () if type(self).feature_penalty is Objective.feature_penalty else ("gradients",)

    def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        """A scalar added to the loss of each step. anchor: the tensors that move, as they were when training began."""
        return None

    def teachers(self, received: Tensors, memory: Tensors) -> Sequence[Tensors]:
        """Values of the trainable tensors under which the visible samples' features are wanted, once for the round.

        received: all of them at the start of the round. None asked for: no `feature_penalty` in this round.
        """
        return ()

    def feature_penalty(self, features: Tensor, references: Sequence[Tensor]) -> Tensor:
        """A scalar added to the loss of each step. features: (B, H) of the batch; references: under each teacher."""
        raise NotImplementedError

    def correct(self, params: Mapping[str, nn.Parameter], memory: Tensors, control: Tensors) -> None:
        """Changes the gradients in place, after backward and before clipping; may add to the memory what they say."""

    def remember(self, memory: Tensors, shared: Tensors) -> Tensors:
        """After the last step, before `finish`: the memory, with what is kept of the shared tensors' trained values."""
        return memory

    def finish(
        self, memory: Tensors, control: Tensors, delta: Tensors, num_steps: int, lr: float
    ) -> tuple[Tensors, Tensors]:
        """After the last step: the device's new memory, and the extras that it sends up."""
        return memory, {}

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        """What `finish` adds to an update, by name. One that lacks any of it, or has more, is quarantined."""
        return {}

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        """Why an update with well-formed tensors must not be absorbed; None if it may."""
        return None

    def absorb(self, shared: Tensors, control: Tensors, extras: Sequence[Tensors], num_devices: int) -> Tensors:
        """The next control, from what `finish` added to the updates that were combined, in cohort order.

        The first control, before round 0, is made from an empty one and no extras. shared: the tensors that devices
        train and send.
        """
        return control
