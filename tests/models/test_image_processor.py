"""Pixel values equal those of the Hugging Face processor, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from fibec_ray.data.image_rows import Images
from fibec_ray.data.images import encode_images
from fibec_ray.errors import ModelError
from fibec_ray.models.image_processor import ProcessorReading, default_processor, load_processor

RNG = np.random.default_rng(0)
SMALL = RNG.integers(0, 256, (4, 12, 16, 3), dtype=np.uint8)


def processor(model_type: str, **sizes: Any) -> Any:
    from transformers import AutoConfig

    return default_processor(AutoConfig.for_model(model_type, image_size=32, **sizes))


def rows(*shapes: tuple[int, int]) -> Images:
    sources = [RNG.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    return Images(list(sources), np.zeros(len(shapes), np.int64))


@pytest.mark.parametrize("model_type", ["vit", "deit", "swin", "convnext", "dinov2", "beit", "levit", "mobilevit"])
@pytest.mark.parametrize("shapes", [[(12, 16)] * 3, [(50, 40), (33, 90), (32, 32)], [(12, 16), (40, 90)]])
def test_batches_equal_the_processors_values(model_type: str, shapes: list[tuple[int, int]]) -> None:
    made, some = processor(model_type), rows(*shapes)
    found = encode_images(some, ProcessorReading(made)).features(np.arange(len(some)))
    images = [Pil.fromarray(some.image(row)) for row in range(len(some))]
    wanted = made(images, return_tensors="pt")["pixel_values"]
    assert found.shape == wanted.shape == (len(some), 3, 32, 32)
    assert (found == wanted).all()


@pytest.mark.parametrize("model_type", ["vit", "convnext", "dinov2"])
def test_small_images_of_one_size_are_stored_small(model_type: str) -> None:
    found = encode_images(rows((12, 16), (12, 16)), ProcessorReading(processor(model_type)))
    assert found.pixels.shape == (2, 12, 16, 3) and found.shape == (3, 32, 32)


def test_a_saved_processor_is_read_with_its_own_mean_and_size(tmp_path: Path) -> None:
    from transformers import ViTImageProcessorPil

    made = ViTImageProcessorPil(
        size={"height": 20, "width": 24}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7], rescale_factor=1 / 200
    )
    made.save_pretrained(tmp_path)
    some = rows((30, 31), (8, 9))
    found = encode_images(some, ProcessorReading(load_processor(str(tmp_path), None))).features(np.arange(2))
    assert (
        found == made([Pil.fromarray(some.image(row)) for row in range(2)], return_tensors="pt")["pixel_values"]
    ).all()


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no image processor that can be read .* add its preprocessor_config.json"):
        load_processor(str(tmp_path), None)


def test_a_processor_that_looks_at_the_whole_image_is_refused() -> None:
    from transformers import ViTImageProcessorPil

    class Centred(ViTImageProcessorPil):
        """Subtracts each image's own mean."""

        def normalize(self, image: Any, *args: Any, **kwargs: Any) -> Any:
            return image - image.mean()

    reading = ProcessorReading(Centred(size={"height": 8, "width": 8}))
    with pytest.raises(ModelError, match="Centred is not supported, because it does more than resize, crop, and scale"):
        reading.fitted(SMALL[0], "here")
