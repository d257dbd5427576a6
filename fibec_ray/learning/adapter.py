"""Saves the global adapter in PEFT's layout: `PeftModel.from_pretrained(base, RUN/adapter)` loads it.

What is trained whole is saved as a model: `AutoModel.from_pretrained(RUN/adapter)` loads a transformer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from fibec_ray.errors import RunDirError
from fibec_ray.model_types import HEAD
from fibec_ray.parts.peft.base import Peft
from fibec_ray.run_dir import flush_folder, replace_folder, write_json
from fibec_ray.tensors import Tensors, drop
from fibec_ray.types import Layout

PEFT_PREFIX = "base_model.model."
"""Where a PeftModel keeps the model that it is attached to."""


def save_adapter(values: Tensors, layout: Layout, peft: Peft, folder: Path) -> None:
    """Writes adapter_config.json, adapter_model.safetensors and, for a mean-pool head, head.safetensors (weight, bias).

    Of what is trained whole: config.json and model.safetensors. values: all trainable tensors, by the names that they
    travel under.
    """
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        saved = peft.saved(values, layout.adapter_config)
        _write(saved, peft.saved_config(layout.adapter_config, saved), peft.trains_base, draft)
        flush_folder(draft)
        replace_folder(draft, folder)
    except (OSError, SafetensorError) as error:
        raise RunDirError(f"{folder}: the adapter cannot be written ({error}); is the disk full?") from error


def _write(values: Tensors, config: dict[str, Any], whole: bool, folder: Path) -> None:
    folder.mkdir()
    head = {name.removeprefix(f"{HEAD}."): value for name, value in values.items() if name.startswith(f"{HEAD}.")}
    own = drop(values, [f"{HEAD}.{name}" for name in head])
    if whole:
        own = {name.removeprefix(PEFT_PREFIX): value for name, value in own.items()}
    prefix = "" if whole else "adapter_"
    write_json(folder / f"{prefix}config.json", config)
    save_file(own, folder / f"{prefix}model.safetensors", metadata={"format": "pt"})
    if head:
        save_file(head, folder / "head.safetensors")
