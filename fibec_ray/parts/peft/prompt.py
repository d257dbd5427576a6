"""Prompt tuning: virtual tokens before each sample's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fibec_ray.parts.peft.virtual import Virtual


class Prompt(Virtual):
    """Prompt tuning (Lester, Al-Rfou, Constant, EMNLP 2021; federated: FedPrompt, Zhao et al., ICASSP 2023): m learnt
    embeddings (m, H) before the tokens of every sample; the base is frozen. They are all that is sent.

    It wants a learning rate ten times that of LoRA and more.
    """

    kind: Literal["prompt"] = "prompt"
    init: Literal["vocabulary", "random"] = Field(
        "vocabulary", description="first values: embeddings of words drawn at random, or normal ones of variance 1"
    )

    def config(self, task_type: str) -> Any:
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            num_virtual_tokens=self.num_tokens,
            prompt_tuning_init="SAMPLE_VOCAB" if self.init == "vocabulary" else "RANDOM",
            task_type=task_type,
        )
