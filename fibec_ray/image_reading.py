"""How a backbone reads images: the interface between code that stores images and the image processors of models.

(h, w) is the size of an image, (H, W) the size that the model reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""(h, w, 3) RGB"""
CHANNELS = 3
BILINEAR, BICUBIC = 2, 3
"""Pillow's numbers of filters."""


class Reading(Protocol):
    """How a backbone reads images; the processor of a pretrained one."""

    @property
    def table(self) -> NDArray[np.float32]:
        """(256, 3) the value that the model reads for each byte of each channel."""

    def fitted(self, image: Image, where: str) -> Image:
        """An image (h, w, 3) resized and cropped to (H, W, 3). where: its file and row, for messages."""

    def later(self, image: Image) -> Resize | None:
        """The same as a `Resize`; None if it does something else."""


@dataclass(frozen=True)
class Resize:
    """Resizes an image to (height, width), then cuts (H, W) out of it, from (top, left)."""

    height: int
    width: int
    resample: int
    """Pillow's number of the filter"""
    top: int = 0
    left: int = 0

    def __call__(self, image: Image, size: tuple[int, int]) -> Image:
        """(h, w, 3) -> (H, W, 3). size: (H, W)."""
        whole = resized(image, (self.height, self.width), self.resample)
        return whole[self.top : self.top + size[0], self.left : self.left + size[1]]


class Plain:
    """How networks from scratch read images: at their own size, bytes scaled to [-1, 1].

    The scale is fixed, so devices do not have to share statistics of their data.
    """

    def __init__(self) -> None:
        values = (np.arange(256, dtype=np.float64) / 127.5 - 1).astype(np.float32)
        self.table: NDArray[np.float32] = np.repeat(values[:, None], CHANNELS, axis=1)

    def fitted(self, image: Image, where: str) -> Image:
        """The image itself."""
        return image

    def later(self, image: Image) -> Resize | None:
        """None: images are stored as they are read."""
        return None


def resized(image: Image, size: Sequence[int], resample: int) -> Image:
    """The image at another size (H, W), by one of Pillow's filters."""
    from PIL import Image as Pil  # device actors with images of the right size never need it

    if tuple(size) == image.shape[:2]:
        return image
    return np.asarray(Pil.fromarray(image).resize((size[1], size[0]), Pil.Resampling(resample)))
