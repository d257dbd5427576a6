"""FIPA: devices send the largest eigenpairs of their Gauss-Newton matrices, and the server weights directions by them.

Shapes: p entries in a block's tensors, M devices, r eigenpairs of each, R = sum of the r over devices.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.curvature.ggn import CHUNK, top_eigenpairs
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Passes
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import Asked, DeviceUpdate, Extra

DAMPING = 0.01
RCOND = 1e-5
SLACK = 1e-3
"""Largest rounding error of an entry of U^T U, averaged over a row."""


class Fipa(Aggregator):
    """FIPA (Chang, He, Hao, arXiv 2601.13608, 2026): delta = pinv(H) sum_m w_m H_m delta_m, H = sum_m w_m H_m.

    w_m = n_m / sum n, H_m = U_m diag(lam_m) U_m^T: the r largest eigenpairs of device m's Gauss-Newton matrix at the
    broadcast parameters, separately for each block of tensors. This is FedAvg with a matrix as each device's weight;
    with exact local solves it is the Gauss-Newton step on all data. It is solved through the R x R matrix P^T P, P =
    [sqrt(w_m) U_m lam_m^{1/2}], which is exact and needs no p x p matrix.

    The paper has no LoRA. Ours: the blocks, the warm-up (LoRA starts with B = 0, so A has no curvature and the rule
    would drop A's part of every delta), null_space: fedavg, and the trust region. Without it a step on LoRA can be many
    times FedAvg's, and training collapses; a likely reason is that devices with few samples share few directions, so
    that each delta counts in full along its own directions. trust: null is the paper's rule.

    With text answers H_m is estimated from sampled tokens (`ggn.py`), since a vocabulary has too many columns.

    Each device sends p r floats more than FedAvg's p. The server holds all updates of a cohort and p R float64 per
    block. One device with H_1 of full rank: its own delta. All H_m equal: FedAvg, projected onto their range.
    """

    kind: Literal["fipa"] = "fipa"
    rank: int = Field(16, ge=1, description="r: eigenpairs that a device sends per block")
    block: Literal["pair", "layer", "all"] = Field(
        "layer",
        description="tensors that share an H: an adapted module's, a transformer block's, or the whole adapter's (a "
        "head then has its own H); with pair and layer, tensors outside blocks use FedAvg",
    )
    solve: Literal["pinv", "damped"] = Field(
        "pinv", description="pinv(H), as in the paper; or (H + lam I)^-1, as in its code for large models"
    )
    damping: float = Field(
        DAMPING, gt=0, allow_inf_nan=False, description="lam, relative to the mean of the diagonal of P^T P"
    )
    rcond: float = Field(
        RCOND, gt=0, lt=1, description="eigenvalues of H below this fraction of the largest count as 0"
    )
    null_space: Literal["zero", "fedavg"] = Field(
        "zero", description="the step in directions without curvature on any device: zero (the paper's), or FedAvg's"
    )
    rate: float = Field(1.0, gt=0, allow_inf_nan=False, description="eta: the step is multiplied by this")
    trust: float | None = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="largest norm of a block's step, eta included, as a multiple of FedAvg's; null: no limit",
    )
    warmup_rounds: int = Field(1, ge=0, description="number of first rounds that use FedAvg")
    max_samples: int | None = Field(64, ge=1, description="samples per device for H_m, drawn each round; null: all")

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Fipa:
        if self.solve == "pinv" and self.damping != DAMPING:
            raise ValueError("damping has an effect only with solve: damped; leave one of them out")
        if self.solve == "damped" and self.null_space == "zero" and self.rcond != RCOND:
            raise ValueError("rcond has an effect only with solve: pinv or null_space: fedavg; leave it out")
        return self

    sends: ClassVar[str] = "eigenpairs of its Gauss-Newton matrix"

    def extras_before(
        self, model: LocalModel, shard: Shard, names: Collection[str], round_: int, rng: torch.Generator
    ) -> Tensors:
        """For each block `BLOCK/values` (r,) and `BLOCK/vectors/NAME` (*shape, r). Empty in the warm-up."""
        if round_ < self.warmup_rounds:
            return {}
        rows = torch.randperm(shard.num_samples, generator=rng)[: self.max_samples]
        found: Tensors = {}
        for block, pairs in top_eigenpairs(model, shard, rows, self._blocks(model, names), self.rank, rng).items():
            found[f"{block}/values"] = pairs.values
            found |= {f"{block}/vectors/{name}": value for name, value in pairs.vectors.items()}
        return found

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        if round_ < self.warmup_rounds:
            return ()
        return [Passes(max_samples=1), Passes(self.max_samples, CHUNK, answers.num_columns, single_gradients=True)]

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        if asked.round < self.warmup_rounds:
            return {}
        expected: dict[str, Extra] = {}
        num_samples = min(update.num_samples, self.max_samples or update.num_samples)
        most = min(self.rank, num_samples * asked.answers.num_columns)
        for block, names in self._blocks(asked, asked.shared).items():
            found = _rank(update.extras.get(f"{block}/values"))
            rank = min(found, most, sum(asked.shared[name].numel() for name in names))
            expected[f"{block}/values"] = Extra((rank,), least=0)
            expected |= {f"{block}/vectors/{n}": Extra((*asked.shared[n].shape, rank)) for n in names}
        return expected

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        for block, names in _sent_blocks([update]).items():
            u = _vectors(update.extras, block, names)
            if float((u.T @ u - torch.eye(u.shape[1], dtype=u.dtype)).abs().sum()) > SLACK * u.shape[1]:
                return f"the update's eigenvectors of '{block}' are not orthonormal"
        return None

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        """Apply the rule. Tensors without eigenpairs take FedAvg's step, as all do in the warm-up."""
        held = [update for update in updates if update.num_samples]
        step = weighted_mean((update.num_samples, update.delta) for update in held)
        for block, names in _sent_blocks(held).items():
            found = self._block_step(held, block, names, _flat(step, names))
            parts = found.split([step[name].numel() for name in names])
            step |= {n: part.view_as(step[n]).to(step[n].dtype) for n, part in zip(names, parts, strict=True)}
        return step, state

    def _blocks(self, model: LocalModel | Asked, names: Collection[str]) -> dict[str, list[str]]:
        """The names of the tensors in each block; empty blocks are left out."""
        blocks: dict[str, list[str]] = {}
        for name in names:
            block = self._block_of(model, name)
            if block is not None:
                blocks.setdefault(block, []).append(name)
        return blocks

    def _block_of(self, model: LocalModel | Asked, name: str) -> str | None:
        """The block that a tensor belongs to; None: it takes FedAvg's step."""
        if self.block == "all":
            return "adapter" if model.is_adapter(name) else "head"
        layer = model.layer_of(name)
        if layer is None or self.block == "layer":
            return None if layer is None else f"layer.{layer}"
        # X.lora_A.weight and X.lora_B.weight; X.ia3_l; X.weight and X.bias
        return name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]

    def _block_step(self, held: Sequence[DeviceUpdate], block: str, names: Sequence[str], mean: Tensor) -> Tensor:
        """(p,) float64, the step of one block. mean: FedAvg's."""
        total = sum(update.num_samples for update in held)
        factors, targets = [], []
        for update in held:
            values = update.extras[f"{block}/values"].double()
            factor = _vectors(update.extras, block, names) * (update.num_samples / total * values).sqrt()
            factors.append(factor)
            targets.append(factor.T @ _flat(update.delta, names))
        step = self.rate * self._direction(torch.cat(factors, 1), torch.cat(targets), mean)
        if self.trust is None or float(step.norm()) <= self.trust * float(mean.norm()):
            return step
        return step * (self.trust * mean.norm() / step.norm())

    def _direction(self, p: Tensor, c: Tensor, mean: Tensor) -> Tensor:
        """d = P pinv(P^T P) c, or P (P^T P + lam I)^-1 c, which is (P P^T + lam I)^-1 P c; both from one eigh.

        p: (p, R) with P P^T = H. c: (R,) with P c = sum_m w_m H_m delta_m. null_space adds (I - Q Q^T) mean with Q an
        orthonormal basis of what pinv takes for the range of H.
        """
        gram = p.T @ p
        if not gram.any():  # no device has curvature here
            return mean if self.null_space == "fedavg" else torch.zeros_like(mean)
        values, vectors = torch.linalg.eigh(gram)
        kept = values > self.rcond * values[-1]
        if self.solve == "pinv":
            inverse = torch.where(kept, 1 / values, 0.0)
        else:
            inverse = 1 / (values.clamp(min=0) + self.damping * gram.diagonal().mean())
        step = p @ (vectors @ (inverse * (vectors.T @ c)))
        if self.null_space == "fedavg":
            basis = p @ (vectors[:, kept] / values[kept].sqrt())
            step = step + mean - basis @ (basis.T @ mean)
        return step


def _sent_blocks(held: Sequence[DeviceUpdate]) -> dict[str, list[str]]:
    """Names by block, from the keys of the first update; the same for all devices of a round."""
    blocks: dict[str, list[str]] = {}
    for key in held[0].extras if held else ():
        block, word, name = key.partition("/vectors/")
        if word:
            blocks.setdefault(block, []).append(name)
    return blocks


def _rank(values: Tensor | None) -> int:
    """Number of eigenvalues sent; too large to be valid if they are malformed."""
    return len(values) if isinstance(values, Tensor) and values.dim() == 1 else sys.maxsize


def _vectors(extras: Tensors, block: str, names: Sequence[str]) -> Tensor:
    """U (p, r) of a block, float64."""
    return torch.cat([extras[f"{block}/vectors/{name}"].double().flatten(0, -2) for name in names])


def _flat(tensors: Tensors, names: Sequence[str]) -> Tensor:
    """The named tensors as one vector, (p,) float64."""
    return torch.cat([tensors[name].double().flatten() for name in names])
