"""Save the global adapter in PEFT's layout: `PeftModel.from_pretrained(base, RUN/adapter)` loads it.

A model that is trained whole is saved as a transformers model: `AutoModel.from_pretrained(RUN/adapter)` loads it.
Class names go into config.json of a whole model, and into labels.json beside an adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import flush_folder, replace_folder, write_json
from fibec_ray.model_types import HEAD
from fibec_ray.parts.peft.base import Peft
from fibec_ray.tensors import Tensors, drop
from fibec_ray.types import Layout

PEFT_PREFIX = "base_model.model."
"""Where a PeftModel keeps the model that it is attached to."""
OUR_HEAD = (f"{HEAD}.weight", f"{HEAD}.bias")
LABELS = "labels.json"


def save_adapter(
    values: Tensors,
    layout: Layout,
    peft: Peft,
    folder: Path,
    label_names: Sequence[str] = (),
    finish: Callable[[Path], None] = lambda draft: None,
) -> None:
    """Write adapter_config.json, adapter_model.safetensors and, for a mean-pool head, head.safetensors (weight, bias).

    A model that is trained whole gives config.json and model.safetensors instead.

    values: all trainable tensors, by the names that they travel under. label_names: of the classes, in the order of
    their ids; () saves none. finish: adds more files to the folder before it gets its name. Raises RunDirError.
    """
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _write(*peft.saved(values, layout.adapter_config), peft.trains_base, draft, _labels(label_names))
        finish(draft)
        flush_folder(draft)
        replace_folder(draft, folder)
    except (OSError, SafetensorError) as error:
        raise RunDirError(f"{folder}: the adapter cannot be written ({error}); is the disk full?") from error


def _write(values: Tensors, config: dict[str, Any], whole: bool, folder: Path, labels: dict[str, Any]) -> None:
    folder.mkdir()
    head = {name.removeprefix(f"{HEAD}."): values[name] for name in OUR_HEAD if name in values}
    own = drop(values, OUR_HEAD)
    if whole:
        own = {name.removeprefix(PEFT_PREFIX): value for name, value in own.items()}
        config = config | labels
    elif labels:
        write_json(folder / LABELS, labels)
    prefix = "" if whole else "adapter_"
    write_json(folder / f"{prefix}config.json", config)
    save_file(own, folder / f"{prefix}model.safetensors", metadata={"format": "pt"})
    if head:
        save_file(head, folder / "head.safetensors")


def _labels(names: Sequence[str]) -> dict[str, Any]:
    """As a config of transformers has them."""
    if not names:
        return {}
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
