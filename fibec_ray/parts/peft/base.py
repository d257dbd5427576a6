"""The base class of all PEFT kinds: small trainable tensors in or around a frozen base."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from fibec_ray.parts.part import Need, Part, Setting
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.ranks import Ranks
from fibec_ray.tensors import Tensors

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


class Peft(Part):
    """Base of all PEFT kinds: how one is attached, how its tensors are named, and how they are saved."""

    marks: ClassVar[tuple[str, ...]]
    """parts of names; each tensor that the kind adds has one of them in its name"""
    trains_base: ClassVar[bool] = False
    """True if nothing is frozen and nothing is added"""
    side_by_side: ClassVar[bool] = False
    """True if several devices can go through the model in one pass, each with its own tensors.

    Requires that the kind computes only products and sums with the weights and biases of Linears and LayerNorms.
    """
    can_switch_off: ClassVar[bool] = False
    """True if a pass can leave the kind out and compute exactly as the base does; see `Attached.switched_off`"""

    def unfit_for(self, setting: Setting) -> str | None:
        if setting.adapter_dtype == "base" and not self.computes_in_base_dtype:
            return f"{self.kind} computes in float32; set backbone.adapter_dtype=auto"
        return None

    @property
    def computes_in_base_dtype(self) -> bool:
        """True if `keep_dtype` works."""
        return False

    def keep_dtype(self, module: nn.Module) -> None:
        """Make the attached kind compute in the dtype of the states it sees. Its values stay float32.

        module: from `attach`.
        """
        raise NotImplementedError(self.kind)

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("transformer",)

    @property
    def lacks(self) -> tuple[Need, ...]:
        whole = not self.differs_by_device and type(self).moving is Peft.moving
        return ("lora",) if whole else ("lora", "whole")

    @property
    def num_virtual(self) -> int:
        """m: number of positions that virtual tokens use."""
        return 0

    @abstractmethod
    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        """Attach the kind to `module`, a frozen transformers model, which is changed in place.

        head: paths of the modules of the architecture's classification head, which are trained too (`heads.py`); None:
        no head. Initial values come from torch's global generator: seed it around this call.
        """

    def layer_of(self, name: str) -> int | None:
        """The transformer block of a tensor; None outside blocks (head, prompts), where tensors are always shared."""
        found = _BLOCK.search(name)
        return int(found.group(1)) if found else None

    def is_adapter(self, name: str) -> bool:
        """True for tensors that the PEFT kind added, False for a task head."""
        return any(mark in name for mark in self.marks)

    def saved(self, values: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        """The tensors and the configuration of a saved adapter.

        values: all tensors, by the names used in updates. config: from `attach`.
        """
        return dict(values), dict(config)

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """The inverse of `saved`: a kind to attach, and the values to load into it, for the same model.

        values, config: as `saved` returned them. file: the safetensors file that holds the values.
        """
        return self, values

    @property
    def rebuilds(self) -> bool:
        """True if `rebuilt` does something."""
        return type(self).rebuilt is not Peft.rebuilt

    def rebuilt(self, shared: Tensors, initial: Tensors) -> Tensors:
        """The shared tensors that a model computes with, from those that travel. initial: all values at the start."""
        return shared

    def folded(self, values: Tensors) -> Tensors:
        """The trained values as a device sends and keeps them: the same model, in other factors."""
        return values

    @property
    def drops_out(self) -> bool:
        """True if the adapter has dropout in training."""
        return float(getattr(self, "dropout", 0.0)) > 0

    @property
    def device_ranks(self) -> Ranks | None:
        """How to cut the adapter for devices of lower rank; None: all devices train the whole adapter."""
        return None

    @property
    def differs_by_device(self) -> bool:
        """True if devices have different ranks; a device's own model then differs from the global one."""
        return self.device_ranks is not None and self.device_ranks.classes is not None

    def moving(self, names: Collection[str], round_: int, rounds: int) -> frozenset[str]:
        """The shared tensors that devices train and send in this round; the others do not change."""
        return frozenset(names)

    def after_round(self, shared: Tensors, control: Tensors, round_: int, rounds: int) -> Tensors:
        """New values of shared tensors that the server sets after a round, by name."""
        return {}


def linear_names(module: nn.Module) -> list[str]:
    """The last parts of the names of a model's Linears, for error messages."""
    names = (name.rsplit(".", 1)[-1] for name, child in module.named_modules() if isinstance(child, nn.Linear))
    return sorted(dict.fromkeys(names))


def is_product(module: nn.Module) -> bool:
    """True for modules that multiply their input by a weight matrix, transposed or not."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """True for a product with a weight (in, out): GPT-2's Conv1D in transformers."""
    return type(module).__name__ == "Conv1D"
