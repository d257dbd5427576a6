"""FibecFed's sparse local update: only the neurons with most Fisher information are trained."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from fibec_ray.curvature.fisher import FisherScan, Label, momentum
from fibec_ray.curvature.spectrum import Rule, SpectrumSettings, keep_ratio, refuse_unused
from fibec_ray.parts.mask.by_neuron import ByNeuron, keep_top
from fibec_ray.parts.part import Need, of_label
from fibec_ray.tensors import Tensors, select, under_prefix, with_prefix

RATIO = 0.3


class FisherNeurons(ByNeuron):
    """FibecFed (Liu et al., EMNLP 2024): of the personal tensors, train the neurons of highest importance.

    F_k^t = gamma F_k^{t-1} + (1 - gamma) F~_k^t (diagonal; F_k^0 = F~_k^0 over all data at the initial model). The
    importance of a neuron is the sum of its entries of F; neurons are ranked across all personal layers of the device.
    gamma, the ratio and what a neuron of LoRA is are ours: the paper's could not be sourced.
    A neuron without Fisher information is never chosen: at LoRA's start B = 0, so that all of A scores exactly 0.
    """

    kind: Literal["fisher_neurons"] = "fisher_neurons"
    ratio_by: Literal["fixed"] | Rule = Field(
        "fixed", description="fixed: `ratio`; else each device's own, from the Hessian of its loss at its first mask"
    )
    spectrum: SpectrumSettings = SpectrumSettings()
    gamma: float = Field(0.9, ge=0, le=1, description="momentum of the diagonal Fisher information")
    label: Label = Field("observed", description="whose gradient: of the data's label, all of the model's, or a drawn")
    source: Literal["training", "pass"] = Field(
        "training",
        description="of F~_k^t: the backward passes of the device's latest training, which cost next to nothing, or a "
        "pass of its own over the batches visible this round, which about doubles a participation",
    )
    refresh_every: int = Field(1, ge=1, description="participations between two updates of the Fisher information")
    start_at: Literal["init", "first_participation"] = Field(
        "init",
        description="where F_k^0 comes from: init, all of a device's data at the initial model; first_participation, "
        "the batches visible then, at the model received then",
    )

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> FisherNeurons:
        if self.ratio_by != "fixed" and self.ratio != RATIO:
            raise ValueError("ratio has an effect only with ratio_by: fixed; leave one of them out")
        refuse_unused(self.spectrum, None if self.ratio_by == "fixed" else self.ratio_by, "ratio_by")
        return self

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*super().needs, *of_label(self.label), *(("gradients",) if self.source == "training" else ()))

    @property
    def needs_setup(self) -> bool:
        return self.start_at == "init"

    keeps: ClassVar[str] = "diagonal Fisher information, mask (device)"

    def as_planned(self) -> FisherNeurons:
        return self.model_copy(update={"ratio_by": "fixed"})

    def prepare(self, scan: FisherScan, rng: torch.Generator) -> Tensors:
        return self._started(scan, scan.read(self.label).diagonal, rng)

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str], rng: torch.Generator) -> Tensors:
        if "ratio" not in memory:
            memory = self._started(scan, {}, rng)
        fisher, count = select(under_prefix("fisher", memory), names), int(memory["participations"])
        due = not fisher or (self.source == "pass" and count % self.refresh_every == 0)
        if names and due:  # a spectrum may have asked to share every layer
            fisher = momentum(fisher, select(scan.read(self.label, "all").diagonal, names), self.gamma)
        if (ratio := float(memory["ratio"])) == 1:
            kept = {name: torch.ones_like(value, dtype=torch.bool) for name, value in fisher.items()}
        else:
            kept = keep_top(fisher, ratio, self.neuron)
        numbers = {"participations": torch.tensor(count + 1), "ratio": memory["ratio"]}
        return numbers | with_prefix("fisher", fisher) | with_prefix("kept", kept)

    def watches(self, memory: Tensors) -> bool:
        return self.source == "training" and int(memory["participations"]) % self.refresh_every == 0

    def absorb(self, memory: Tensors, diagonal: Tensors) -> Tensors:
        return memory | with_prefix("fisher", momentum(under_prefix("fisher", memory), diagonal, self.gamma))

    def _started(self, scan: FisherScan, fisher: Tensors, rng: torch.Generator) -> Tensors:
        """The first memory, with the device's own ratio."""
        ratio = self.ratio
        if self.ratio_by != "fixed":
            adapter = [name for name in scan.model.trainable if scan.model.is_adapter(name)]
            ratio = keep_ratio(self.ratio_by, scan.model, scan.shard, adapter, self.spectrum, rng)
        return with_prefix("fisher", fisher) | {
            "participations": torch.tensor(0),
            "ratio": torch.tensor(ratio, dtype=torch.float64),
        }
