"""What image models from transformers have in common: patches, places, sizes and costs.

Shapes: B samples, S places of an image (patches, or cells of a feature map), C channels at a place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fibec_ray.blocks import find_blocks, has_stages, num_blocks
from fibec_ray.curvature.sample_formulas import mark_windows
from fibec_ray.errors import ModelError
from fibec_ray.models.architecture import (
    IMAGE_MODELS,
    PIXELS,
    attention_of,
    auto_class,
    config_of,
    model_class,
    reason_of,
)
from fibec_ray.models.backbone import from_config
from fibec_ray.models.settings import PretrainedSettings

Shape = tuple[int, ...]
WINDOWS = ("swin", "swinv2")
"""Families whose attention works on windows, and has the rows of all windows of a sample one after the other."""


class Measured(NamedTuple):
    """Sizes and cost of a model, from its architecture alone."""

    flops: float
    """of a forward pass over one image, 2 per multiply-add"""
    num_places: int
    """S of the last hidden state"""
    num_features: int
    """C of the last hidden state"""


def measured(base: Any, shape: Shape) -> Measured:
    """Run a copy of the model without values on one image of this shape, (3, H, W). Raises ModelError."""
    config = deepcopy(base.config)
    try:
        with torch.device("meta"), torch.no_grad():
            twin = type(base)._from_config(config, attn_implementation="eager").eval()
            with FlopCounterMode(display=False) as counter, last_states(twin) as found:
                twin(**{PIXELS: torch.zeros(1, *shape)})
    except Exception as error:  # architectures raise all kinds of errors
        raise ModelError(
            f"backbone: {config.model_type} cannot compute an image of {' x '.join(map(str, shape[1:]))} pixels "
            f"({reason_of(error)}); check the sizes in its config and of its image processor; {IMAGE_MODELS}"
        ) from error
    return Measured(float(counter.get_total_flops()), *as_places(found[-1]).shape[1:])


def check_supported(spec: PretrainedSettings) -> None:
    """Raise ModelError for architectures that lack a classifier, blocks, or a convolution that makes patches."""
    config = config_of(spec)
    if model_class(auto_class(spec), config) is None:
        raise ModelError(
            f"backbone.head: transformers has no classifier for {config.model_type}; set backbone.head=mean_pool"
        )
    attention_of(spec, config)
    with torch.device("meta"):
        base = from_config(spec, num_classes=2)
    patch_convolution(base)
    if len(find_blocks(base)) != num_blocks(base.config):
        raise ModelError(f"backbone: {config.model_type} does not keep its blocks in a list; {IMAGE_MODELS}")


def check_size(spec: PretrainedSettings, shape: Shape) -> None:
    """Raise ModelError if the model does not read images of this shape, (3, H, W)."""
    config_of(spec)
    with torch.device("meta"):
        measured(from_config(spec, num_classes=2), shape)


def patch_convolution(base: Any) -> nn.Conv2d:
    """The first convolution: it makes the patch embeddings. Raises ModelError if there is none."""
    for module in base.modules():
        if isinstance(module, nn.Conv2d):
            return module
    raise ModelError(f"backbone: {base.config.model_type} has no convolution that makes patches; {IMAGE_MODELS}")


def as_places(states: Tensor) -> Tensor:
    """(B, S, C) unchanged; a feature map (B, C, h, w) -> (B, h w, C)."""
    return states.flatten(2).transpose(1, 2) if states.dim() == 4 else states


def mark_window_attention(base: Any) -> None:
    """Mark the Linears that see windows of an image, for per-sample gradients."""
    if base.config.model_type in WINDOWS and has_stages(base.config):
        for block in find_blocks(base):
            mark_windows(block.get_submodule("attention"))


@contextmanager
def last_states(base: Any) -> Iterator[list[Tensor]]:
    """A list to which the body's last hidden state is added when the model runs."""
    found: list[Tensor] = []
    body = getattr(base, base.base_model_prefix, base)
    handle = body.register_forward_hook(lambda module, args, out: found.append(out.last_hidden_state))
    try:
        yield found
    finally:
        handle.remove()


class Patches:
    """The output of a model's patch convolution: computed, or replaced in a pass."""

    def __init__(self, base: Any):
        self._convolution = patch_convolution(base)

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that it takes."""
        return self._convolution.weight.dtype

    def embed(self, images: Tensor) -> Tensor:
        """(B, S, C) embeddings of the patches of images (B, 3, H, W), before positions are added."""
        return as_places(self._convolution(images.to(self.dtype)))

    @contextmanager
    def replaced(self, embeds: Tensor | None) -> Iterator[None]:
        """Compute with these embeddings (B, S, C) instead; None: with the images' own."""
        if embeds is None:
            yield
            return

        def replace(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return embeds.transpose(1, 2).reshape(out.shape).to(out.dtype)

        handle = self._convolution.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()
