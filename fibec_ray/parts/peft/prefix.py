"""P-tuning v2 and prefix tuning: trained keys and values before those of the tokens, in every block's attention.

Shapes: B samples, S tokens, m virtual tokens, L blocks, D size of a block's keys (H unless heads share them).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fibec_ray.errors import ModelError
from fibec_ray.parts.peft.attached import Attached, Inputs, wider
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.library import saved_name
from fibec_ray.parts.peft.virtual import ENCODER, Virtual, config_of, made_by
from fibec_ray.tensors import Tensors, drop


class Prefix(Virtual):
    """P-tuning v2 (Liu et al., ACL 2022): m trained keys and values for each block, in a table (m, 2 D) per block.

    Each table belongs to its block, so blocks can be shared one by one. Only the tables are sent.

    projection: prefix tuning (Li and Liang, ACL 2021), where an MLP makes the keys and values of all blocks from one
    small table. It is trained and sent too, belongs to no block, and is left out of the saved adapter.
    """

    kind: Literal["prefix"] = "prefix"
    projection: bool = Field(False, description="prefix tuning: an MLP makes the keys and values")
    hidden_size: int | None = Field(None, ge=1, description="hidden size of the projection's MLP; null: D")

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Prefix:
        if self.hidden_size is not None and not self.projection:
            raise ValueError("hidden_size has an effect only with projection: true; leave it out")
        return self

    def config(self, task_type: str) -> Any:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            num_virtual_tokens=self.num_tokens,
            prefix_projection=self.projection,
            encoder_hidden_size=self.hidden_size,
            task_type=task_type,
        )

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        body = getattr(module, module.base_model_prefix, module)
        if "past_key_values" not in inspect.signature(body.forward).parameters:
            raise ModelError(
                f"method.peft: prefix passes keys and values to the blocks, but {type(body).__name__} takes none; "
                "choose prompt, or another backbone"
            )
        whole = self.wrap(module, head)
        encoder = whole.prompt_encoder["default"]
        if not self.projection:
            encoder.embedding = LayerTables(encoder.embedding, whole.peft_config["default"].num_layers)

        def extend(inputs: Inputs) -> Inputs:
            mask = inputs["attention_mask"]
            cache = whole.get_prompt(len(mask))
            more = {"attention_mask": wider(mask, self.num_tokens), "past_key_values": cache}
            return {**inputs, **_positions(body, inputs, self.num_tokens), **more}

        return Attached(whole, module, config_of(whole), saved_name, extend, num_prefixes=self.num_tokens)

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """Prefixes without a projection: one table for each block, cut from the saved one."""
        tables = values["prompt_embeddings"].chunk(config["num_layers"], dim=1)
        own = {f"{ENCODER}embedding.layers.{i}.table.weight": table for i, table in enumerate(tables)}
        return Prefix(num_tokens=self.num_tokens), {**drop(values, ["prompt_embeddings"]), **own}

    def table(self, values: Tensors, config: Mapping[str, Any]) -> Tensor:
        if not self.projection:
            return torch.cat([values[f"embedding.layers.{i}.table.weight"] for i in range(config["num_layers"])], dim=1)
        from peft import PeftConfig, PrefixEncoder

        return made_by(PrefixEncoder(PeftConfig.from_peft_type(**{**config, "inference_mode": False})), values)


class LayerTables(nn.Module):
    """peft's table (m, L * 2 * D), split into one table per block: layers.0.table.weight and so on."""

    def __init__(self, table: nn.Embedding, num_layers: int):
        super().__init__()
        parts = table.weight.detach().chunk(num_layers, dim=1)
        tables = (nn.Embedding.from_pretrained(part.clone(), freeze=False) for part in parts)
        self.layers = nn.ModuleList(nn.ModuleDict({"table": table}) for table in tables)

    @property
    def weight(self) -> Tensor:
        """The tables as peft's single one, (m, L * 2 * D)."""
        return torch.cat(list(self.parameters()), dim=1)

    def forward(self, indices: Tensor) -> Tensor:
        return torch.cat([table(indices) for table in self.modules() if isinstance(table, nn.Embedding)], dim=-1)


def _positions(body: Any, inputs: Inputs, num_virtual: int) -> Inputs:
    """Position ids for RoBERTa, which ignores the prefix when it counts positions of embeddings; {} for other
    models.
    """
    first = getattr(getattr(body, "embeddings", None), "padding_idx", None)
    if first is None or "inputs_embeds" not in inputs:
        return {}
    embeds = inputs["inputs_embeds"]
    start = first + 1 + num_virtual
    return {"position_ids": torch.arange(start, start + embeds.shape[1], device=embeds.device).expand(len(embeds), -1)}
