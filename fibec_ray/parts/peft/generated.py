"""Prompts that a network of ours makes for each sample: IDPG, and the base class of ATTEMPT.

Shapes: B samples, S tokens, m prompts, H hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.parts.part import Need
from fibec_ray.parts.peft.attached import Attached, Inputs, in_front
from fibec_ray.parts.peft.own import Own, train_head

BASE, PROMPTS = "base.", "prompts."


class Generated(Own):
    """Base of kinds that put m prompts before each sample's tokens, made from the embeddings of these tokens.

    With `head: model` an encoder's own classification head reads the first position, which is a prompt.
    """

    num_tokens: int = Field(10, ge=1, description="m: number of virtual tokens")
    marks: ClassVar[tuple[str, ...]] = (PROMPTS,)
    needs: ClassVar[tuple[Need, ...]] = ("transformer", "text", "one_stack")

    @property
    def num_virtual(self) -> int:
        return self.num_tokens

    @abstractmethod
    def maker(self, words: Tensor) -> nn.Module:
        """The network from token embeddings (B, S, H) and mask (B, S) to prompts (B, m, H). words: the vocabulary's
        embeddings (V, H).
        """

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        embedding = module.get_input_embeddings()
        maker = self.maker(embedding.weight)
        train_head(module, head)

        def extend(inputs: Inputs) -> Inputs:
            return in_front(inputs, embedding, maker)

        whole = beside(module, maker)
        return Attached(whole, module, self.config(head), own_name, extend, num_prompts=self.num_tokens)


class FromMean(nn.Module):
    """W2 relu(W1 x + b1) + b2: m prompt vectors from one mean vector. W2 starts at 0, so the output is b2 at first."""

    def __init__(self, start: Tensor, bottleneck: int):
        """start: b2, (m, H)."""
        super().__init__()
        self.shape = start.shape
        self.down = nn.Linear(start.shape[1], bottleneck)
        self.up = nn.Linear(bottleneck, start.numel())
        nn.init.zeros_(self.up.weight)
        self.up.bias.data = start.detach().float().flatten().clone()

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States (B, S, H) and mask (B, S) -> prompts (B, m, H)."""
        real = mask.unsqueeze(2).to(self.down.weight.dtype)
        mean = (states * real).sum(1) / real.sum(1)
        made: Tensor = self.up(F.relu(self.down(mean)))
        return made.view(-1, *self.shape)


def drawn(words: Tensor, *shape: int) -> Tensor:
    """Embeddings of random words, (*shape, H)."""
    return words.detach()[torch.randint(len(words), shape).to(words.device)].float()


def beside(base: nn.Module, maker: nn.Module) -> nn.Module:
    """Combine base and prompt network into one module; `own_name` gives the names of tensors in updates."""
    return nn.ModuleDict({BASE.rstrip("."): base, PROMPTS.rstrip("."): maker})


def own_name(name: str) -> str:
    """The name of a tensor in updates and files."""
    return name.removeprefix(BASE)


class Idpg(Generated):
    """IDPG (Wu et al., NAACL 2022): m prompts W2 relu(W1 M(x) + b1) + b2 before the tokens of each sample x.

    W1 (b, H), W2 (m H, b) and the biases are trained and sent. W2 = 0 is prompt tuning with the table b2.
    In the paper M(x) is a sentence representation from a first pass through a frozen encoder. Ours is the mean of x's
    token embeddings, which costs almost nothing. W2 starts at 0 and b2 as random words. The paper's prompts for each
    layer and its Kronecker-product multiplications are left out.
    """

    kind: Literal["idpg"] = "idpg"
    bottleneck: int = Field(16, ge=1, description="b: hidden size of the network")

    def maker(self, words: Tensor) -> nn.Module:
        return FromMean(drawn(words, self.num_tokens), self.bottleneck)
