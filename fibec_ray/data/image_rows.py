"""Images in memory, not yet decoded, the same from every source. N rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.examples import Origin, Rows
from fibec_ray.data.pixels import Source, decode
from fibec_ray.image_reading import BICUBIC, Image, resized


@dataclass(frozen=True)
class Images(Rows):
    """Images with class labels. An image is decoded each time it is read, so large sets fit in memory."""

    sources: list[Source]
    labels: NDArray[np.int64]
    true_difficulty: NDArray[np.float32] | None = None
    """(N,) true difficulty in [0, 1]; known for the embedded images only"""
    users: list[str] | None = None
    """N ids of users, if the partition deals by them"""
    origin: Origin | None = None
    """None for embedded sets and class folders"""
    size: tuple[int, int] | None = None
    """(H, W) that images are resized to when they are decoded; None: their own"""

    def read(self) -> Images:
        """The same images with the content of their files in memory."""
        return replace(self, sources=[each.read_bytes() if isinstance(each, Path) else each for each in self.sources])

    def image(self, row: int) -> Image:
        """Decode one image, (H, W, 3). Raises DataError."""
        found = decode(self.sources[row], self.place(row))
        return found if self.size is None else resized(found, self.size, BICUBIC)

    def place(self, row: int) -> str:
        """File and row of an image, for messages."""
        source = self.sources[row]
        if self.origin is not None:
            name = f" ({source})" if isinstance(source, Path) else ""
            return f"{self.origin.place(row)}{name}"
        return str(source) if isinstance(source, Path) else f"image {row}"
