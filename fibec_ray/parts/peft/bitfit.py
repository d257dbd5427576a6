"""BitFit: trains the base's own biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.errors import ModelError
from fibec_ray.heads import in_head
from fibec_ray.model_types import HEAD
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.own import Own, make_private, train_head

QUERIES, FEEDFORWARDS = ("query", "q_proj", "q_lin"), ("intermediate.dense", "fc1", "lin1")


class BitFit(Own):
    """BitFit (Ben Zaken, Goldberg, Ravfogel, ACL 2022): only the base's biases are trained and sent.

    all: every bias in use, including those of embeddings and a language-model head. query_and_ffn: the biases of the
    queries and of the first Linear of each feed-forward, which matter most in the paper. Decoders such as Llama have no
    biases.
    """

    kind: Literal["bitfit"] = "bitfit"
    side_by_side: ClassVar[bool] = True
    which: Literal["all", "query_and_ffn"] = Field("all", description="which biases")

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        biases = {n: p for n, p in module.named_parameters() if self._trains(n) and not in_head(n, head)}
        if not biases:
            which = f" at {', '.join((*QUERIES, *FEEDFORWARDS))}; set which: all" if self.which != "all" else ""
            raise ModelError(
                f"method.peft: bitfit trains biases, but {type(module).__name__} has none{which}; "
                "choose lora, or adapter"
            )
        if any(p.dtype != torch.float32 for p in biases.values()):
            raise ModelError("method.peft: bitfit trains biases in the base's dtype; set backbone.dtype: float32")
        for p in biases.values():
            make_private(p)
        train_head(module, head)
        return Attached(module, module, self.config(head), str)

    def is_adapter(self, name: str) -> bool:
        return name.endswith(".bias") and name != f"{HEAD}.bias"

    def _trains(self, name: str) -> bool:
        owner = name.removesuffix(".bias")
        if self.which == "query_and_ffn":
            return self.is_adapter(name) and owner.endswith((*QUERIES, *FEEDFORWARDS))
        return self.is_adapter(name) and not owner.startswith("pooler.")  # only a classification head uses it
