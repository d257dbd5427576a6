"""ATTEMPT: a new prompt plus a mixture of existing ones, weighted for each sample.

Shapes: B samples, S tokens, m prompts, H hidden size, N source prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray import seeds
from fibec_ray.errors import ModelError
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.generated import Generated, drawn
from fibec_ray.tensors import Tensors, drop

SOURCES = "sources"


class Attempt(Generated):
    """ATTEMPT (Asai et al., EMNLP 2022): prompts P + sum_j a_j P_j over N frozen source prompts P_1..P_N and P itself.

    a = softmax_j(P^_j . g(x^) / T), T = e H. P^_j and x^ are maxima over the positions of a prompt and of the sample's
    token embeddings. g(x) = LayerNorm(U silu(D x)), D (b, H), U (H, b). P and g are trained and sent.

    The paper uses prompts trained on other tasks as sources: pass them in `sources`. Without it the sources are random
    words of the vocabulary (ours), which carry no knowledge. The paper also shares and pretrains g; ours starts fresh.
    """

    kind: Literal["attempt"] = "attempt"
    sources: str | None = Field(
        None,
        description="a safetensors file with a tensor `sources` (N, m, H), readable on every node; null: random words",
    )
    num_sources: int | None = Field(None, ge=1, description="N, without a file; null: 6")
    source_seed: int = Field(0, ge=0, description="seed of the random words, also used when the adapter is loaded")
    bottleneck: int = Field(16, ge=1, description="b: hidden size of g")

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Attempt:
        if self.sources is not None and (self.num_sources is not None or self.source_seed != 0):
            raise ValueError("num_sources and source_seed have an effect only without sources; leave them out")
        return self

    def maker(self, words: Tensor) -> nn.Module:
        return Mixture(drawn(words, self.num_tokens), self._sources(words), self.bottleneck)

    def saved(self, values: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        """The adapter to save, together with the file's sources."""
        file = {} if self.sources is None else {SOURCES: _read(self.sources)}
        return {**values, **file}, dict(config)

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """With the source prompts that were saved beside the adapter's own tensors."""
        return self.saved_in(file), drop(values, [SOURCES])

    def saved_in(self, file: Path) -> Attempt:
        return self if self.sources is None else self.model_copy(update={"sources": str(file)})

    def _sources(self, words: Tensor) -> Tensor:
        """The source prompts, (N, m, H)."""
        if self.sources is None:
            rng = seeds.generator(self.source_seed, "source_prompts")
            chosen = torch.randint(len(words), (self.num_sources or 6, self.num_tokens), generator=rng)
            return words.detach()[chosen.to(words.device)].float()
        found = _read(self.sources)
        if found.dim() != 3 or found.shape[1:] != (self.num_tokens, words.shape[1]):
            raise ModelError(
                f"method.peft.sources: 'sources' in {self.sources} has shape {tuple(found.shape)}; it must be (N, "
                f"{self.num_tokens} from num_tokens, {words.shape[1]} of the backbone)"
            )
        return found.float()


class Mixture(nn.Module):
    """Makes a sample's prompts from its own prompt table and the source prompts."""

    def __init__(self, start: Tensor, sources: Tensor, bottleneck: int):
        super().__init__()
        size = start.shape[1]
        self.table = nn.Embedding.from_pretrained(start.clone(), freeze=False)
        self.down, self.up = nn.Linear(size, bottleneck, bias=False), nn.Linear(bottleneck, size, bias=False)
        self.norm = nn.LayerNorm(size)
        self.register_buffer("sources", sources, persistent=False)

    def forward(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (B, S, H) and mask (B, S) -> prompts (B, m, H)."""
        rows = torch.arange(self.table.num_embeddings, device=mask.device).expand(len(mask), -1)
        own: Tensor = self.table(rows)  # one row per sample keeps per-sample gradients exact
        sources = self.get_buffer("sources").to(own.dtype)
        padding = ~mask.bool().unsqueeze(2)
        query = embeds.to(own.dtype).masked_fill(padding, -math.inf).amax(1)
        query = self.norm(self.up(F.silu(self.down(query))))
        keys = torch.cat([sources.amax(1).expand(len(own), -1, -1), own.amax(1, keepdim=True)], dim=1)  # (B, N + 1, H)
        weights = (torch.einsum("bnh,bh->bn", keys, query) / (math.e * query.shape[1])).softmax(1)
        mixed = torch.einsum("bn,nmh->bmh", weights[:, :-1], sources) + weights[:, -1:, None] * own
        return own + mixed


def _read(file: str) -> Tensor:
    """Read the source prompts. Raises ModelError."""
    try:
        return load_file(file)[SOURCES]
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(
            f"method.peft.sources: {file} cannot be read ({error}); give a safetensors file with a tensor `sources`"
        ) from error
