"""Write RUN/adapter as a model that others can use: weights, tokenizer, class names, model card and fibec_ray.json."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from fibec_ray.config.experiment import Experiment
from fibec_ray.errors import ModelError
from fibec_ray.files.run_dir import write_text
from fibec_ray.files.sealed import file_digest, write_sealed
from fibec_ray.learning.adapter import save_adapter
from fibec_ray.learning.run_totals import Row
from fibec_ray.models.base import AnyBackbone
from fibec_ray.runs.model_card import adapter_text
from fibec_ray.runs.saved_model import NAME, SavedModel
from fibec_ray.tensors import Tensors
from fibec_ray.types import Layout

TOKENIZER = "tokenizer_config.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "head.safetensors")


def save_model(
    values: Tensors, layout: Layout, experiment: Experiment, about: SavedModel, row: Row | None, folder: Path
) -> None:
    """Write the folder with weights, tokenizer, class names, model card and fibec_ray.json, whole or not at all.

    row: of the last round in the round log; None: not known.
    """
    names = about.label_names if about.backbone.has_base else ()
    about = about.model_copy(update={"has_global": row is None or row.get("global_loss") is not None})
    base = about.backbone.reference()
    config = {**layout.adapter_config, **({"base_model_name_or_path": base} if base else {})}
    layout = replace(layout, adapter_config=config)

    def finish(draft: Path) -> None:
        write_text(draft / "README.md", adapter_text(experiment, about, row or {}, base))
        complete(about, draft, folder)

    save_adapter(values, layout, experiment.method.peft, folder, names, finish)


def complete(about: SavedModel, draft: Path, folder: Path) -> None:
    """Add the tokenizer and fibec_ray.json to a folder of weights. folder: what its name will be."""
    if not (draft / TOKENIZER).is_file():
        try:
            if (preprocessor := about.backbone.preprocessor()) is not None:
                preprocessor.save_pretrained(draft)
        except ModelError as error:  # a hub that does not answer must not cost the weights
            note = "the model is saved without its tokenizer, so `fibec_ray.load` gets it where the run did (%s)"
            logging.getLogger("fibec_ray").warning(note, error)
    sealed = {name: file_digest(draft / name) for name in WEIGHTS if (draft / name).is_file()}
    path = relative_base(about.backbone, folder)
    write_sealed(draft / NAME, about.model_copy(update={"digests": sealed, "base_path": path or about.base_path}))


def relative_base(backbone: AnyBackbone, folder: Path) -> str | None:
    """The base's folder as seen from the adapter's, so that both can move together."""
    here = backbone.local_folder()
    return None if here is None else Path(os.path.relpath(here, folder.resolve())).as_posix()
