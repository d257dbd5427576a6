"""What every PEFT kind is: small trainable tensors in or around a frozen base. The contract of all PEFT kinds."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from fibec_ray.parts.part import Need, Part
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.ranks import Ranks
from fibec_ray.tensors import Tensors

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


class Peft(Part):
    """A subclass says how it is attached, by what its tensors' names are known, and how they are saved."""

    marks: ClassVar[tuple[str, ...]]
    """one of them is in the name of each tensor that the kind adds"""
    trains_base: ClassVar[bool] = False
    """True if nothing is frozen and nothing is added"""
    side_by_side: ClassVar[bool] = False
    """True if all that it computes are products and sums with the weights and biases of Linears and LayerNorms, so that
    several devices, each with its own of them, can go through the model in one pass"""

    needs: ClassVar[tuple[Need, ...]] = ("transformer",)

    @property
    def lacks(self) -> tuple[Need, ...]:
        whole = not self.differs_by_device and type(self).moving is Peft.moving
        return ("lora",) if whole else ("lora", "whole")

    @property
    def num_virtual(self) -> int:
        """m: positions that virtual tokens take from the backbone's."""
        return 0

    @abstractmethod
    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        """The kind in `module`, a frozen transformers model, which is changed in place.

        head: paths of the modules of the architecture's classification head, which are trained too (`heads.py`); None:
        it has none. Initial values are drawn from torch's global generator: seed it around this call.
        """

    def layer_of(self, name: str) -> int | None:
        """The transformer block in a tensor's name; None outside blocks (head, prompts), which is always shared."""
        found = _BLOCK.search(name)
        return int(found.group(1)) if found else None

    def is_adapter(self, name: str) -> bool:
        """True for tensors that the PEFT kind added, False for a task head."""
        return any(mark in name for mark in self.marks)

    def saved(self, values: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        """What a saved adapter holds, and its configuration.

        values: all tensors by the names that they travel under. config: of `attach`.
        """
        return dict(values), dict(config)

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """The inverse of `saved`: a kind to attach, and the values to load into it, for the same model.

        values, config: as `saved` returned them. file: the safetensors file that holds the values.
        """
        return self, values

    @property
    def device_ranks(self) -> Ranks | None:
        """How the adapter is cut for devices of a lower rank; None: all devices train the server's as it is."""
        return None

    @property
    def differs_by_device(self) -> bool:
        """True if devices have ranks of their own: then a device's own model is not the global one."""
        return self.device_ranks is not None and self.device_ranks.classes is not None

    def moving(self, names: Collection[str], round_: int, rounds: int) -> frozenset[str]:
        """Which of the shared tensors devices train and send in this round; the others stand still."""
        return frozenset(names)

    def after_round(self, shared: Tensors, control: Tensors, round_: int, rounds: int) -> Tensors:
        """What the server sets anew when a round has been absorbed: new values by name, of shared tensors."""
        return {}


def linear_names(module: nn.Module) -> list[str]:
    """The last words of the names of the Linears in a model, for error messages."""
    names = (name.rsplit(".", 1)[-1] for name, child in module.named_modules() if isinstance(child, nn.Linear))
    return sorted(dict.fromkeys(names))


def is_product(module: nn.Module) -> bool:
    """True for what multiplies its input by a weight matrix, whichever way round that lies."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """True for a product with a weight (in, out): GPT-2's, which transformers calls Conv1D."""
    return type(module).__name__ == "Conv1D"
