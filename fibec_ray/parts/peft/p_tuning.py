"""P-tuning: virtual tokens that a small network makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from fibec_ray.parts.peft.virtual import Virtual, made_by
from fibec_ray.tensors import Tensors


class PTuning(Virtual):
    """P-tuning (Liu et al. 2021): m prompts before the tokens of every sample, which an MLP, or a bidirectional LSTM of
    two layers and an MLP, makes of a learnt table (m, H). Table and network are trained and sent; what is saved is the
    prompts that they make.

    The paper puts its prompts around the words of a template; ours stand before the sample, as in peft. Fisher
    information is not to be had of an LSTM.
    """

    kind: Literal["p_tuning"] = "p_tuning"
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden_size: int | None = Field(None, ge=1, description="of the encoder; null: H")

    def config(self, task_type: str) -> Any:
        from peft import PromptEncoderConfig

        return PromptEncoderConfig(
            num_virtual_tokens=self.num_tokens,
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.hidden_size,
            task_type=task_type,
        )

    def table(self, values: Tensors, config: Mapping[str, Any]) -> Tensor:
        from peft import PeftConfig, PromptEncoder

        return made_by(PromptEncoder(PeftConfig.from_peft_type(**{**config, "inference_mode": False})), values)
