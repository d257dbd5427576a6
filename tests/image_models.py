"""Tiny image models, and images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import TINY_CONVNEXT, TINY_SWIN, TINY_VIT

from fibec_ray.answers import Answers
from fibec_ray.model_types import Batch
from fibec_ray.models.built import ModelRequest
from fibec_ray.models.image_backbone import ImageBackbone
from fibec_ray.parts.part import build
from fibec_ray.parts.peft import PEFTS

CONFIGS = {
    "vit": TINY_VIT,
    "swin": TINY_SWIN,
    "convnext": TINY_CONVNEXT,
    "deit": TINY_VIT | {"model_type": "deit"},
    "dinov2": TINY_VIT | {"model_type": "dinov2"},
    "swinv2": TINY_SWIN | {"model_type": "swinv2"},
    "convnextv2": TINY_CONVNEXT | {"model_type": "convnextv2"},
}
SHAPE = (3, 16, 16)


def backbone(model_type: str, head: str = "model", **settings: Any) -> ImageBackbone:
    return ImageBackbone.model_validate({"init": "random", "config": CONFIGS[model_type], "head": head, **settings})


def request(peft: Any = "lora") -> ModelRequest:
    part = build(PEFTS, {"kind": peft} if isinstance(peft, str) else peft)
    return ModelRequest(part, Answers(likelihood="categorical", num_scores=5), seed=1, shape=SHAPE)


def model(spec: ImageBackbone, folder: Path, peft: Any = "lora") -> Any:
    found = spec.build(request(peft), spec.prepare(0, 5, folder))
    with torch.no_grad():
        for name, value in found.trainable.items():  # lora_B starts at 0
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    return found


def batch(count: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        {"features": torch.randn(count, *SHAPE, generator=generator)}, torch.randint(5, (count,), generator=generator)
    )
