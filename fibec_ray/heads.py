"""Finds the modules of an architecture's classification head."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fibec_ray.errors import ModelError

BY_NAME = ("classifier", "score")
"""Ends of the names of modules that the peft library trains and saves in every classifier."""
INSIDE = "base_model.model."
"""Where the peft library keeps the model that it is attached to."""


def head_modules(module: Any, new: Iterable[str]) -> list[str]:
    """Paths of the modules that are trained as the head of `module`, a transformers classifier.

    They are those called classifier or score, and those that hold a tensor which is newly drawn. new: names of these
    tensors. Raises ModelError where the peft library could not restore such a module from its name.
    """
    paths = [path for path, _ in module.named_modules() if path]
    by_name = [path for path in paths if path.endswith(BY_NAME)]
    drawn = {name.rpartition(".")[0] for name in new}
    found = _outermost([*by_name, *drawn])
    for path in found:
        if path not in by_name and [other for other in paths if f"{INSIDE}{other}".endswith(path)] != [path]:
            raise ModelError(
                f"backbone.head: {type(module).__name__} has new weights in '{path or 'the model itself'}', which a "
                "saved adapter cannot hold; set backbone.head=mean_pool, or take a checkpoint that has these weights"
            )
    return [path for path in paths if path in found]


def beside_the_body(module: Any) -> list[str]:
    """Names of the tensors that an architecture adds to its base model."""
    return [name for name, _ in module.named_parameters() if not name.startswith(f"{module.base_model_prefix}.")]


def reads_images(module: Any) -> bool:
    """True for a transformers model of images."""
    return bool(getattr(module, "main_input_name", "") == "pixel_values")


def unnamed(head: Sequence[str] | None, module: Any) -> list[str] | None:
    """The modules of a head that the peft library must be told of; None: there are none."""
    return [path for path in head or () if reads_images(module) or not path.endswith(BY_NAME)] or None


def task_type(head: Sequence[str] | None, module: Any = None) -> str | None:
    """peft's word for a model with this head. It has none for classifiers of images."""
    return None if head is None or reads_images(module) else "SEQ_CLS"


def in_head(name: str, head: Collection[str] | None) -> bool:
    """True for the tensors of a head's modules, wherever these are."""
    return any(f".{path}." in f".{name}" for path in head or ())


def _outermost(paths: Collection[str]) -> set[str]:
    return {path for path in paths if not any(path.startswith(f"{other}.") for other in paths)}
