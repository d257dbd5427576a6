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
from fibec_ray.models.backbone import load_tokenizer, open_base, prepare
from fibec_ray.models.base_cache import fingerprint
from fibec_ray.models.net_model import NetModel
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
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
    if not isinstance(about.backbone, Backbone):
        shape = tuple(_config(home)["input_shape"])
        net = NetModel(about.backbone, shape, about.answers, about.seed, place)
        _fill(net, _values(home, ""), home)
        return TrainedModel(about, net)
    part, values = _part(about, home)
    spec = _whole(about.backbone, home) if part.trains_base else resolved_backbone(about, home, base, place)
    source = _source(about, spec, part, home, exact)
    spec = spec.model_copy(update={"dtype": "float32"} if exact else {})
    engine = TorchModel(ModelSpec(spec, part, about.answers, about.seed), source, place)
    _fill(engine, values, home)
    tokenizer = load_tokenizer(_with_tokenizer(spec, home))
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


def resolved_backbone(about: SavedModel, home: Path, base: str | None, place: str) -> Backbone:
    """The backbone with its weights where they are now. Raises ModelError if they are nowhere."""
    spec = about.backbone
    assert isinstance(spec, Backbone)
    quantised = spec.backend == "qlora" and place.startswith("cuda")
    spec = spec.model_copy(update={"backend": "qlora" if quantised else "auto", "checkpointing": False})
    if spec.init != "pretrained":
        if base is not None:
            raise ModelError(f"--base {base}: has no effect, because the backbone has random weights; leave it out")
        return spec
    if base is not None:
        return spec.model_copy(update={"name": base, "revision": None, "tokenizer": spec.tokenizer or base})
    if about.base_path is None:
        return spec
    for path in (Path(spec.name or "").expanduser(), home / about.base_path):
        if path.is_dir():
            return spec.model_copy(update={"name": str(path)})
    raise ModelError(
        f"{home}: its base model is not here (neither {home / about.base_path} nor {spec.name}); give the folder of "
        "the base with --base DIR (in Python load(RUN, base=DIR))"
    )


def read_about(home: Path) -> SavedModel:
    """From fibec_ray.json; runs of older versions have the same in config.yaml and checkpoints/run.json."""
    if (home / NAME).is_file():
        return read_saved_model(home)
    run = home.parent
    identity, experiment = read_identity(run), load_saved(run / "config.yaml")
    return describe(experiment, identity, label_names(experiment, identity.prepared))


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
        return part, _values(home, PEFT_PREFIX)
    return part.reopened(_values(home, ""), _config(home), home / "adapter_model.safetensors")


def _whole(spec: Backbone, home: Path) -> Backbone:
    """A model that was trained whole: the folder has all of it."""
    update = {"init": "pretrained", "name": str(home), "revision": None, "config": None, "backend": "plain"}
    return spec.model_copy(update=update)


def _source(about: SavedModel, spec: Backbone, part: Peft, home: Path, exact: bool) -> Any:
    """What the engine opens: the folder of prepared base weights, or a base model."""
    if part.trains_base:
        return open_base(spec, home)
    folder = prepare(spec, about.seed, about.answers.num_scores, cache_dir())
    same_programs = about.versions == program_versions()
    if about.base_fingerprint not in ("", fingerprint(folder)) and (spec.init == "random" or same_programs):
        then = ", ".join(f"{name} {about.versions.get(name, '?')}" for name in ("torch", "transformers"))
        raise ModelError(
            f"{home}: the base model here is not the one that the run used, so its predictions would be wrong; give "
            f"the run's base with --base DIR"
            + (f", or draw its random weights with the run's versions ({then})" if spec.init == "random" else "")
        )
    return open_base(spec, folder).float() if exact and spec.dtype != "float32" else folder


def _values(home: Path, prefix: str) -> Tensors:
    """All saved tensors. prefix: before the names of a model that was saved whole."""
    whole = home / "model.safetensors"
    try:
        values = load_file(whole if whole.is_file() else home / "adapter_model.safetensors")
        values = {f"{prefix}{name}": value for name, value in values.items()}
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
    if odd := sorted(own.keys() ^ values.keys()):
        raise ModelError(f"{home}: its weights do not fit the backbone ({odd[0]} is in one of them only)")
    if odd := sorted(name for name, value in values.items() if value.shape != own[name].shape):
        found, wanted = tuple(values[odd[0]].shape), tuple(own[odd[0]].shape)
        raise ModelError(f"{home}: its weights do not fit the backbone ({odd[0]} is {found}, the model has {wanted})")
    engine.load(values)


def _with_tokenizer(spec: Backbone, home: Path) -> Backbone:
    """With the tokenizer that was saved beside the weights, where there is one."""
    saved = (home / "tokenizer_config.json").is_file()
    return spec.model_copy(update={"tokenizer": str(home)}) if saved else spec
