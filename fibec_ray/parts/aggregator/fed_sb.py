"""Fed-SB: the server chooses LoRA-SB's frozen factors from the devices' first gradients, and then averages R.

Shapes: `in`/`out` features of an adapted weight, r inner size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.errors import ConfigError
from fibec_ray.low_rank import CORE, A, B
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Need, Passes
from fibec_ray.tensors import Tensors, accumulate, drop, under_prefix, weighted_mean, with_prefix
from fibec_ray.types import Asked, DeviceUpdate, Extra

GRADIENT = "gradient"
"""Extras gradient/X (out, in) of the first round."""
GROUP = 8
"""Samples in one pass."""


class FedSb(Aggregator):
    """Fed-SB (Singhal et al. 2025): averages R of W + B R A, with B and A frozen. The average is exact.

    sum_k w_k B R_k A = B (sum_k w_k R_k) A, w_k = n_k / sum n. The first round makes B and A. Each device sends the
    gradient G_k (out, in) of its loss with respect to W. The server computes D = -eta sign(sum_k w_k G_k) = U S V^T and
    sets B = U_r, A = V_r^T, R = S_r. So W + B R A starts as the best approximation of W + D of rank r. eta is
    local.learning_rate. `step: gradient` leaves out the sign.

    The first round costs in * out numbers per weight on the uplink, and trains only tensors outside the adapter (a
    head). If none of its updates arrives, the next round takes its place.
    Ours: the gradient is a mean over `max_samples` of the device's samples, without dropout; the authors' code uses a
    thousandth of the data.
    """

    kind: Literal["fed_sb"] = "fed_sb"
    can_be_wrapped: ClassVar[bool] = False
    partners: ClassVar[Mapping[str, str]] = {"peft": "lora_sb"}
    step: Literal["sign", "gradient"] = Field(
        "sign", description="D is made from the sign of the mean gradient, or from the gradient itself"
    )
    max_samples: int | None = Field(64, ge=1, description="samples per device for the gradient; null: all")
    sends: ClassVar[str] = "in the first round the gradient of each weight"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*super().needs, "fresh")  # the factors come from gradients at the start

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        cores = _adapted(shared)
        alone = [x for name in shared if name.endswith(A) and (x := name.removesuffix(A)) not in cores]
        if cores and alone:
            raise ConfigError(
                f"method.sharing: {alone[0]} is personal, but fed_sb chooses factors for shared weights only, and a "
                "weight without factors never learns; set method.sharing=all, or method.sharing.last_blocks=0"
            )
        return {"has_factors": torch.tensor(not cores)}

    def extras_before(
        self, model: LocalModel, shard: Shard, names: Collection[str], round_: int, rng: torch.Generator
    ) -> Tensors:
        """`gradient/X` (out, in) for each adapted weight X, as long as there are no factors.

        0 for a weight that the loss does not depend on, such as an unused pooler's.
        """
        adapted = _adapted(names)
        now = model.read([x + side for x in adapted for side in (A, B)])
        if not adapted or _are_set(now):
            return {}
        rows = torch.randperm(shard.num_samples, generator=rng)[: self.max_samples]
        sums = {x + CORE: torch.zeros(len(now[x + B]), now[x + A].shape[1]) for x in adapted}
        model.train(False)
        for part in rows.split(GROUP):
            found = _gradients(model, shard, part, list(sums))
            accumulate(sums, {x: value.cpu() for x, value in found.items()})
        return with_prefix(GRADIENT, {x.removesuffix(CORE): value / len(rows) for x, value in sums.items()})

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        return () if round_ else [Passes(self.max_samples, GROUP, backwards=1)]

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        set_ = _are_set({x: asked.untrained[x + A] for x in _adapted(asked.shared)})
        return {} if set_ else _gradients_of(asked)

    def as_planned(self) -> FedSb:
        return _Planned.model_validate(self.model_dump())

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        rates: list[float] = []
        mean = weighted_mean((update.num_samples, _all_of(update, rates)) for update in updates)
        gradients = under_prefix(GRADIENT, mean)
        step = drop(mean, with_prefix(GRADIENT, gradients))
        if not gradients or bool(state["has_factors"]):
            return step, state
        for x, gradient in gradients.items():
            step |= self._factors(x, gradient, rates[0], len(step[x + CORE]))
        return step, {"has_factors": torch.tensor(True)}

    def _factors(self, x: str, gradient: Tensor, rate: float, r: int) -> Tensors:
        """B, R and A, which are 0 before; 0 beyond the sizes of the weight."""
        moved = -rate * (gradient.sign() if self.step == "sign" else gradient)
        u, s, v = torch.linalg.svd(moved.double(), full_matrices=False)
        k = min(r, len(s))
        b, core, a = (gradient.new_zeros(size) for size in ((len(u), r), (r, r), (r, v.shape[1])))
        b[:, :k], core[:k, :k], a[:k] = u[:, :k], torch.diag(s[:k]), v[:k]
        return {x + B: b, x + CORE: core, x + A: a}


class _Planned(FedSb):
    """Made-up factors stay 0, so a plan goes by the round."""

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        return {} if asked.round else _gradients_of(asked)


def _gradients_of(asked: Asked) -> Mapping[str, Extra]:
    """A gradient (out, in) of each adapted weight."""
    sizes = {x: (len(asked.untrained[x + B]), asked.untrained[x + A].shape[1]) for x in _adapted(asked.shared)}
    return {f"{GRADIENT}/{x}": Extra(size) for x, size in sizes.items()}


def _are_set(factors: Tensors) -> bool:
    return any(bool(value.any()) for value in factors.values())


def _adapted(names: Collection[str]) -> list[str]:
    """The adapted weights X, from X.lora_R.weight."""
    return [name.removesuffix(CORE) for name in names if name.endswith(CORE)]


def _all_of(update: DeviceUpdate, rates: list[float]) -> Tensors:
    """Delta and gradients in one; notes the update's learning rate."""
    rates.append(update.learning_rate)
    return update.delta | with_prefix(GRADIENT, under_prefix(GRADIENT, update.extras))


def _gradients(model: LocalModel, shard: Shard, rows: Tensor, cores: Sequence[str]) -> Tensors:
    """The summed gradients of the frozen weights, by the names of their cores.

    A core sees x and adds to W x. So the gradient of its output is that of W's, and the weight's is sum_t e_t x_t^T.
    """
    out, caught = model.per_sample_grads(shard.batch(rows), cores)
    with torch.enable_grad():
        loss = out.losses.sum()
    seen = caught.by_prefix(model.grad(loss, caught.tensors))
    return {f"{x}.weight": _outer(e, caught.inputs[x]) for x, e in seen.items() if e is not None}


def _outer(e: Tensor, a: Tensor) -> Tensor:
    """sum_t e_t a_t^T. e: (..., out). a: (..., in)."""
    return e.reshape(-1, e.shape[-1]).float().T @ a.reshape(-1, a.shape[-1]).float()
