"""Loads saved adapters of kinds that the peft library lacks, for users of a run's result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fibec_ray.errors import ModelError
from fibec_ray.heads import head_modules
from fibec_ray.parts.part import build
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.attempt import SOURCES
from fibec_ray.parts.peft.own import KIND, Own
from fibec_ray.tensors import drop


@torch.no_grad()
def load_adapter(base: Any, folder: Path | str) -> Attached:
    """Load the adapter that a run left into `base`, a transformers model, which is changed in place.

        base = AutoModel.from_pretrained(...)
        model = load_adapter(base, "RUN/adapter")
        model(input_ids=..., attention_mask=...).last_hidden_state

    If the kind has virtual tokens, the outputs start with them. head.safetensors, if present, is a Linear on the mean
    of a sample's own last states. Load adapters of peft's kinds with `PeftModel.from_pretrained`. Raises ModelError.
    """
    config, part = _read(Path(folder))
    file = Path(folder) / "adapter_model.safetensors"
    classifies = config["task_type"] is not None
    head = config.get("modules_to_save", head_modules(base, ())) if classifies else None
    attached = part.saved_in(file).attach(base.requires_grad_(False), head)
    params = {attached.name_of(n): p for n, p in attached.module.named_parameters() if p.requires_grad}
    values = drop(load_file(file), [SOURCES])
    if params.keys() != values.keys():
        odd = sorted(params.keys() ^ values.keys())[0]
        raise ModelError(
            f"{folder} does not fit this {type(base).__name__} (only one of them has {odd}); use the run's base model"
        )
    for name, value in values.items():
        params[name].copy_(value)
    attached.module.eval()
    return attached


def _read(folder: Path) -> tuple[dict[str, Any], Own]:
    """Read adapter_config.json. Raises ModelError if the adapter is not one of ours."""
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        part = build(PEFTS, config[KIND]) if KIND in config else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder}: adapter_config.json cannot be read ({error}); give a run's adapter/") from error
    if not isinstance(part, Own):
        raise ModelError(f"{folder} is an adapter of the peft library; load it with PeftModel.from_pretrained")
    return config, part
