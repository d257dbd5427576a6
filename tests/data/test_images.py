"""Image sets: what batches hold, what is stored, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fibec_ray.data import images
from fibec_ray.data.image_rows import Images
from fibec_ray.data.images import ImageSet, encode_images
from fibec_ray.errors import DataError
from fibec_ray.image_reading import Image, Plain, Resize, resized

RNG = np.random.default_rng(0)


class ToEight(Plain):
    """Reads images at 8 x 8."""

    def fitted(self, image: Image, where: str) -> Image:
        return resized(image, (8, 8), 2)

    def later(self, image: Image) -> Resize | None:
        return Resize(8, 8, 2)


class ToEightNow(ToEight):
    """The same, for processors that do more than resize."""

    def later(self, image: Image) -> Resize | None:
        return None


def rows(*sizes: tuple[int, int]) -> Images:
    sources = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return Images(list(sources), np.arange(len(sizes)) % 2, np.linspace(0, 1, len(sizes)).astype(np.float32))


def test_networks_read_bytes_as_minus_one_to_one() -> None:
    some = rows((4, 5), (4, 5))
    found = encode_images(some, Plain())
    batch = found.shard(np.array([1, 0])).batch(torch.tensor([0]))
    wanted = torch.from_numpy(np.moveaxis(some.image(1), -1, 0)).double() / 127.5 - 1
    assert found.shape == (3, 4, 5) and batch.inputs["features"].dtype == torch.float32
    torch.testing.assert_close(batch.inputs["features"][0].double(), wanted, atol=1e-7, rtol=0)


def test_small_images_are_stored_small_and_give_the_same_batches() -> None:
    some = rows(*[(4, 6)] * 5)
    later, now = encode_images(some, ToEight()), encode_images(some, ToEightNow())
    assert later.pixels.shape == (5, 4, 6, 3) and now.pixels.shape == (5, 8, 8, 3)
    assert later.shape == now.shape == (3, 8, 8)
    assert torch.equal(later.features(np.arange(5)), now.features(np.arange(5)))


def test_images_of_several_sizes_are_stored_as_the_model_reads_them() -> None:
    some = rows((4, 6), (4, 6), (5, 3), (40, 30))
    found, wanted = encode_images(some, ToEight()), encode_images(some, ToEightNow())
    assert found.resize is None and np.array_equal(found.pixels, wanted.pixels)


def test_large_images_are_stored_as_the_model_reads_them() -> None:
    assert encode_images(rows((20, 20), (20, 20)), ToEight()).pixels.shape == (2, 8, 8, 3)


def test_networks_need_images_of_one_size_unless_one_is_set() -> None:
    some = rows((4, 4), (4, 4), (5, 4))
    with pytest.raises(DataError, match=r"image 2: is read at 5 x 4 pixels, .* set data.image_size=\[HEIGHT,WIDTH\]"):
        encode_images(some, Plain())
    assert encode_images(replace(some, size=(6, 7)), Plain()).shape == (3, 6, 7)


def test_more_images_than_memory_go_through_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    some = rows(*[(4, 4)] * 3)
    wanted = encode_images(some, Plain())
    monkeypatch.setattr(images, "MOST_IN_MEMORY", 10)
    found = encode_images(some, Plain())
    assert isinstance(found.pixels, np.memmap) and np.array_equal(found.pixels, wanted.pixels)
    found.save(tmp_path / "set")
    assert np.array_equal(ImageSet.load(tmp_path / "set").pixels, wanted.pixels)


@pytest.mark.parametrize("reading", [Plain(), ToEight(), ToEightNow()])
def test_a_saved_set_gives_the_same_batches(tmp_path: Path, reading: Any) -> None:
    found = encode_images(rows(*[(4, 6)] * 5), reading)
    found.save(tmp_path / "set")
    opened = ImageSet.load(tmp_path / "set")
    shards = [each.shard(np.array([4, 2, 0])) for each in (found, opened)]
    one, other = (shard.batch(torch.tensor([2, 0])) for shard in shards)
    assert torch.equal(one.inputs["features"], other.inputs["features"])
    assert torch.equal(one.labels, other.labels) and shards[0].num_samples == 3
    assert torch.equal(shards[0].true_difficulty, shards[1].true_difficulty)
    assert isinstance(opened.pixels, np.memmap)


def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    found = encode_images(rows((4, 4), (4, 4)), Plain())
    found.save(tmp_path / "set")
    np.save(tmp_path / "set" / "labels.npy", np.zeros(3, np.int64))
    with pytest.raises(DataError, match="do not fit together"):
        ImageSet.load(tmp_path / "set")
