"""Virtual tokens of the peft library: prompt tuning, P-tuning, and the base class of prefix tuning.

Shapes: B samples, m virtual tokens, H hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.heads import task_type, unnamed
from fibec_ray.parts.part import Need
from fibec_ray.parts.peft.attached import Attached, Inputs, in_front, plain
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.library import saved_name
from fibec_ray.tensors import Tensors, drop

ENCODER = "prompt_encoder."


class Virtual(Peft):
    """Base of kinds with m virtual tokens for each sample, made by one of peft's trained encoders.

    The saved adapter holds the encoder's output and loads with `PeftModel.from_pretrained`. The encoder is called with
    a row of indices for each sample, so per-sample gradients are exact. With `head: model` an encoder's own
    classification head reads the first position, which is a prompt, as in peft.
    """

    num_tokens: int = Field(20, ge=1, description="m: number of virtual tokens")
    marks: ClassVar[tuple[str, ...]] = (ENCODER,)
    needs: ClassVar[tuple[Need, ...]] = ("transformer", "text", "one_stack")

    @abstractmethod
    def config(self, task_type: str) -> Any:
        """peft's configuration."""

    @property
    def num_virtual(self) -> int:
        return self.num_tokens

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        whole = self.wrap(module, head)
        encoder, embedding = whole.prompt_encoder["default"], module.get_input_embeddings()

        def prompts(embeds: Tensor, mask: Tensor) -> Tensor:
            made: Tensor = encoder(torch.arange(self.num_tokens, device=embeds.device).expand(len(embeds), -1))
            return made

        def extend(inputs: Inputs) -> Inputs:
            return in_front(inputs, embedding, prompts)

        return Attached(whole, module, config_of(whole), saved_name, extend, num_prompts=self.num_tokens)

    def wrap(self, module: Any, head: Sequence[str] | None) -> Any:
        """Wrap `module` in a PeftModel."""
        from peft import get_peft_model

        generates = "CAUSAL_LM" if module.can_generate() else "FEATURE_EXTRACTION"
        config = self.config(task_type(head, module) or generates)
        config.modules_to_save = unnamed(head, module)
        return get_peft_model(module, config)

    def saved(self, values: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        names = [name for name in values if self.is_adapter(name)]
        own = {name.removeprefix(ENCODER): values[name] for name in names}
        return {**drop(values, names), "prompt_embeddings": self.table(own, config)}, dict(config)

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """Prompt tuning with the table that the encoder made, which is all that was saved."""
        own = {f"{ENCODER}embedding.weight": values["prompt_embeddings"]}
        return Prompt(num_tokens=self.num_tokens, init="random"), {**drop(values, ["prompt_embeddings"]), **own}

    def table(self, values: Tensors, config: Mapping[str, Any]) -> Tensor:
        """The encoder's output from its own tensors, as peft saves it."""
        return values["embedding.weight"]


def config_of(whole: Any) -> dict[str, Any]:
    """The configuration of a PeftModel, as plain values."""
    return plain(whole.peft_config["default"].to_dict())


@torch.no_grad()
def made_by(encoder: Any, values: Tensors) -> Tensor:
    """The table that one of peft's encoders makes with these tensors."""
    encoder.load_state_dict(values)
    table: Tensor = encoder(torch.arange(encoder.embedding.num_embeddings))
    return table


class Prompt(Virtual):
    """Prompt tuning (Lester, Al-Rfou, Constant, EMNLP 2021; federated: FedPrompt, Zhao et al., ICASSP 2023).

    m trained embeddings (m, H) come before every sample's tokens; the base is frozen. Only the embeddings are sent. Use
    a learning rate at least ten times that of LoRA.
    """

    kind: Literal["prompt"] = "prompt"
    init: Literal["vocabulary", "random"] = Field(
        "vocabulary", description="initial values: embeddings of random words, or normal with variance 1"
    )

    def config(self, task_type: str) -> Any:
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            num_virtual_tokens=self.num_tokens,
            prompt_tuning_init="SAMPLE_VOCAB" if self.init == "vocabulary" else "RANDOM",
            task_type=task_type,
        )


class PTuning(Virtual):
    """P-tuning (Liu et al. 2021): m prompts before every sample's tokens, which a small network makes from a table (m,
    H).

    The network is an MLP, or a two-layer bidirectional LSTM with an MLP. Table and network are trained and sent; the
    saved adapter holds the resulting prompts.

    The paper puts prompts around the words of a template; ours come before the sample, as in peft. Fisher information
    is not available for an LSTM.
    """

    kind: Literal["p_tuning"] = "p_tuning"
    encoder: Literal["mlp", "lstm"] = Field("mlp", description="network that makes the prompts")
    hidden_size: int | None = Field(None, ge=1, description="hidden size of the encoder; null: H")

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
