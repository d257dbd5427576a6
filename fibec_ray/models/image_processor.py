"""How a pretrained backbone reads images: transformers' image processor, in two steps.

`ProcessorReading` implements `image_reading.Reading`. The first step resizes and crops to bytes, once, when data are
prepared. The second step works on single pixels, so a table of 256 values per channel replaces it exactly. The
processor itself makes the table, and every new set is checked against it.

Pillow's implementation is used on every machine, so that runs give the same bits with and without torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fibec_ray.errors import ModelError
from fibec_ray.image_reading import BILINEAR, CHANNELS, Image, Resize
from fibec_ray.models.architecture import reason_of

Floats = NDArray[np.float32]
DEFAULT_MODEL = "vit"
"""The model type with the processor for architectures that have none."""


class ProcessorReading:
    """A transformers image processor as a `Reading`. Raises ModelError for one that cannot be split into two steps."""

    def __init__(self, processor: Any):
        self._processor = processor
        ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), CHANNELS, axis=2)
        values = self._run(ramp, "its table", do_resize=False, do_center_crop=False, do_pad=False)
        if values.shape != (CHANNELS, 16, 16):
            raise ModelError(self._unfit(f"it makes {values.shape} of {ramp.shape}"))
        self.table: Floats = np.ascontiguousarray(values.reshape(CHANNELS, 256).T)
        self._checked = False

    def fitted(self, image: Image, where: str) -> Image:
        """An image (h, w, 3) resized and cropped to (H, W, 3)."""
        pixels = self._run(image, where, do_rescale=False, do_normalize=False)
        if pixels.ndim != 3 or pixels.shape[0] != CHANNELS or not np.array_equal(pixels, pixels.astype(np.uint8)):
            raise ModelError(self._unfit("its resized images are not bytes"))
        found: Image = np.moveaxis(pixels.astype(np.uint8), 0, -1)
        if not self._checked:
            self._check(image, found, where)
            self._checked = True
        return found

    def later(self, image: Image) -> Resize | None:
        """One call of Pillow that gives the same as `fitted`; None if there is none."""
        wanted = self.fitted(image, "an image")
        size = (wanted.shape[0], wanted.shape[1])
        return next((way for way in self._ways(image, size) if np.array_equal(way(image, size), wanted)), None)

    def values(self, image: Image, where: str) -> Floats:
        """(3, H, W) what the processor gives for an image, in one step."""
        return self._run(image, where)

    def _ways(self, image: Image, size: tuple[int, int]) -> Iterator[Resize]:
        """Resize to the model's size; or keep the proportions and cut out the middle."""
        resample = getattr(self._processor, "resample", None)
        resample = BILINEAR if resample is None else int(resample)
        yield Resize(*size, resample)
        shortest = (getattr(self._processor, "size", None) or {}).get("shortest_edge")
        if not shortest:
            return
        height, width = image.shape[:2]
        crop = getattr(self._processor, "crop_pct", None)
        for edge in (shortest, int(shortest / crop)) if crop else (shortest,):
            whole = (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)
            top, left = ((whole[axis] - size[axis]) // 2 for axis in range(2))
            if top >= 0 and left >= 0:
                yield Resize(whole[0], whole[1], resample, top, left)

    def _check(self, image: Image, found: Image, where: str) -> None:
        table = np.stack([self.table[found[..., channel], channel] for channel in range(CHANNELS)])
        if not np.array_equal(table, self.values(image, where)):
            raise ModelError(self._unfit("it does more than resize, crop, and scale each pixel"))

    def _run(self, image: Image, where: str, **steps: bool) -> Floats:
        from PIL import Image as Pil

        try:
            found = self._processor(Pil.fromarray(image), return_tensors="np", **steps)
            return np.asarray(found["pixel_values"])[0]
        except Exception as error:  # processors raise all kinds of errors
            raise ModelError(self._unfit(f"it cannot read {where}: {reason_of(error)}")) from error

    def _unfit(self, why: str) -> str:
        name = type(self._processor).__name__.removesuffix("Pil")
        return f"backbone: its image processor {name} is not supported, because {why}; choose another backbone"


def load_processor(source: str, revision: str | None) -> Any:
    """The processor of a checkpoint. source: a hub id or a local folder. Raises ModelError."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil", trust_remote_code=False)
    except Exception as error:  # the errors of transformers and huggingface_hub have no common root
        missing = Path(source).is_dir() and not (Path(source) / "preprocessor_config.json").is_file()
        advice = "add its preprocessor_config.json to the folder" if missing else "choose another backbone"
        raise ModelError(
            f"backbone.name: '{source}' has no image processor that can be read ({reason_of(error)}); {advice}"
        ) from error


def default_processor(config: Any) -> Any:
    """The processor that transformers gives an architecture, for images of the config's size."""
    from transformers.models.auto.image_processing_auto import (
        IMAGE_PROCESSOR_MAPPING_NAMES,
        get_image_processor_class_from_name,
    )

    names = IMAGE_PROCESSOR_MAPPING_NAMES
    cls = get_image_processor_class_from_name(names.get(config.model_type, names[DEFAULT_MODEL]).get("pil", ""))
    cls = cls or get_image_processor_class_from_name(names[DEFAULT_MODEL]["pil"])
    height, width = image_size(config)
    square = {"height": height, "width": width}
    keeps = "shortest_edge" in (cls.size or {})
    return cls(size={"shortest_edge": min(height, width)} if keeps else square, crop_size=square)


def image_size(config: Any) -> tuple[int, int]:
    """(H, W) that a config's model is made for; 224 x 224 if it names none."""
    found = getattr(config, "image_size", None) or 224
    return (found, found) if isinstance(found, int) else (int(found[0]), int(found[1]))
