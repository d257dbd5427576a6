"""Decodes one image, from a file, from bytes or from an array, to 8-bit RGB.

Transparent images get a white background, and photographs are rotated as their EXIF tag says, as in transformers and
`datasets`. H x W is the image's size.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fibec_ray.errors import DataError
from fibec_ray.image_reading import Image

Source = Path | bytes | NDArray[Any]
"""An image file, the content of one, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Pillow's decoders that are used. Others run programs (EPS) or read other things than photographs."""
MOST_PIXELS = 50_000_000
"""of one image. A small file can decompress to gigabytes."""
_EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes that have 8 bits per channel or less."""


def decode(source: Source, where: str) -> Image:
    """The first frame of an image. where: file and row, for messages. Raises DataError."""
    if isinstance(source, np.ndarray):
        return of_array(source, where)
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{where}: {'is not a file' if source.exists() else 'no such file'}; give the path of an image")
    return _opened(source if isinstance(source, Path) else io.BytesIO(source), where)


def source_of(value: Any, where: str) -> Source:
    """What a user gives as an image: a path, the content of a file, an array, or a Pillow image. Raises DataError."""
    from PIL import Image as Pil

    if isinstance(value, str):
        return Path(value).expanduser()
    if isinstance(value, Pil.Image):
        return of_pil(value, where)
    if isinstance(value, Path | bytes | np.ndarray):
        return value
    raise DataError(
        f"{where}: give the path of an image, the content of its file, a Pillow image, or an array (H, W, 3); this is "
        f"a {type(value).__name__}"
    )


def of_pil(image: Any, where: str) -> Image:
    """A Pillow image. Raises DataError for modes with more than 8 bits per channel, and for too many pixels."""
    from PIL import Image as Pil
    from PIL import ImageOps

    _refuse_large(image.size, where)
    if image.mode not in _EIGHT_BITS:
        raise DataError(
            f"{where}: mode {image.mode} has more than 8 bits per channel; save the images with 8 bits, scaled to "
            "0 to 255"
        )
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Pil.alpha_composite(Pil.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB"))


def of_array(array: NDArray[Any], where: str) -> Image:
    """An array of whole numbers in 0 to 255, of bools, or of fractions in 0 to 1. Raises DataError for others."""
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise DataError(
            f"{where}: an array of shape {tuple(array.shape)}; allowed: (H, W), (H, W, 1), (H, W, 3) and (H, W, 4)"
        )
    _refuse_large((array.shape[1], array.shape[0]), where)
    found = as_bytes(array, where)
    if found.shape[-1] == 4:
        from PIL import Image as Pil

        return of_pil(Pil.fromarray(found), where)
    return np.broadcast_to(found, (*found.shape[:2], 3)) if found.shape[-1] == 1 else found


def as_bytes(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """The values as uint8. Raises DataError for values out of range."""
    if array.dtype == np.uint8:
        return array
    kind = array.dtype.kind
    if kind not in "biuf":
        raise DataError(f"{where}: an array of type {array.dtype}; images are numbers: 0 to 255, or fractions 0 to 1")
    highest = 255 if kind in "iu" else 1
    if kind != "b" and not (array.min() >= 0 and array.max() <= highest):  # false for NaN too
        raise DataError(
            f"{where}: values from {array.min():g} to {array.max():g}; allowed for {array.dtype}: 0 to {highest}"
        )
    scaled: NDArray[np.uint8] = (array if kind in "iu" else np.rint(array * 255.0)).astype(np.uint8)
    return scaled


def _opened(file: Any, where: str) -> Image:
    from PIL import Image as Pil
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd metadata; size is checked below
            with Pil.open(file, formats=FORMATS) as image:
                _refuse_large(image.size, where)
                return of_pil(image, where)
    except Pil.DecompressionBombError as error:
        raise DataError(f"{where}: {_too_large()}") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{where}: is not an image that can be read; allowed: {', '.join(FORMATS)}; convert or remove it"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # Pillow's decoders raise all of these
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{where}: the image cannot be decoded ({reason}); repair or remove it") from error


def _refuse_large(size: tuple[int, int], where: str) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise DataError(f"{where}: {size[0]} x {size[1]} pixels; {_too_large()}")


def _too_large() -> str:
    return f"at most {MOST_PIXELS:,} pixels are allowed; make the image smaller"
