"""FibecFed's sparse local update: train only the neurons with the most Fisher information."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from fibec_ray.curvature.fisher import FisherScan, momentum
from fibec_ray.curvature.spectrum import Rule, SpectrumSettings, keep_ratio, refuse_unused
from fibec_ray.likelihoods import Label
from fibec_ray.parts.mask.by_neuron import ByNeuron, keep_top
from fibec_ray.parts.part import Need, of_label
from fibec_ray.tensors import Tensors, select, under_prefix, with_prefix

RATIO = 0.3


class FisherNeurons(ByNeuron):
    """FibecFed (Liu et al., EMNLP 2024): train the most important neurons of the personal tensors.

    F_k^t = gamma F_k^{t-1} + (1 - gamma) F~_k^t (diagonal; F_k^0 = F~_k^0 over all data at the initial model). A
    neuron's importance is the sum of its entries of F; neurons are ranked across all personal layers of the device.
    gamma, the ratio and the definition of a LoRA neuron are ours. The page on FibecFed has a co-author's choices.
    Neurons with zero Fisher information are never chosen. At LoRA's start B = 0, so all of A scores exactly 0.
    """

    kind: Literal["fisher_neurons"] = "fisher_neurons"
    ratio_by: Literal["fixed"] | Rule = Field(
        "fixed", description="fixed: `ratio`; else a ratio per device, from the Hessian of its loss at its first mask"
    )
    spectrum: SpectrumSettings = Field(SpectrumSettings(), description="accuracy of the spectrum, for ratio_by")
    gamma: float = Field(0.9, ge=0, le=1, description="momentum of the diagonal Fisher information")
    label: Label = Field(
        "observed",
        description="labels in the gradients: observed (the data's), expected (all), or sampled (the model's)",
    )
    source: Literal["training", "pass"] = Field(
        "training",
        description="of F~_k^t: training, the backward passes of the latest training, at almost no cost; pass, an "
        "extra pass over the batches visible this round, which about doubles a participation",
    )
    refresh_every: int = Field(1, ge=1, description="participations between two updates of the Fisher information")
    start_at: Literal["init", "first_participation"] = Field(
        "init",
        description="source of F_k^0: init, all of a device's data at the initial model; first_participation, the "
        "batches visible then, at the model received then",
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
        if names and due:  # no names if a spectrum made every layer shared
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
        """The first memory, with the device's ratio."""
        ratio = self.ratio
        if self.ratio_by != "fixed":
            adapter = [name for name in scan.model.trainable if scan.model.is_adapter(name)]
            ratio = keep_ratio(self.ratio_by, scan.model, scan.shard, adapter, self.spectrum, rng)
        return with_prefix("fisher", fisher) | {
            "participations": torch.tensor(0),
            "ratio": torch.tensor(ratio, dtype=torch.float64),
        }
