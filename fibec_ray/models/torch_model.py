"""The model that devices train on one node: frozen base, PEFT adapter, and a way to class scores; used by learning.

Shapes: B samples, S tokens, H hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray import seeds
from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import open_base
from fibec_ray.models.spec import Backbone
from fibec_ray.parts.peft.base import Peft
from fibec_ray.per_sample import collect_holders
from fibec_ray.tensors import Tensors
from fibec_ray.types import HEAD, Batch, Outputs, Work


class TorchModel:
    """One frozen base with one adapter, lent to one device at a time. Implements `LocalModel`.

    spec: which backbone. folder: from `backbone.prepare`. peft: the adapter. label_words: token ids (C,) of the
    verbaliser, None with a classification head. seed: of the adapter's and head's initial values; the same seed gives
    the same values in every process. device: torch's, e.g. "cpu" or "cuda:0".
    """

    def __init__(
        self,
        spec: Backbone,
        folder: Path,
        peft: Peft,
        num_classes: int,
        label_words: Sequence[int] | None,
        seed: int,
        device: str = "cpu",
    ):
        base = open_base(spec, folder)
        self.device = torch.device(device)
        self.num_layers = int(base.config.num_hidden_layers)
        self.work = Work()
        self._spec, self._peft = spec, peft
        self._cost = _ForwardCost(base, self.num_layers)
        with seeds.seeded_third_party(seed, "adapter"):
            self.peft_model = peft.attach(base, "SEQ_CLS" if spec.head == "model" else None)
            head = nn.Linear(base.config.hidden_size, num_classes) if spec.head == "mean_pool" else None
        self._base = self.peft_model.base_model.model.to(self.device)
        self._head = head.to(self.device) if head is not None else None
        self._words = torch.tensor(label_words, device=self.device) if label_words is not None else None
        self._trainable = self._collect()
        self._holders = collect_holders(self.peft_model, _saved_name)
        if self._head is not None:
            self._holders[HEAD] = self._head

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        return self._trainable

    @property
    def holders(self) -> Mapping[str, nn.Module]:
        return self._holders

    @property
    def adapter_config(self) -> dict[str, Any]:
        """What peft writes to adapter_config.json; the base's own config.json where it is trained; as plain values."""
        if self._peft.trains_base:
            return json.loads(json.dumps(self._base.config.to_dict(), default=_plain))
        config = self.peft_model.peft_config["default"]
        config.base_model_name_or_path = self._spec.name if self._spec.init == "pretrained" else None
        return json.loads(json.dumps({**config.to_dict(), "inference_mode": True}, default=_plain))

    def layer_of(self, name: str) -> int | None:
        return self._peft.layer_of(name)

    def is_adapter(self, name: str) -> bool:
        return self._peft.is_adapter(name)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._trainable[name].copy_(value)

    def read(self, names: Collection[str] | None = None) -> Tensors:
        chosen = self._trainable if names is None else names
        return {n: p.detach().cpu().clone() for n, p in self._trainable.items() if n in chosen}

    def train(self, mode: bool) -> None:
        self.peft_model.train(mode and self._spec.dropout)
        for name, module in self.peft_model.named_modules():
            if self.is_adapter(name) and not self._peft.trains_base:
                module.train(mode)

    def embed(self, batch: Batch) -> Tensor:
        embeddings: Tensor = self._base.get_input_embeddings()(batch.input_ids.to(self.device))
        return embeddings

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        mask = batch.attention_mask.to(self.device)
        labels = batch.labels.to(self.device)
        source = {"input_ids": batch.input_ids.to(self.device)} if embeds is None else {"inputs_embeds": embeds}
        self._count(mask)
        states, scores, answer_logits = self._run(source | {"attention_mask": mask}, batch, mask, hidden)
        if answer_logits is None:
            losses = F.cross_entropy(scores, labels, reduction="none")
        else:
            assert self._words is not None
            losses = F.cross_entropy(answer_logits, self._words[labels], reduction="none")
        return Outputs(losses, scores, states)

    def _run(
        self, inputs: dict[str, Tensor], batch: Batch, mask: Tensor, hidden: bool
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """Block outputs, class scores (B, C), and logits over the vocabulary (B, V) where a verbaliser is used."""
        if self._spec.head == "model" and not hasattr(self._base, "score"):
            out = self._base(**inputs, output_hidden_states=hidden)
            return _blocks(out, hidden), out.logits.float(), None
        inner = self._base if self._spec.head == "mean_pool" else getattr(self._base, self._base.base_model_prefix)
        out = inner(**inputs, output_hidden_states=hidden, **_no_cache(self._base))
        states = out.last_hidden_state
        if self._head is not None:
            real = mask.unsqueeze(2)
            pooled = (states.float() * real).sum(1) / real.sum(1)
            return _blocks(out, hidden), self._head(pooled), None
        if self._spec.head == "model":
            # A decoder classifies by its last real token, which transformers finds by a pad id that may not be ours.
            last = states[torch.arange(len(states), device=self.device), mask.sum(1) - 1]
            return _blocks(out, hidden), self._base.score(last).float(), None
        answers = states[torch.arange(len(states), device=self.device), batch.answer_at.to(self.device)]
        # The language-model head runs on the answer position alone: (B, H) -> (B, V).
        logits = _lm_head(self._base)(answers.unsqueeze(1)).squeeze(1).float()
        assert self._words is not None
        return _blocks(out, hidden), logits[:, self._words], logits

    def _count(self, mask: Tensor) -> None:
        """Adds one pass over the batch, padding included; a backward costs as much again (frozen weights: no weight
        gradients, and the adapter's are negligible), and twice as much where the base is trained."""
        num_tokens = mask.numel()
        flops = num_tokens * self._cost.flops_per_token(mask.shape[1])
        backward = (2 if self._peft.trains_base else 1) * flops if torch.is_grad_enabled() else 0.0
        self.work.flops += flops + backward
        self.work.backward_flops += backward
        self.work.num_tokens += num_tokens

    def _collect(self) -> dict[str, nn.Parameter]:
        found = {_saved_name(name): p for name, p in self.peft_model.named_parameters() if p.requires_grad}
        if self._head is not None:
            found |= {f"{HEAD}.{name}": p for name, p in self._head.named_parameters()}
        return found


class _ForwardCost:
    """Multiply-adds of one forward pass, as 2 flops each: dense layers by token, attention by token and length."""

    def __init__(self, base: Any, num_layers: int):
        inner = getattr(base, getattr(base, "base_model_prefix", ""), base)
        # Not the pooler of the BERT family, which sees one token and is not used.
        modules = [module for name, module in inner.named_modules() if not name.startswith("pooler.")]
        dense: list[Any] = [m for m in modules if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
        self._dense = 2.0 * sum(m.weight.numel() for m in dense)
        self._attention = 4.0 * num_layers * base.config.hidden_size

    def flops_per_token(self, length: int) -> float:
        return self._dense + self._attention * length


def _plain(value: Any) -> Any:
    """Sets and enums as JSON has them."""
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))


def _saved_name(name: str) -> str:
    """peft's name in memory -> its name in a saved adapter (the adapter is called "default")."""
    plain = name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")
    return plain.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")  # DoRA's, saved as it once was


def _blocks(out: Any, hidden: bool) -> tuple[Tensor, ...]:
    return tuple(out.hidden_states[1:]) if hidden else ()


def _no_cache(base: Any) -> dict[str, bool]:
    return {"use_cache": False} if hasattr(base.config, "use_cache") else {}


def _lm_head(base: Any) -> nn.Module:
    """The module from hidden states to vocabulary logits (`lm_head` in most, `cls` in the BERT family)."""
    for name in ("lm_head", "cls"):
        if hasattr(base, name):
            module: nn.Module = getattr(base, name)
            return module
    raise ModelError(f"backbone.head: {type(base).__name__} keeps its language-model head under an unknown name")
