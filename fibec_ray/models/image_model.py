"""The model that devices train on images: frozen base, PEFT adapter, and a classifier.

Shapes: B samples, S places of an image, C channels at a place.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fibec_ray.blocks import block_paths
from fibec_ray.image_reading import CHANNELS
from fibec_ray.model_types import Batch
from fibec_ray.models.blocks import BlockOutputs, Hidden
from fibec_ray.models.forward_cost import ForwardCost
from fibec_ray.models.image_processor import image_size
from fibec_ray.models.inputs import Arguments, ImageInputs
from fibec_ray.models.readout import Run
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.models.vision import as_places, last_states, mark_window_attention, measured


class ImageModel(TorchModel):
    """A TorchModel of an image backbone. Embeddings are those of patches; hidden states are (B, S, C) of each block."""

    def __init__(self, what: ModelSpec, source: Any, device: str = "cpu", beside: int | None = None):
        self._shape = what.shape
        super().__init__(what, source, device, beside)
        self._paths = {f".{path}.": i for i, path in enumerate(block_paths(self._base))}
        mark_window_attention(self._base)

    def _measure(self, base: Any) -> tuple[ForwardCost, int]:
        self.measured = measured(base, self._shape or (CHANNELS, *image_size(base.config)))
        return ForwardCost(self.measured.flops), self.measured.num_features

    def layer_of(self, name: str) -> int | None:
        if not self._paths:
            return super().layer_of(name)
        return next((i for path, i in self._paths.items() if path in f".{name}"), None)

    def _run(self, batch: Batch, embeds: Tensor | None, hidden: bool) -> Run:
        assert isinstance(self._inputs, ImageInputs)
        arguments = self._attached.extend(self._inputs.arguments(batch, embeds, self.device))
        return ImageRun(self._base, self._blocks, arguments, hidden, self._inputs, embeds)


class ImageRun(Run):
    """A forward pass over images. embeds: (B, S, C) in place of the patch embeddings; None: the images' own."""

    def __init__(
        self,
        base: Any,
        blocks: BlockOutputs,
        arguments: Arguments,
        hidden: bool,
        inputs: ImageInputs,
        embeds: Tensor | None,
    ):
        super().__init__(base, blocks, arguments, 0, hidden)
        self._inputs, self._embeds = inputs, embeds

    def whole(self) -> Any:
        with (
            self._blocks.caught(self._hidden) as found,
            last_states(self._base) as last,
            self._inputs.patches.replaced(self._embeds),
        ):
            out = self._base(**self._arguments)
        self._places = as_places(last[-1])
        if self._hidden:
            self.states = Hidden(tuple(map(as_places, found)), self._places)
        return out

    def body(self, module: nn.Module) -> Tensor:
        """(B, S, C) last states."""
        self.whole()
        return self._places
