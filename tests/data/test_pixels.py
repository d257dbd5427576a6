"""Decoding of single images: modes, damage, and files that are too large."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from fibec_ray.data import pixels
from fibec_ray.data.pixels import decode
from fibec_ray.errors import DataError

RAMP = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2

NOISE = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)


def encoded(image: Any, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_a_file_its_bytes_and_the_array_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Pil.fromarray(RAMP)))
    for source in (path, path.read_bytes(), RAMP):
        assert np.array_equal(decode(source, "here"), RAMP)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_eight_bits_becomes_rgb(mode: str) -> None:
    image = Pil.fromarray(RAMP).convert(mode)
    form = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    found = decode(encoded(image, form), "here")
    assert found.shape == (5, 7, 3) and found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(image.convert("RGB")))


def test_transparency_is_laid_on_white() -> None:
    rgba = np.concatenate([RAMP, np.zeros((5, 7, 1), np.uint8)], axis=2)
    for source in (encoded(Pil.fromarray(rgba)), rgba):
        assert (decode(source, "here") == 255).all()
    palette = Pil.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert (decode(encoded(palette, transparency=1), "here") == 255).all()


def test_photographs_are_turned_as_their_exif_tag_says() -> None:
    exif = Pil.Exif()
    exif[0x0112] = 6
    assert decode(encoded(Pil.fromarray(RAMP), "JPEG", exif=exif), "here").shape == (7, 5, 3)


def test_grey_arrays_fractions_and_flags_become_bytes() -> None:
    assert np.array_equal(decode(RAMP[..., 0], "here"), np.repeat(RAMP[..., :1], 3, axis=2))
    assert np.array_equal(decode((RAMP / 255).astype(np.float32), "here"), RAMP)
    assert np.array_equal(np.unique(decode(np.eye(4, dtype=bool), "here")), [0, 255])
    assert np.array_equal(decode(RAMP.astype(np.int64), "here"), RAMP)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"not an image", "is not an image that can be read; allowed: PNG, JPEG"),
        (b"", "is not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read"),
        (encoded(Pil.fromarray(NOISE))[:900], "the image cannot be decoded"),
        (Path("missing.png"), "no such file"),
        (Path("."), "is not a file"),
        (encoded(Pil.new("I;16", (4, 4))), "mode I;16 has more than 8 bits per channel"),
        (encoded(Pil.new("F", (4, 4)), "TIFF"), "mode F has more than 8 bits per channel"),
        (np.zeros((2, 2, 2, 2)), r"an array of shape \(2, 2, 2, 2\); allowed: \(H, W\)"),
        (np.zeros((0, 4, 3), np.uint8), "an array of shape"),
        (np.full((2, 2), 256), "values from 256 to 256; allowed for int64: 0 to 255"),
        (np.full((2, 2), 1.5), "values from 1.5 to 1.5; allowed for float64: 0 to 1"),
        (np.full((2, 2), np.nan), "values from nan to nan"),
        (np.full((2, 2), "x"), "an array of type <U1"),
    ],
)
def test_what_is_no_image_is_one_clear_error(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"here: .*{message}"):
        decode(source, "here")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bytearray(encoded(Pil.new("L", (8, 8))))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # the width and height in the PNG's header
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match="at most 50,000,000 pixels are allowed"):
        decode(bytes(bomb), "here")
    monkeypatch.setattr(pixels, "MOST_PIXELS", 30)
    for source in (encoded(Pil.fromarray(RAMP)), RAMP):
        with pytest.raises(DataError, match="here: 7 x 5 pixels; at most 30 pixels"):
            decode(source, "here")
