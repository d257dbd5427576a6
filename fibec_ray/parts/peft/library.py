"""PEFT kinds of the peft library that adapt the base's Linears: the base class, and kinds that are only a
configuration.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator
from torch import nn

from fibec_ray.errors import ModelError
from fibec_ray.heads import task_type, unnamed
from fibec_ray.parts.peft.attached import Attached, plain
from fibec_ray.parts.peft.base import Peft, is_transposed
from fibec_ray.parts.peft.targets import Word, linears_of_blocks, query_and_value, refusal, resolve


class InLinears(Peft):
    """Base of kinds that the peft library attaches. A subclass gives peft's configuration.

    peft's names and layout are kept, so the saved adapter loads with `PeftModel.from_pretrained`.
    """

    target_modules: Word | tuple[str, ...] | None = Field(
        None,
        description="the Linears to adapt: a list of names, attention (all its projections) or all-linear (all in the "
        "blocks); null: query and value (targets.py), or peft's choice for the kind and the model type",
    )
    peft_chooses: ClassVar[bool] = False
    """True if peft has its own choice of Linears for the kind, other than LoRA's"""
    can_switch_off: ClassVar[bool] = True
    takes_transposed: ClassVar[bool] = True
    """False if peft cannot adapt GPT-2's Conv1D, a Linear whose weight is transposed"""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _a_word_or_a_list(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in get_args(Word):
            raise ValueError(f"expected {' or '.join(get_args(Word))}, or a list of names such as [{value}]")
        return value

    @abstractmethod
    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        """peft's configuration. targets: endings of module names; None: peft's choice. task_type: peft's, or None."""

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        from peft import get_peft_model

        if not self.takes_transposed and any(is_transposed(child) for child in module.modules()):
            raise ModelError(
                f"method.peft: {self.kind} adapts Linears, but a {module.config.model_type} has Conv1D instead; choose "
                "lora, or another backbone"
            )
        targets, there = self._targets(module), linears_of_blocks(module)
        try:
            config = self.config(targets, task_type(head, module))
            config.modules_to_save = unnamed(head, module)
            if hasattr(config, "fan_in_fan_out"):  # else peft detects it and warns
                config.fan_in_fan_out = any(is_transposed(child) for child in module.modules())
            whole: Any = get_peft_model(module, config)
        except (TypeError, ValueError) as error:
            sentence = str(error).split(". ")[0].rstrip(".")
            what = sentence if targets else f"peft chooses none for a {module.config.model_type}"
            raise refusal(what, module, there=there) from error
        config = plain(whole.peft_config["default"].to_dict())
        return Attached(
            whole, whole.get_base_model(), config, saved_name, switched_off=partial(switched_off, adapted(whole))
        )

    def _targets(self, module: Any) -> list[str] | None:
        if self.target_modules is not None:
            return resolve(self.target_modules, module)
        return None if self.peft_chooses else query_and_value(module)


def adapted(module: nn.Module) -> list[Any]:
    """The modules that peft has put in place of others."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


@contextmanager
def switched_off(layers: Sequence[Any]) -> Iterator[None]:
    """Compute without the adapter in these modules.

    `PeftModel.disable_adapter` would also reset `requires_grad` of all tensors of the adapter, in each pass.
    """
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def saved_name(name: str) -> str:
    """peft's name in memory -> its name in a saved adapter (the adapter is called "default")."""
    short = name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")
    return short.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")  # DoRA's, in peft's file format


class Ia3(InLinears):
    """(IA)^3 (Liu et al., NeurIPS 2022): y = l * (W x) on keys and values, y = W (l * x) in the feed-forward.

    l starts at 1, which is the base model. Use a higher learning rate than for LoRA: 1e-2 or more.
    """

    kind: Literal["ia3"] = "ia3"
    feedforward_modules: tuple[str, ...] | None = Field(
        None,
        description="the target_modules whose input is scaled; null: peft's choice for the model type, or none of them "
        "if peft has no choice",
    )
    peft_chooses: ClassVar[bool] = True
    marks: ClassVar[tuple[str, ...]] = (".ia3_l",)

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as known

        if self.target_modules is None or self.feedforward_modules is not None or module.config.model_type in known:
            return super().attach(module, head)
        return self.model_copy(update={"feedforward_modules": ()}).attach(module, head)

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import IA3Config

        inputs = list(self.feedforward_modules) if self.feedforward_modules is not None else None
        return IA3Config(target_modules=targets, feedforward_modules=inputs, task_type=task_type)


class Loha(InLinears):
    """LoHa (FedPara; Hyeon-Woo, Ye-Bin, Oh, ICLR 2022): W + (alpha / r) (B_1 A_1) * (B_2 A_2), rank up to r^2.

    Proposed for federated learning: more rank per byte sent. Fisher information is not available.
    """

    kind: Literal["loha"] = "loha"
    r: int = Field(4, ge=1, description="rank of each of the two products")
    alpha: float = Field(8, gt=0, description="numerator of the scaling")
    marks: ClassVar[tuple[str, ...]] = (".hada_",)
    takes_transposed: ClassVar[bool] = False

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(r=self.r, alpha=self.alpha, target_modules=targets, task_type=task_type)


class Lokr(InLinears):
    """LoKr (Yeh et al., ICLR 2024): W + (alpha / r) C (x) (B A), (x) the Kronecker product.

    Fisher information is not available.
    """

    kind: Literal["lokr"] = "lokr"
    r: int = Field(8, ge=1, description="rank of the second factor")
    alpha: float = Field(16, gt=0, description="numerator of the scaling")
    marks: ClassVar[tuple[str, ...]] = (".lokr_",)
    takes_transposed: ClassVar[bool] = False

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(r=self.r, alpha=self.alpha, target_modules=targets, task_type=task_type)


class Vera(InLinears):
    """VeRA (Kopiczko, Blankevoort, Asano, ICLR 2024): W + diag(b) B diag(d) A with random A, B that layers share.

    Only b and d are trained and sent; A and B are redrawn from `seed` when the adapter is loaded. Fisher information is
    not available.
    """

    kind: Literal["vera"] = "vera"
    r: int = Field(64, ge=1, description="rank of the random matrices")
    seed: int = Field(0, ge=0, description="seed of the random matrices")
    marks: ClassVar[tuple[str, ...]] = (".vera_lambda_",)

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import VeraConfig

        return VeraConfig(
            r=self.r,
            projection_prng_key=self.seed,
            save_projection=False,
            target_modules=targets,
            task_type=task_type,
        )
