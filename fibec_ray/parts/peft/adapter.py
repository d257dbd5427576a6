"""Adapters: small bottleneck networks after the two sublayers of each block.

Shapes: B samples, S tokens, H hidden size, b bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.blocks import blocks_of
from fibec_ray.errors import ModelError
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.base import linear_names
from fibec_ray.parts.peft.narrow import follow_input
from fibec_ray.parts.peft.own import Own, train_head

OUTPUTS: tuple[tuple[str, ...], ...] = (
    ("attention.output.dense", "output.dense"),
    ("self_attn.o_proj", "mlp.down_proj"),
    ("self_attn.out_proj", "fc2"),
    ("attention.o_proj", "mlp.fc2"),
    ("attention.out_lin", "ffn.lin2"),
    ("layer.0.SelfAttention.o", "layer.1.EncDecAttention.o", "layer.2.DenseReluDense.wo"),
    ("layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"),
    ("attn.c_proj", "mlp.c_proj"),
)
"""The last Linears of attention and feed-forward, by their names in a block; one row per model family."""


class Adapter(Own):
    """Adapters (Houlsby et al., ICML 2019; federated: FedAdapter, Cai et al. 2023): h + up(gelu(down(h))) in all
    blocks.

    h is the output of attention and of the feed-forward, before the residual is added. down: H -> b, up: b -> H. up
    starts at 0, which is the base model. The LayerNorms stay frozen; the paper trains them too.
    """

    kind: Literal["adapter"] = "adapter"
    side_by_side: ClassVar[bool] = True
    bottleneck: int = Field(64, ge=1, description="b: hidden size of an adapter")
    target_modules: tuple[str, ...] | None = Field(
        None, description="names of the Linears that adapters follow; null: the last of attention and feed-forward"
    )
    marks: ClassVar[tuple[str, ...]] = (".adapter.",)

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        for block in blocks_of(module):
            for name in self._targets(block):
                follow(block.get_submodule(name), self.bottleneck)
        train_head(module, head)
        return Attached(module, module, self.config(head), str)

    @property
    def computes_in_base_dtype(self) -> bool:
        return True

    def keep_dtype(self, module: nn.Module) -> None:
        for child in module.modules():
            if isinstance(child, Bottleneck):
                child.keep_dtype()

    def _targets(self, block: nn.Module) -> list[str]:
        """Names within a block."""
        names = [name for name, _ in block.named_modules()]
        if self.target_modules is None:
            found = next((list(pair) for pair in OUTPUTS if set(pair) <= set(names)), [])
        else:
            ends = tuple(f".{target}" for target in self.target_modules)
            found = [name for name in names if f".{name}".endswith(ends)]
        if not found:
            known = ", ".join(linear_names(block)[:6])
            if not known:
                raise ModelError(
                    f"method.peft: adapters follow Linears, and a {type(block).__name__} has none; choose lora"
                )
            raise ModelError(
                f"method.peft.target_modules: a {type(block).__name__} has none of these; name the Linears that "
                f"adapters should follow, such as {known}"
            )
        return found


class Bottleneck(nn.Module):
    """up(gelu(down(h))), 0 at the start; in float32, unless `keep_dtype` is called."""

    def __init__(self, size: int, bottleneck: int):
        super().__init__()
        self._keeps_dtype = False
        self.down, self.up = nn.Linear(size, bottleneck), nn.Linear(bottleneck, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def keep_dtype(self) -> None:
        """Compute in the dtype of h from now on."""
        self._keeps_dtype = True
        for linear in (self.down, self.up):
            follow_input(linear)

    def forward(self, h: Tensor) -> Tensor:
        inside = h if self._keeps_dtype else h.to(self.down.weight.dtype)
        out: Tensor = self.up(F.gelu(self.down(inside)))
        return out.to(h.dtype)


def follow(linear: Any, bottleneck: int) -> None:
    """Attach a new adapter to a module and add its result to the module's outputs."""
    size = (
        linear.out_features if isinstance(linear, nn.Linear) else linear.weight.shape[1]
    )  # GPT-2's weights are transposed
    linear.adapter = Bottleneck(size, bottleneck)
    linear.register_forward_hook(_add)


def _add(linear: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return torch.add(out, linear.adapter(out))
