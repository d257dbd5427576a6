"""The settings of a transformer from transformers or with random weights, and how its outputs become scores.

`spec.py` has the backbone with these settings; the modules that build it need only the settings.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, Field, JsonValue, ValidationInfo, field_validator, model_validator

from fibec_ray.files.storage import refuse_secrets
from fibec_ray.models.packaged import PACKAGED

Head = Literal["mean_pool", "model", "masked_lm", "causal_lm"]
Backend = Literal["auto", "plain", "spread", "stream", "deepspeed", "qlora"]

AUTO_CLASSES: dict[Head, str] = {
    "mean_pool": "AutoModel",
    "model": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
}
"""transformers' Auto class for each head."""


class BackendChoice(NamedTuple):
    """How a process keeps its base, and why."""

    backend: Backend
    reason: str


class BackboneSettings(BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """The settings of `Backbone`, which documents them."""

    name: str | None = Field("minilm", description="'minilm' or 'smollm2' (packaged), a hub id, or a local folder")
    revision: str | None = Field(None, description="hub revision")
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: weights drawn from the seed, for any architecture and size"
    )
    config: dict[str, JsonValue] | None = Field(
        None, description="architecture for init: random, with its model_type, instead of that of `name`"
    )
    tokenizer: str | None = Field(None, description="a name like `name`'s; null: the backbone's own")
    head: Head = Field("mean_pool", description="how hidden states become class scores, see above")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the frozen base; adapters are float32"
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

    @field_validator("name", "tokenizer")
    @classmethod
    def _no_secrets(cls, value: str | None, info: ValidationInfo) -> str | None:
        refuse_secrets(value, f"backbone.{info.field_name}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.config is not None and self.init != "random":
            raise ValueError("config has an effect only with init: random")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs a model_type, such as llama or bert")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("config comes without a tokenizer; set tokenizer, for example to minilm")
        if self.head == "model" and self.dtype != "float32":
            raise ValueError(
                "head: model keeps its classifier in the base's dtype; set dtype: float32, or head: mean_pool"
            )
        if self.revision is not None and (self.name in (None, *PACKAGED) or self.config is not None):
            raise ValueError("revision has an effect only where name is a model on the hub; leave it out")
        if self.config is None and self.name is None:
            raise ValueError("name is missing")
        return self
