"""IDPG: prompts that depend on the sample."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from fibec_ray.parts.peft.generated import FromMean, Generated, drawn


class Idpg(Generated):
    """IDPG (Wu et al., NAACL 2022): m prompts W2 relu(W1 M(x) + b1) + b2 before the tokens of each sample x; W1 (b, H),
    W2 (m H, b) and the biases are trained and sent. W2 = 0 is prompt tuning with the table b2.

    M(x) in the paper is a sentence representation from a first pass through a frozen encoder; ours is the mean of the
    embeddings of x's tokens, which costs nothing. W2 starts at 0 and b2 as words drawn at random. The paper's prompts
    for each layer and its multiplications by Kronecker products are left out.
    """

    kind: Literal["idpg"] = "idpg"
    bottleneck: int = Field(16, ge=1, description="b")

    def maker(self, words: Tensor) -> nn.Module:
        return FromMean(drawn(words, self.num_tokens), self.bottleneck)
