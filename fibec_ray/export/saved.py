"""Open a saved model: RUN/adapter, or a folder that `fibec-ray export` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fibec_ray.checkpoints.identity import program_versions, read_identity
from fibec_ray.config.load import load_saved, with_paths
from fibec_ray.errors import ModelError, RunDirError
from fibec_ray.export.predict import TrainedModel
from fibec_ray.learning.adapter import PEFT_PREFIX
from fibec_ray.method import AXES
from fibec_ray.model_types import HEAD, LocalModel
from fibec_ray.models.base import AnyBackbone
from fibec_ray.models.built import ModelRequest
from fibec_ray.parts.part import build, sources_of
from fibec_ray.parts.peft.base import Peft
from fibec_ray.runs.saved_model import NAME, SavedModel, describe, read_saved_model
from fibec_ray.runs.simulation import cache_dir, label_names
from fibec_ray.tensors import Tensors


def open_saved(folder: Path, base: str | None, place: str, exact: bool = False) -> TrainedModel:
    """The model in a run directory or an adapter folder.

    base: as in `load`. place: torch's device. exact: compute in float32, whatever the run's dtype. Raises RunDirError
    or ModelError.
    """
    home = saved_folder(folder)
    about = read_about(home)
    if not about.has_global:
        raise ModelError(
            f"{folder}: method {about.method} has no global model: trained tensors such as the head stay on the "
            "devices; load a device's own model: --device N (in Python load(RUN, device=N))"
        )
    part, values = _part(about, home)
    if part.trains_base:
        spec = about.backbone.saved_whole(home)
    else:
        spec = about.backbone.found_at(home, base, about.base_path, place)
    shape = tuple(_config(home).get("input_shape", ()))
    request = ModelRequest(part, about.answers, about.seed, shape)
    source = spec.open_base(home) if part.trains_base else _source(about, spec, home, exact)
    spec = spec.exact() if exact else spec
    engine = spec.build(request, source, place)
    _fill(engine, values, home)
    tokenizer = spec.with_preprocessor(home).preprocessor()
    return TrainedModel(about.model_copy(update={"backbone": spec}), engine, tokenizer)


def saved_folder(folder: Path) -> Path:
    """`adapter` of a run, or the folder itself if it has a saved model. Raises RunDirError if there is none."""
    if not folder.is_dir():
        raise RunDirError(f"{folder}: no such folder; give a run directory, or a folder that `fibec-ray export` wrote")
    if (folder / NAME).is_file():
        return folder
    if (folder / "adapter").is_dir():
        return folder / "adapter"
    if (folder / "config.yaml").is_file():
        raise RunDirError(
            f"{folder}: this run has not finished, so it has no model yet; finish it with `fibec-ray resume {folder}`, "
            "or take a device's model as it is now: --device N (in Python load(RUN, device=N))"
        )
    raise RunDirError(f"{folder}: not a run directory (it has no config.yaml); give the --out of a run")


def base_folder(about: SavedModel, home: Path) -> Path:
    """The folder with the frozen weights that the adapter was trained on, in transformers' layout and the run's dtype.

    Raises ModelError if they are not here or not the run's.
    """
    folder: Path = _source(about, about.backbone.found_at(home, None, about.base_path, "cpu"), home, exact=False)
    return folder


def read_about(home: Path) -> SavedModel:
    """From fibec_ray.json; runs of older versions have the same in config.yaml and checkpoints/run.json."""
    if (home / NAME).is_file():
        return read_saved_model(home)
    run = home.parent
    identity, experiment = read_identity(run), load_saved(run / "config.yaml")
    return describe(experiment, identity, label_names(experiment))


def _part(about: SavedModel, home: Path) -> tuple[Peft, Tensors]:
    """The PEFT kind to attach, and the values to load into it."""
    located = with_paths({"method": {"peft": about.peft}}, home.parent)["method"]["peft"]
    try:
        part: Peft = build(AXES["peft"], located)
    except ValueError as error:
        raise ModelError(f"{home}: its PEFT kind cannot be built here ({error})") from error
    if (home.parent / "checkpoints" / "run.json").is_file():
        read_identity(home.parent).refuse_other_parts(sources_of(part), home.parent)
    if part.trains_base:
        return part, _values(home)
    return part.reopened(_values(home), _config(home), home / "adapter_model.safetensors")


def _source(about: SavedModel, spec: AnyBackbone, home: Path, exact: bool) -> Any:
    """What the engine opens: the folder of prepared base weights, or a base model; None without frozen weights."""
    folder = spec.prepare(about.seed, about.answers.num_scores, cache_dir())
    if folder is None:
        return None
    drawn = spec.reference() is None
    same_programs = about.versions == program_versions()
    if about.base_fingerprint not in ("", spec.fingerprint(folder)) and (drawn or same_programs):
        programs = ("fibec_ray", "torch", "transformers")
        then = ", ".join(f"{name} {about.versions.get(name, '?')}" for name in programs)
        raise ModelError(
            f"{home}: the base model here is not the one that the run used, so its predictions would be wrong; give "
            f"the run's base with --base DIR"
            + (f", or draw its random weights with the run's versions ({then})" if drawn else "")
        )
    return spec.open_base(folder).float() if exact and spec.base_dtype != "float32" else folder


def _values(home: Path) -> Tensors:
    """All saved tensors."""
    whole = home / "model.safetensors"
    try:
        values = load_file(whole if whole.is_file() else home / "adapter_model.safetensors")
        if (home / "head.safetensors").is_file():
            values |= {f"{HEAD}.{name}": value for name, value in load_file(home / "head.safetensors").items()}
    except (OSError, SafetensorError) as error:
        raise RunDirError(f"{home}: its weights cannot be read ({error}); copy the folder again") from error
    return values


def _config(home: Path) -> dict[str, Any]:
    """The adapter's configuration, or that of a model that was saved whole."""
    name = "adapter_config.json" if (home / "adapter_config.json").is_file() else "config.json"
    try:
        found: dict[str, Any] = json.loads((home / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirError(f"{home / name}: cannot be read ({error}); copy the folder again") from error
    return found


def _fill(engine: LocalModel, values: Mapping[str, Tensor], home: Path) -> None:
    """Loads the values into the model. Raises ModelError unless names and shapes are the model's."""
    own = engine.read()
    # A transformer that is trained whole is saved under the names that transformers gives its tensors.
    whole = {name for name in values if f"{PEFT_PREFIX}{name}" in own}
    values = {f"{PEFT_PREFIX}{name}" if name in whole else name: value for name, value in values.items()}
    if odd := sorted(own.keys() ^ values.keys()):
        raise ModelError(f"{home}: its weights do not fit the backbone ({odd[0]} is in one of them only)")
    if odd := sorted(name for name, value in values.items() if value.shape != own[name].shape):
        found, wanted = tuple(values[odd[0]].shape), tuple(own[odd[0]].shape)
        raise ModelError(f"{home}: its weights do not fit the backbone ({odd[0]} is {found}, the model has {wanted})")
    engine.load(values)
