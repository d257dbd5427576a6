"""The settings of a transformer from transformers or with random weights, and how its outputs become scores.

`spec.py` has the backbone with these settings; the modules that build it need only the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, JsonValue, ValidationInfo, field_validator, model_validator

from fibec_ray.effects import OnlyWith, refuse_idle
from fibec_ray.files.storage import refuse_secrets
from fibec_ray.models.packaged import PACKAGED

Head = Literal["mean_pool", "model", "masked_lm", "causal_lm", "seq2seq"]
ImageHead = Literal["mean_pool", "model"]
AdapterDtype = Literal["auto", "float32", "base"]
Backend = Literal["auto", "plain", "spread", "stream", "deepspeed", "qlora"]

AUTO_CLASSES: dict[Head, str] = {
    "mean_pool": "AutoModel",
    "model": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
"""transformers' Auto class for each head of a text model."""


class BackendChoice(NamedTuple):
    """How a process keeps its base, and why."""

    backend: Backend
    reason: str


class PretrainedSettings(BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """Settings of any model from transformers or with random weights. `head` says how its states become scores."""

    name: str | None
    revision: str | None = Field(None, description="hub revision")
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: weights drawn from the seed, for any architecture and size"
    )
    config: dict[str, JsonValue] | None = Field(
        None, description="architecture for init: random, with its model_type, instead of that of `name`"
    )
    head: Head
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the frozen base; adapters are stored in float32"
    )
    adapter_dtype: Annotated[AdapterDtype, OnlyWith("dtype", "bfloat16")] = Field(
        "auto",
        description="dtype in which adapters compute; their values stay in float32. base: the base's dtype, only for "
        "peft lora (without DoRA) and adapter; auto: base on a GPU, float32 on a CPU",
    )
    tf32: Annotated[bool, OnlyWith("dtype", "float32")] = Field(
        False, description="on a GPU, multiply float32 matrices in TF32: faster, with 10 bits of precision"
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto", description="auto: sdpa where transformers has it for the architecture, else eager"
    )
    backend: Backend = Field(
        "auto",
        description="where a node keeps the base: plain, spread (over an actor's GPUs), stream (Linears are copied to "
        "the GPU one by one), deepspeed (ZeRO-3, offloaded to host memory), qlora (4 bits per weight); auto: plain if "
        "it fits, else as memory allows",
    )
    checkpointing: bool = Field(
        False, description="recompute blocks in the backward pass: less memory, a third more time"
    )
    dropout: bool = Field(
        False, description="use the base's own dropout in training; the adapter's is a setting of method.peft"
    )

    reads_images: ClassVar[bool] = False
    """False: it reads texts"""
    auto_classes: ClassVar[Mapping[Head, str]] = AUTO_CLASSES
    example: ClassVar[str] = "llama or bert"
    """model types, for messages"""

    @field_validator("name", "tokenizer", "processor", check_fields=False)
    @classmethod
    def _no_secrets(cls, value: str | None, info: ValidationInfo) -> str | None:
        refuse_secrets(value, f"backbone.{info.field_name}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.config is not None and self.init != "random":
            raise ValueError("config has an effect only with init: random")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError(f"config needs a model_type, such as {self.example}")
        self._check_preprocessor()
        if self.head == "model" and self.dtype != "float32":
            raise ValueError(
                "head: model keeps its classifier in the base's dtype; set dtype: float32, or head: mean_pool"
            )
        if self.revision is not None and (self.name in (None, *PACKAGED) or self.config is not None):
            raise ValueError("revision has an effect only where name is a model on the hub; leave it out")
        if self.config is None and self.name is None:
            raise ValueError("name is missing")
        refuse_idle(self)
        return self

    def _check_preprocessor(self) -> None:
        """Raise ValueError if it is not known how samples become inputs."""

    def narrows_adapters(self, device: str) -> bool:
        """True if adapters compute in bfloat16, as far as their kind can. device: a device type, such as cpu."""
        chosen = self.adapter_dtype if self.adapter_dtype != "auto" else "float32" if device == "cpu" else "base"
        return self.dtype == "bfloat16" and chosen == "base"


class BackboneSettings(PretrainedSettings, frozen=True):
    """The settings of `Backbone`, which documents them."""

    name: str | None = Field("minilm", description="'minilm' or 'smollm2' (packaged), a hub id, or a local folder")
    tokenizer: str | None = Field(None, description="a name like `name`'s; null: the backbone's own")
    head: Head = Field("mean_pool", description="how hidden states become class scores, see above")

    def _check_preprocessor(self) -> None:
        if self.config is not None and self.tokenizer is None:
            raise ValueError("config comes without a tokenizer; set tokenizer, for example to minilm")


class ImageSettings(PretrainedSettings, frozen=True):
    """The settings of `ImageBackbone`, which documents them."""

    kind: Literal["image"] = "image"
    name: str | None = Field(None, description="a hub id, or a local folder")
    processor: str | None = Field(
        None, description="hub id or folder of the image processor; null: the backbone's own, or its architecture's"
    )
    head: ImageHead = Field("model", description="how hidden states become class scores, see above")

    reads_images: ClassVar[bool] = True
    auto_classes: ClassVar[Mapping[Head, str]] = {"mean_pool": "AutoModel", "model": "AutoModelForImageClassification"}
    example: ClassVar[str] = "vit, swin or convnext"
