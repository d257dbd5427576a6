"""What a transformers model is given of a batch: one class per kind of input, chosen by the model's main input.

To add a kind, write its class and add a line to INPUTS.

Shapes: B samples, k rows of a sample (2 for pairs of texts, else 1), S positions of a row, H hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fibec_ray.blocks import has_decoder
from fibec_ray.model_types import Batch
from fibec_ray.models.architecture import PIXELS
from fibec_ray.models.vision import Patches

Arguments = dict[str, Any]
"""Of a transformers model, by name."""


class Size(NamedTuple):
    """What a model computes for a batch: rows of so many positions, padding included."""

    rows: int
    """k B"""
    length: int
    """S"""
    target: int = 0
    """T, positions of the decoder of an encoder-decoder; 0 for other models"""


class Inputs(ABC):
    """Makes a model's arguments. base: the transformers model."""

    def __init__(self, base: Any):
        self._base = base

    @property
    def pad_id(self) -> int:
        """Token id that fills up rows where batches are joined."""
        return 0

    @abstractmethod
    def size(self, batch: Batch) -> Size:
        """Rows of the batch, and positions of the model's states."""

    @abstractmethod
    def arguments(self, batch: Batch, embeds: Tensor | None, device: torch.device) -> Arguments:
        """The model's arguments for the batch's rows. embeds: (B, k S, H) in place of what `embed` makes."""

    @abstractmethod
    def embed(self, batch: Batch, device: torch.device) -> Tensor:
        """(B, k S, H) what the first block computes with, before positions are added."""


class TextInputs(Inputs):
    """Token ids, or their embeddings, with a mask and maybe token types."""

    @property
    def pad_id(self) -> int:
        return getattr(self._base.config, "pad_token_id", None) or 0

    def size(self, batch: Batch) -> Size:
        return Size(*by_row(batch).inputs["input_ids"].shape)

    def arguments(self, batch: Batch, embeds: Tensor | None, device: torch.device) -> Arguments:
        rows = by_row(batch).inputs
        names = ("input_ids", "attention_mask", "token_type_ids")
        found = {name: rows[name].to(device) for name in names if name in rows}
        if embeds is not None:
            ids = found.pop("input_ids")
            found["inputs_embeds"] = embeds.reshape(*ids.shape, -1)
        return found

    def embed(self, batch: Batch, device: torch.device) -> Tensor:
        embeds: Tensor = self._base.get_input_embeddings()(by_row(batch).inputs["input_ids"].to(device))
        return embeds.reshape(batch.num_samples, -1, embeds.shape[-1])


class SourceTargetInputs(TextInputs):
    """A source for the encoder, and a target for the decoder, which sees the target's tokens one step late."""

    def __init__(self, base: Any):
        super().__init__(base)
        self.start = start_id(base.config)

    def size(self, batch: Batch) -> Size:
        rows, length = batch.inputs["input_ids"].shape
        return Size(rows, length, batch.inputs["target_ids"].shape[1])

    def arguments(self, batch: Batch, embeds: Tensor | None, device: torch.device) -> Arguments:
        target, mask = (batch.inputs[name].to(device) for name in ("target_ids", "target_mask"))
        shifted = torch.cat([torch.full_like(target[:, :1], self.start), target[:, :-1]], dim=1)
        return super().arguments(batch, embeds, device) | {"decoder_input_ids": shifted, "decoder_attention_mask": mask}


def start_id(config: Any) -> int:
    """The token that a decoder starts with: that of the config, or the padding token, as in T5."""
    own: int | None = getattr(config, "decoder_start_token_id", None)
    return int(config.pad_token_id if own is None else own)


class ImageInputs(Inputs):
    """Images. Embeddings are those of their patches; a pass replaces them in `patches`."""

    def __init__(self, base: Any):
        super().__init__(base)
        self.patches = Patches(base)

    def size(self, batch: Batch) -> Size:
        return Size(batch.num_samples, 1)  # the cost of an image is measured as a whole

    def arguments(self, batch: Batch, embeds: Tensor | None, device: torch.device) -> Arguments:
        return {PIXELS: batch.inputs["features"].to(device, self.patches.dtype)}

    def embed(self, batch: Batch, device: torch.device) -> Tensor:
        return self.patches.embed(batch.inputs["features"].to(device))


INPUTS: dict[str, type[Inputs]] = {"input_ids": TextInputs, PIXELS: ImageInputs}
"""By the name of a model's main input (`main_input_name` of transformers)."""


def inputs_of(base: Any) -> Inputs:
    """How batches become the arguments of this transformers model."""
    return SourceTargetInputs(base) if has_decoder(base.config) else INPUTS[base.main_input_name](base)


def by_row(batch: Batch) -> Batch:
    """The batch with the rows of all samples one after the other: (B, k, S) -> (k B, S), (B, k) -> (k B,).

    Rows i k to i k + k - 1 belong to sample i. Labels stay those of samples.
    """
    if batch.rows_each == 1:
        return batch
    return Batch({name: column.flatten(0, 1) for name, column in batch.inputs.items()}, batch.labels, batch.known)
