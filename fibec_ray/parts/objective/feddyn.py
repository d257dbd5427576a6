"""FedDyn's dynamic regularisation. The server half is the aggregator of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.objective.proximal import squared_distance
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors


class DynamicRegulariser(Objective):
    """FedDyn (Acar et al., ICLR 2021): minimises l(x) - <g_k, x> + (a / 2) |x - theta|^2, theta the received values.

    After training g_k <- g_k - a (x_k - theta), from g_k = 0; kept on the device. With an exact solution g_k is the
    gradient of l at x_k. Needs aggregator feddyn with the same alpha. g_k covers shared tensors. Personal tensors have
    only the quadratic term, around the device's own last values.
    """

    kind: Literal["feddyn"] = "feddyn"
    side_by_side: ClassVar[bool] = True
    partners: ClassVar[Mapping[str, str]] = {"aggregator": "feddyn"}
    agrees: ClassVar[tuple[str, ...]] = ("alpha",)
    alpha: float = Field(0.01, gt=0, allow_inf_nan=False, description="a; the paper tries 0.001 to 0.1")
    needs: ClassVar[tuple[Need, ...]] = ("whole", "steps", "fresh")
    keeps: ClassVar[str] = "linear term (device)"

    def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        return 0.5 * self.alpha * squared_distance(params, anchor) if anchor else None

    def correct(self, params: Mapping[str, nn.Parameter], memory: Tensors, control: Tensors) -> None:
        for name, linear in memory.items():
            grad = params[name].grad
            if grad is not None:
                grad.sub_(linear.to(grad))

    def finish(
        self, memory: Tensors, control: Tensors, delta: Tensors, num_steps: int, lr: float
    ) -> tuple[Tensors, Tensors]:
        pulls = {name: -self.alpha * value for name, value in delta.items()}
        return {name: memory[name] + value if name in memory else value for name, value in pulls.items()}, {}
