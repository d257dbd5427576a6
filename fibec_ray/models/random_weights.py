"""Random base weights, drawn in parallel and written in place.

Each module has a generator of its own, seeded by its path, and is initialised by transformers' own rule for it. So
weights depend neither on the number of threads nor on other blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fibec_ray import seeds
from fibec_ray.environment import num_cpus
from fibec_ray.models.own_generator import OwnGenerator
from fibec_ray.models.weight_files import SHARD_BYTES, lay_out

DRAWING = 2
"""Version of the rule that makes values from a seed. Version 1 drew all of them in turn from one generator."""
SHARE = 64
"""A module with more than this part of all weights is split into its children, which are drawn in parallel."""


class _Place(NamedTuple):
    """A module and the model whose rule initialises it."""

    path: str
    module: nn.Module
    model: Any


def draw_into(
    folder: Path, model: Any, seed: int, num_threads: int | None = None, shard_bytes: int = SHARD_BYTES
) -> bool:
    """Draw the weights of a model on the meta device, and write them with its config as transformers does.

    seed: the run's. num_threads: None: one for each CPU of this process. Returns False if this is not possible, with
    nothing written: transformers has no rule for one of the tensors, or keeps it under another name in files. Raises
    OSError if the disk is full.
    """
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    ignored = {*tied, *(getattr(model, "_keys_to_ignore_on_save", None) or ())}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    if not _under_own_names(model, wanted):
        return False
    tensors = lay_out(folder, wanted, shard_bytes)
    _install(model, tensors, tied)
    marks = [_marked(tensor) for tensor in tensors.values() if tensor.numel()]
    _draw(model, seed, num_threads or num_cpus())
    if any(_untouched(tensor, mark) for tensor, mark in marks):
        for path in folder.iterdir():
            path.unlink()
        return False
    _write_config(model, folder)
    return True


def _under_own_names(model: Any, tensors: dict[str, Tensor]) -> bool:
    """True if saved files hold the model's own tensors under the model's names."""
    if len({id(parameter) for parameter in _tensors(model, tensors)}) < len(tensors):
        return False  # a module that is used twice
    try:
        from transformers.core_model_loading import revert_weight_conversion

        found = revert_weight_conversion(model, dict(tensors))
    except Exception:  # a conversion that needs values
        return False
    return found.keys() == tensors.keys() and all(found[name] is tensors[name] for name in tensors)


def _tensors(model: Any, names: dict[str, Tensor]) -> Iterator[Any]:
    for name in names:
        path, _, leaf = name.rpartition(".")
        yield getattr(model.get_submodule(path), leaf)


def _install(model: Any, tensors: dict[str, Tensor], tied: set[str]) -> None:
    """Replace the model's meta tensors. Tied ones stay on the meta device, where drawing has no effect."""
    for path, module in model.named_modules():
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None:
                name = f"{path}.{leaf}" if path else leaf
                module._parameters[leaf] = _parameter(parameter, tensors.get(name), name in tied)
        for leaf, buffer in list(module._buffers.items()):
            if buffer is not None:
                found = tensors.get(f"{path}.{leaf}" if path else leaf)
                module._buffers[leaf] = torch.zeros_like(buffer, device="cpu") if found is None else found


def _parameter(old: Tensor, new: Tensor | None, tied: bool) -> nn.Parameter:
    if tied:
        placeholder = nn.Parameter(old.detach(), requires_grad=False)
        placeholder._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' initialisers leave it alone
        return placeholder
    return nn.Parameter(torch.zeros_like(old, device="cpu") if new is None else new, requires_grad=False)


def _draw(model: Any, seed: int, num_threads: int) -> None:
    """Modules that hold others come last, since their rules may change what these hold."""
    units, above = _split(_Place("", model, model), max(1, _size(model) // SHARE))
    with ThreadPoolExecutor(num_threads, "draw") as threads:
        largest_first = sorted(units, key=lambda unit: -_size(unit.module))
        for done in [threads.submit(_draw_all, _inside(unit), seed) for unit in largest_first]:
            done.result()
    _draw_all(above, seed)


def _split(place: _Place, limit: int) -> tuple[list[_Place], list[_Place]]:
    """Modules whose insides are drawn in parallel, and the modules above them, children first."""
    below = list(_children(place))
    if _size(place.module) <= limit or not below:
        return [place], []
    found = [_split(child, limit) for child in below]
    return [unit for units, _ in found for unit in units], [each for _, above in found for each in above] + [place]


def _children(place: _Place) -> Iterator[_Place]:
    """A model inside a model has rules of its own."""
    from transformers import PreTrainedModel

    for name, child in place.module.named_children():
        path = f"{place.path}.{name}" if place.path else name
        yield _Place(path, child, child if isinstance(child, PreTrainedModel) else place.model)


def _inside(place: _Place) -> list[_Place]:
    """The module and all modules in it, children first."""
    return [each for child in _children(place) for each in _inside(child)] + [place]


@torch.no_grad()
def _draw_all(places: Sequence[_Place], seed: int) -> None:
    for place in places:
        with OwnGenerator(seeds.generator(seed, "backbone", place.path)):
            place.model._init_weights(place.module)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _marked(tensor: Tensor) -> tuple[Tensor, Any]:
    """Mark both ends of a tensor, to find tensors that no rule fills. Returns the tensor and the mark."""
    if tensor.is_floating_point():
        mark: Any = float("nan")
    else:
        mark = True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).min
    flat = tensor.view(-1)
    flat[0] = flat[-1] = mark
    return tensor, mark


def _untouched(tensor: Tensor, mark: Any) -> bool:
    ends = tensor.view(-1)[[0, -1]]
    return bool((ends.isnan() if tensor.is_floating_point() else ends == mark).any())


def _write_config(model: Any, folder: Path) -> None:
    """As `save_pretrained` does."""
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
