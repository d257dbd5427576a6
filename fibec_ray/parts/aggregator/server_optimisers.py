"""Server optimisers (Reddi et al., ICLR 2021): they use the step of another aggregator as a gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo, model_validator
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.part import Need, Passes, build
from fibec_ray.tensors import Tensors, under_prefix, with_prefix
from fibec_ray.types import Asked, DeviceUpdate, Extra


def _wrapped(value: Any, info: ValidationInfo) -> Aggregator:
    """Build the inner aggregator from the registry of the outer one; the mean if no kind is given."""
    known: Mapping[str, type[Aggregator]] = info.context or {"mean": Mean}
    allowed = {kind: one for kind, one in known.items() if one.can_be_wrapped}
    inner = build(allowed, value)
    if not inner.can_be_wrapped:
        raise ValueError(
            f"aggregator {inner.kind!r} cannot be used inside another; allowed: {', '.join(sorted(allowed))}"
        )
    return inner


class ServerOptimiser(Aggregator):
    """theta <- theta + step(Delta), where Delta is the step of the inner aggregator `of`.

    Only the server keeps state; devices send what `of` needs. A round without updates changes nothing.
    """

    can_be_wrapped: ClassVar[bool] = False
    of: Annotated[SerializeAsAny[Aggregator], BeforeValidator(_wrapped)] = Field(
        Mean(), description="the aggregator whose step is used"
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("whole",)

    @abstractmethod
    def begin(self, shared: Tensors) -> Tensors:
        """The optimiser's own state before round 1."""

    @abstractmethod
    def step(self, state: Tensors, delta: Tensors) -> tuple[Tensors, Tensors]:
        """Compute the step from Delta, and the optimiser's new state."""

    def extras_before(
        self, model: LocalModel, shard: Shard, names: Collection[str], round_: int, rng: torch.Generator
    ) -> Tensors:
        return self.of.extras_before(model, shard, names, round_, rng)

    def extras_after(
        self, model: LocalModel, shard: Shard, names: Collection[str], batches: Sequence[Tensor], rng: torch.Generator
    ) -> Tensors:
        return self.of.extras_after(model, shard, names, batches, rng)

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        return self.of.passes(round_, answers)

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        return self.of.expected_extras(asked, update)

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        return self.of.fault(asked, update)

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        return with_prefix("of", self.of.start(shared, num_devices)) | with_prefix("own", self.begin(shared))

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        delta, inner = self.of.combine(under_prefix("of", state), updates)
        if not delta:
            return {}, state
        step, own = self.step(under_prefix("own", state), delta)
        return step, with_prefix("of", inner) | with_prefix("own", own)


class Momentum(ServerOptimiser):
    """FedAvgM (Hsu et al., 2019, arXiv 1909.06335): m <- beta m + Delta from m = 0, theta <- theta + rate m.

    beta = 0 and rate = 1 is the inner aggregator alone. With a constant Delta, steps approach rate / (1 - beta) times
    Delta.
    """

    kind: Literal["momentum"] = "momentum"
    beta: float = Field(0.9, ge=0, lt=1, description="momentum; the paper tries 0 to 0.997")
    rate: float = Field(1.0, gt=0, allow_inf_nan=False, description="server learning rate; lower it for a high beta")
    nesterov: bool = Field(False, description="theta <- theta + rate (Delta + beta m), with the new m")

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Momentum:
        if self.nesterov and not self.beta:
            raise ValueError("nesterov has an effect only with beta above 0; leave it out")
        return self

    keeps: ClassVar[str] = "momentum (server)"

    def begin(self, shared: Tensors) -> Tensors:
        return {name: torch.zeros_like(value) for name, value in shared.items()}

    def step(self, state: Tensors, delta: Tensors) -> tuple[Tensors, Tensors]:
        m = {name: self.beta * state[name] + value for name, value in delta.items()}
        ahead = {name: delta[name] + self.beta * value for name, value in m.items()} if self.nesterov else m
        return {name: self.rate * value for name, value in ahead.items()}, m


class Adaptive(ServerOptimiser):
    """Base of the adaptive optimisers: m <- b1 m + (1 - b1) Delta, theta <- theta + rate m / (sqrt v + tau).

    m = 0 and v = tau^2 at the start; the rule for v differs. No bias correction, as in the paper. For tau far above
    |Delta| a step is at most rate / tau times Delta.
    """

    b1: float = Field(0.9, ge=0, lt=1, description="decay of m; 0: no momentum")
    tau: float = Field(1e-3, gt=0, allow_inf_nan=False, description="a smaller value adapts more; 1e-3 in the paper")
    rate: float = Field(1e-2, gt=0, allow_inf_nan=False, description="server learning rate; the paper tunes it")

    @abstractmethod
    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The new v. square: Delta^2."""

    keeps: ClassVar[str] = "both moments (server)"

    def begin(self, shared: Tensors) -> Tensors:
        m = {name: torch.zeros_like(value) for name, value in shared.items()}
        v = {name: torch.full_like(value, self.tau**2) for name, value in shared.items()}
        return with_prefix("m", m) | with_prefix("v", v)

    def step(self, state: Tensors, delta: Tensors) -> tuple[Tensors, Tensors]:
        old_m, old_v = under_prefix("m", state), under_prefix("v", state)
        m = {name: self.b1 * old_m[name] + (1 - self.b1) * value for name, value in delta.items()}
        v = {name: self.second(old_v[name], value.square()) for name, value in delta.items()}
        scales = {name: v[name].sqrt() + self.tau for name in m}
        # Both may underflow in float32; such an entry does not move.
        step = {name: torch.where(scales[name] > 0, self.rate * value / scales[name], 0.0) for name, value in m.items()}
        return step, with_prefix("m", m) | with_prefix("v", v)


class Adam(Adaptive):
    """FedAdam (Reddi et al., ICLR 2021): v <- b2 v + (1 - b2) Delta^2."""

    kind: Literal["adam"] = "adam"
    b2: float = Field(0.99, ge=0, lt=1, description="decay of v; 0: only the last Delta^2")

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.b2 * v + (1 - self.b2) * square


class Yogi(Adaptive):
    """FedYogi (Reddi et al., ICLR 2021): v <- v - (1 - b2) Delta^2 sign(v - Delta^2); Adam where v = Delta^2."""

    kind: Literal["yogi"] = "yogi"
    b2: float = Field(0.99, ge=0, lt=1, description="decay of v: it moves by (1 - b2) Delta^2")

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.b2) * square * torch.sign(v - square)


class Adagrad(Adaptive):
    """FedAdagrad (Reddi et al., ICLR 2021): v <- v + Delta^2, so steps shrink over time; b1 = 0 is the usual
    Adagrad.
    """

    kind: Literal["adagrad"] = "adagrad"

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square
