"""What every PEFT kind is: small trainable tensors inside a frozen base. The contract of all PEFT kinds."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from fibec_ray.errors import ModelError
from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors

_BLOCK = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


class Peft(Part):
    """Attached by the peft library, whose names and layout are kept: the saved adapter loads with
    `PeftModel.from_pretrained`.

    A subclass says which configuration peft takes, and by what its tensors' names are known.
    """

    target_modules: tuple[str, ...] | None = Field(
        None, description="names of the Linears to adapt; null: peft's choice for the model type"
    )
    marks: ClassVar[tuple[str, ...]]
    """one of them is in the name of each tensor that the kind adds"""

    @abstractmethod
    def config(self, task_type: str | None) -> Any:
        """peft's configuration. task_type: peft's, or None."""

    def attach(self, module: nn.Module, task_type: str | None) -> Any:
        """The PeftModel around `module`, which is changed in place.

        peft draws its initial values from torch's global generator: seed it around this call.
        """
        from peft import get_peft_model

        try:
            return get_peft_model(module, self.config(task_type))
        except ValueError as error:
            raise ModelError(
                f"method.peft.target_modules: {_first_sentence(error)}; name Linears of this backbone, such as "
                f"{', '.join(_linear_names(module)[:6])}"
            ) from error

    def layer_of(self, name: str) -> int | None:
        """The transformer block in a tensor's name; None outside blocks (head, prompts), which is always shared."""
        found = _BLOCK.search(name)
        return int(found.group(1)) if found else None

    def is_adapter(self, name: str) -> bool:
        """True for tensors that the PEFT kind added, False for a task head."""
        return any(mark in name for mark in self.marks)

    def rank_of(self, device: int, seed: int) -> int | None:
        """The rank that a device has room for; None if all devices train the global adapter as it is."""
        return None

    @property
    def differs_by_device(self) -> bool:
        """True if `rank_of` is not None: then a device's own model is not the global one."""
        return False

    def fit(self, values: Mapping[str, Tensor], rank: int) -> Tensors:
        """The server's tensors as a device of this rank has them: of the same shapes, zero where it has no entries."""
        raise NotImplementedError

    def unfit(self, values: Mapping[str, Tensor], rank: int) -> Tensors:
        """The other way, for values and for deltas: on the server's scale, and without the entries it does not have."""
        raise NotImplementedError

    def set_rank(self, module: nn.Module, rank: int | None) -> None:
        """Makes the attached adapter compute as a device of this rank does; None: as the server's."""

    def moving(self, names: Collection[str], round_: int, rounds: int) -> frozenset[str]:
        """Which of the shared tensors devices train and send in this round; the others stand still."""
        return frozenset(names)

    @property
    def takes_turns(self) -> bool:
        """True if `moving` can leave some out."""
        return False

    def after_round(self, shared: Tensors, hint: Tensors, round_: int, rounds: int) -> Tensors:
        """What the server sets anew when a round has been absorbed: new values by name, of shared tensors."""
        return {}

    def carries(self, name: str) -> bool:
        """True for a parameter that travels with the adapter to devices, which do not train it."""
        return False

    @property
    def targets(self) -> list[str] | None:
        return list(self.target_modules) if self.target_modules else None


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].rstrip(".")


def _linear_names(module: nn.Module) -> list[str]:
    names = (name.rsplit(".", 1)[-1] for name, child in module.named_modules() if isinstance(child, nn.Linear))
    return sorted(dict.fromkeys(names))
