"""Backbones that read images: ViT, DeiT, Swin, ConvNeXt and others of transformers, pretrained or random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from fibec_ray.encoder import Encoder, Reads
from fibec_ray.model_types import BatchForm
from fibec_ray.models.base import check_alike
from fibec_ray.models.built import BuiltModel, ModelRequest, SizedModel
from fibec_ray.models.pretrained import Pretrained
from fibec_ray.models.settings import ImageSettings


class ImageBackbone(ImageSettings, Pretrained, frozen=True):
    """A frozen image model.

    head: model (the classifier that transformers gives the architecture, newly drawn and trained), or mean_pool (linear
    classifier on the mean of the last hidden states over all places).
    """

    local_settings: ClassVar[tuple[str, ...]] = ("name", "processor")

    @property
    def title(self) -> str:
        return "an image backbone"

    @property
    def reads(self) -> Reads:
        return "image"

    def check(self, writes_text: bool = False) -> None:
        from fibec_ray.models.vision import check_supported

        check_supported(self)

    def preprocessor(self) -> Any:
        from fibec_ray.models.architecture import config_of, revision
        from fibec_ray.models.image_processor import default_processor, load_processor

        if (source := self.processor or self.name) is None:
            return default_processor(config_of(self))
        return load_processor(source, revision(self, source) if self.processor is None else None)

    def encoder(self, max_length: int, num_virtual: int = 0) -> Encoder:
        return self.encoder_with(self.preprocessor(), max_length)

    def encoder_with(self, preprocessor: Any, max_length: int) -> Encoder:
        from fibec_ray.models.image_processor import ProcessorReading

        return Encoder(self.reads, processor=ProcessorReading(preprocessor))

    def fit(self, sets: Sequence[Any], encoder: Encoder, words: Sequence[int] = ()) -> list[Any]:
        from fibec_ray.models.vision import check_size

        check_alike(sets)
        check_size(self, sets[0].form.shape)
        return list(sets)

    def build(
        self, request: ModelRequest, base: Any = None, device: str = "cpu", beside: int | None = None
    ) -> BuiltModel:
        from fibec_ray.models.image_model import ImageModel

        return ImageModel(self._model_spec(request), base, device, beside)

    def outline(self, request: ModelRequest, form: BatchForm, num_blocks: int | None = None) -> SizedModel:
        from fibec_ray.models.image_outline import ImageOutline

        return ImageOutline(self._model_spec(request), form, num_blocks)

    def probe(self, preprocessor: Any) -> dict[str, Any]:
        import numpy as np
        import torch

        from fibec_ray.models.image_processor import ProcessorReading

        ramp = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
        values = ProcessorReading(preprocessor).values(ramp, "an image")
        return {PIXELS: torch.from_numpy(values).unsqueeze(0)}

    def with_other_base(self, base: str) -> Self:
        return super().with_other_base(base).model_copy(update={"processor": self.processor or base})

    def with_preprocessor(self, home: Path) -> Self:
        return self.model_copy(update={"processor": str(home)}) if (home / PROCESSOR).is_file() else self


PROCESSOR = "preprocessor_config.json"
"""the file that says that a folder has an image processor"""
PIXELS = "pixel_values"
