"""Trials that `fibec_ray.bench.gpu` compares runs with. Each is a process of its own and prints one line of JSON.

    python -m fibec_ray.bench.gpu_trials KIND CASE DEVICE LANES STEPS STARTED

KIND is bare (a plain PyTorch and PEFT loop), kernels (the engine's lanes without the engine), or graph (the same, with
each step as a CUDA graph). STARTED: seconds since the epoch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fibec_ray.bench.gpu_cases import CASES, CLASSES, SMALLEST, STEPS, Case
from fibec_ray.bench.lanes import Shape, Trial, peak_memory

WARM_UP = 2
"""rounds that are not measured"""


class Bare:
    """What a user would write: a frozen base in bfloat16, PEFT's LoRA, a linear head, fused AdamW, gradient clipping.

    A round loads the global values, trains one device for an epoch, and reads its loss.
    """

    def __init__(self, case: Case, device: str):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=case.targets)
        self.body: Any = get_peft_model(_base(case, device), config).to(device).eval()
        self.head = nn.Linear(case.hidden, len(CLASSES)).to(device)
        named = [*self.body.named_parameters(), *self.head.named_parameters()]
        self.params = [param for _, param in named if param.requires_grad]
        self.initial = [param.detach().clone() for param in self.params]
        rows = STEPS * case.batch
        self.ids = torch.randint(3, case.vocabulary, (rows, case.tokens), device=device).split(case.batch)
        self.labels = torch.randint(0, len(CLASSES), (rows,), device=device).split(case.batch)

    def round(self) -> float:
        """Train one device. Returns the last loss."""
        with torch.no_grad():
            for param, value in zip(self.params, self.initial, strict=True):
                param.copy_(value)
        optimizer = torch.optim.AdamW(self.params, lr=1e-3, fused=True)
        loss = torch.zeros(())
        for ids, labels in zip(self.ids, self.labels, strict=True):
            optimizer.zero_grad()
            states = self.body.base_model(input_ids=ids).last_hidden_state
            loss = F.cross_entropy(self.head(states.float().mean(1)), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(self.params, 1.0)
            optimizer.step()
        return float(loss.detach())  # waits for the GPU


def bare(case: Case, device: str, steps: int, started: float) -> dict[str, float]:
    """Device-rounds per second, seconds to the first round, peak memory in GB."""
    loop, seconds = Bare(case, device), []
    first = 0.0
    for number in range(WARM_UP + max(1, steps // STEPS)):
        began = time.perf_counter()
        loop.round()
        seconds.append(time.perf_counter() - began)
        first = first if number else time.time() - started
    return {"rate": 1 / median(seconds[WARM_UP:]), "first_s": first, "gb": peak_memory(device)}


def kernels(case: Case, device: str, lanes: int, steps: int, graph: bool = False) -> dict[str, float]:
    """Device-rounds per second and peak memory in GB of `fibec_ray.bench.lanes`. Encoders only."""
    shape = Shape(case.hidden, case.layers, case.vocabulary, case.batch, case.tokens)
    seconds = Trial(shape, device, lanes).seconds(steps, graph)
    return {"rate": lanes / (STEPS * seconds), "gb": peak_memory(device)}


def _base(case: Case, device: str) -> Any:
    """The frozen model, drawn on the device."""
    from transformers import AutoConfig, AutoModel

    config: dict[str, Any] = dict(case.config) or {
        "model_type": "bert", "hidden_size": case.hidden, "num_hidden_layers": case.layers, "num_attention_heads": 12,
        "intermediate_size": case.intermediate, "vocab_size": case.vocabulary,
    }  # fmt: skip
    with torch.device(device):
        made = AutoModel.from_config(
            AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation="sdpa", trust_remote_code=False
        )
    return made.requires_grad_(False)


def main(argv: Sequence[str]) -> None:
    """Run one trial. argv: kind, case, device, lanes, steps, and when the command was started."""
    kind, name, device, lanes, steps, started = argv
    case = (CASES | SMALLEST)[name]
    if device == "cpu":
        torch.set_num_threads(1)
    if kind == "bare":
        found = bare(case, device, int(steps), float(started))
    else:
        found = kernels(case, device, int(lanes), int(steps), kind == "graph")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
