"""What solvers share that leave a device with a model of its own beside the shared one."""

from __future__ import annotations

from typing import ClassVar

from fibec_ray.parts.part import Need
from fibec_ray.parts.solver.base import Solver
from fibec_ray.tensors import Tensors


class OwnModel(Solver):
    """The memory is that model's trainable values, as the device's last participation left them."""

    needs: ClassVar[tuple[Need, ...]] = ("shared",)
    keeps: ClassVar[str] = "own model (device)"

    def own(self, memory: Tensors) -> Tensors:
        return memory
