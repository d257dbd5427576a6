"""Which backbone an experiment uses, and how its outputs become class scores."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import BaseModel, Field, JsonValue, ValidationInfo, field_validator, model_validator

from fibec_ray.files.storage import refuse_secrets

Head = Literal["mean_pool", "model", "masked_lm", "causal_lm"]
EncodeMode = Literal["plain", "masked", "causal"]
Backend = Literal["auto", "plain", "spread", "stream", "deepspeed", "qlora"]

ENCODE_MODES: dict[Head, EncodeMode] = {
    "mean_pool": "plain",
    "model": "plain",
    "masked_lm": "masked",
    "causal_lm": "causal",
}


class BackendChoice(NamedTuple):
    """How a process holds its base, and why so."""

    backend: Backend
    reason: str


class Backbone(BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """The frozen base model.

    head: mean_pool (linear classifier on the mean of the last hidden states), model (the classification head that
    transformers gives the architecture), masked_lm or causal_lm (verbaliser: the task's label words at the mask token,
    or after the prompt; only the adapter is trained).
    """

    name: str | None = Field("minilm", description="'minilm' (packaged), a hub id, or a local folder")
    revision: str | None = Field(None, description="hub revision")
    init: Literal["pretrained", "random"] = "pretrained"
    config: dict[str, JsonValue] | None = Field(
        None, description="architecture for init: random, with its model_type, in place of the named one's"
    )
    tokenizer: str | None = Field(None, description="as `name`; null: the backbone's own")
    head: Head = "mean_pool"
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the frozen base; adapters are float32")
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto", description="auto: sdpa where transformers has it for the architecture, else eager"
    )
    backend: Backend = Field(
        "auto",
        description="how a node holds the base: plain, spread (over an actor's GPUs), stream (Linears visit the GPU "
        "one by one), deepspeed (ZeRO-3, offloaded to the host's memory), qlora (4 bits a weight); auto: plain where "
        "it fits, else as memory allows",
    )
    checkpointing: bool = Field(
        False, description="blocks are computed again in the backward pass: less memory, a third more time"
    )
    dropout: bool = Field(
        False, description="the frozen base's own dropout in training; the adapter's is peft's setting"
    )

    @field_validator("name", "tokenizer")
    @classmethod
    def _no_secrets(cls, value: str | None, info: ValidationInfo) -> str | None:
        refuse_secrets(value, f"backbone.{info.field_name}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Backbone:
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
        if self.revision is not None and (self.name in (None, "minilm") or self.config is not None):
            raise ValueError("revision has an effect only where name is a model on the hub; leave it out")
        if self.config is None and self.name is None:
            raise ValueError("name is missing")
        return self

    @property
    def encode_mode(self) -> EncodeMode:
        return ENCODE_MODES[self.head]
