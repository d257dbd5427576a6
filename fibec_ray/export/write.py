"""Write a trained model for others: as an adapter folder, or as a plain transformers model with the adapter merged."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fibec_ray.errors import ModelError
from fibec_ray.export.folder import drafted, free_folder
from fibec_ray.export.load import local_copy, open_personal, quiet
from fibec_ray.export.predict import TrainedModel
from fibec_ray.export.saved import open_saved, read_about, saved_folder
from fibec_ray.files.run_dir import write_text
from fibec_ray.models.process_state import restored
from fibec_ray.runs.model_card import merged_text
from fibec_ray.runs.records import read_record
from fibec_ray.runs.save import complete, save_model

SLACK = 1e-4
"""Relative difference of logits that merging may make; sums in another order make some."""


class CannotMerge(ModelError):
    """The PEFT kind adds modules or prompts, which a plain model has no place for."""


@restored()
def export_adapter(run: Any, target: Path, device: int | None = None, *, base: str | None = None) -> Path:
    """Copy a run's adapter, with tokenizer, class names and model card, to a new folder; returns the folder.

    run, device, base: as in `load`. A personal model becomes an adapter of its own. Raises RunDirError if the target is
    not empty, ModelError for a personal model that an adapter cannot hold (a rank or scale of its own).
    """
    quiet()
    target = free_folder(target)
    with local_copy(str(getattr(run, "folder", run)), device) as folder:
        if device is None:
            home = saved_folder(folder)
            with drafted(target) as draft:
                shutil.copytree(home, draft, dirs_exist_ok=True)
                complete(read_about(home), draft, target)
        else:
            _export_personal(run, folder, target, device, base)
    return target


def _export_personal(run: Any, folder: Path, target: Path, device: int, base: str | None) -> None:
    model, worker = open_personal(folder, device, base, "cpu")
    experiment = read_record(folder).experiment
    save_model(worker.model.read(), worker.layout, experiment, model.about, None, target)
    again = open_saved(target, base, "cpu")
    if not _agree(_probe(model), _probe(again)):
        shutil.rmtree(target)
        raise ModelError(
            f"device {device}: its model computes with a rank or scale of its own, which a saved adapter does not "
            f"have; use it in Python: fibec_ray.load({str(getattr(run, 'folder', run))!r}, device={device})"
        )


@restored()
def export_merged(run: Any, target: Path, device: int | None = None, *, base: str | None = None) -> Path:
    """Write a plain transformers model in float32, with the adapter merged into the base; returns the folder.

    `AutoModelForSequenceClassification.from_pretrained(target)` loads it (`head: model`; for other heads the README.md
    in the folder says how). run, device, base: as in `load`. Raises CannotMerge for a PEFT kind that adds modules or
    prompts, which a plain model has no place for.
    """
    quiet()
    target = free_folder(target)
    with (
        TemporaryDirectory(prefix="fibec-ray-") as work,
        local_copy(str(getattr(run, "folder", run)), device) as folder,
    ):
        if device is not None:
            _export_personal(run, folder, Path(work) / "adapter", device, base)
            folder = Path(work) / "adapter"
        model = open_saved(folder, base, "cpu", exact=True)
        with drafted(target) as draft:
            _write_merged(model, draft)
    return target


def _write_merged(model: TrainedModel, draft: Path) -> None:
    about = model.about
    if not about.backbone.has_base:
        raise ModelError(
            "--merged: this model is a network from scratch and has no adapter to merge; export it without"
        )
    before = _probe(model)
    engine: Any = model.engine
    whole: Any = model.model
    base = whole.merge_and_unload() if hasattr(whole, "merge_and_unload") else engine.base
    if about.backbone.has_classifier:
        base.config.id2label = dict(enumerate(model.label_names))
        base.config.label2id = {name: i for i, name in enumerate(model.label_names)}
        if getattr(base.config, "pad_token_id", 0) is None:
            base.config.pad_token_id = model.tokenizer.pad_token_id
    base.save_pretrained(draft)
    model.tokenizer.save_pretrained(draft)
    if model.head is not None:
        save_file({name: value.cpu() for name, value in model.head.state_dict().items()}, draft / "head.safetensors")
    write_text(draft / "README.md", merged_text(about))
    after = _outputs(about.backbone.open_base(draft).eval(), about.backbone.probe(model.tokenizer))
    if not _agree(before, after):
        raise CannotMerge(
            f"--merged: {about.peft['kind']} adds modules or prompts to the model, which a plain transformers model "
            "has no place for; export the adapter instead: fibec-ray export RUN DIR"
        )


def _probe(model: TrainedModel) -> Tensor:
    """What the model makes of a few tokens."""
    engine: Any = model.engine
    if not model.about.backbone.has_base:
        return torch.cat([value.flatten() for value in engine.read().values()])
    return _outputs(engine.attached, model.about.backbone.probe(model.tokenizer))


@torch.no_grad()
def _outputs(module: Any, arguments: Mapping[str, Tensor]) -> Tensor:
    """Logits, or the last hidden states of a model without a head."""
    out = module(**arguments)
    found: Tensor = out.logits if "logits" in out else out.last_hidden_state
    return found.float()


def _agree(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = max(float(one.abs().max()), 1e-6)
    return float((one - other).abs().max()) <= SLACK * scale
