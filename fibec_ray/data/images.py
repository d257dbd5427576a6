"""Images on disk and in memory, as a model reads them. `encoded.py` has the same for texts.

Pixels are stored as bytes, after the resizing and cropping of the backbone's processor. Its arithmetic on single
pixels (scale, mean, standard deviation) is a table with the value of each byte, applied when a batch is made. So a set
takes a quarter of the space of float32, and batches have the processor's values bit for bit.

Small images are stored at their own size and resized in each batch, if all have the same size: CIFAR-10 takes 0.2 GB
instead of 9 GB at 224 x 224. See docs/images.md for the time that this takes.

N samples, n of a shard, B of a batch, (H, W) the size that the model reads, (h, w) the size on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fibec_ray.data.arrays import Array, load_arrays, no_set, refuse_misfit, save_arrays
from fibec_ray.data.dense import DenseForm
from fibec_ray.data.image_rows import Images
from fibec_ray.errors import DataError
from fibec_ray.image_reading import CHANNELS, Image, Reading, Resize
from fibec_ray.model_types import Batch

MOST_IN_MEMORY = 1 << 30
"""bytes of pixels that are encoded in memory; more go to a temporary file until they are saved"""


@dataclass(frozen=True)
class ImageSet:
    """Images with class labels. Implements `sets.SampleSet`."""

    pixels: NDArray[np.uint8]
    """(N, h, w, 3)"""
    labels: NDArray[np.int64]
    """(N,) class ids"""
    table: NDArray[np.float32]
    """(256, 3), see `Reading`"""
    size: tuple[int, int]
    """(H, W)"""
    resize: Resize | None = None
    """from (h, w) to (H, W), for each batch; None: they are the same"""
    true_difficulty: NDArray[np.float32] | None = None
    """(N,) true difficulty, embedded images only"""
    kind: ClassVar[str] = "images"

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample in a batch: (3, H, W)."""
        return (CHANNELS, *self.size)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) ones: images have no length."""
        return np.ones(self.num_samples, np.int64)

    @property
    def answer_lengths(self) -> NDArray[np.int64]:
        """(N,) zeros: answers are not texts."""
        return np.zeros(self.num_samples, np.int64)

    @property
    def form(self) -> DenseForm:
        """What a batch of these samples looks like."""
        return DenseForm(self.shape, is_real=False)

    def shard(self, rows: NDArray[np.int64]) -> ImageShard:
        """The samples at these rows."""
        return ImageShard(self, np.asarray(rows, dtype=np.int64))

    def features(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, 3, H, W) float32, what the model reads."""
        pixels = self.pixels[rows]
        if self.resize is not None:
            pixels = np.stack([self.resize(image, self.size) for image in pixels])
        found = np.empty((len(rows), *self.shape), dtype=np.float32)
        for channel in range(CHANNELS):
            np.take(self.table[:, channel], pixels[..., channel], out=found[:, channel], mode="clip")
        return torch.from_numpy(found)

    def save(self, folder: Path) -> None:
        """Write the arrays into a folder."""
        arrays: dict[str, Array] = {"pixels": self.pixels, "labels": self.labels, "table": self.table}
        if self.true_difficulty is not None:
            arrays["true_difficulty"] = self.true_difficulty
        resize = None if self.resize is None else asdict(self.resize)
        save_arrays(folder, arrays, kind=self.kind, size=list(self.size), resize=resize)

    @staticmethod
    def load(folder: Path) -> ImageSet:
        """Open a saved set without reading it: the arrays are memory maps. Raises DataError if it is not such a set."""
        arrays, about = load_arrays(folder)
        try:
            resize = None if about["resize"] is None else Resize(**about["resize"])
            found = ImageSet(**arrays, size=tuple(about["size"]), resize=resize)
        except (KeyError, TypeError) as error:
            raise no_set(folder, error) from error
        fits = len(found.pixels) == len(found.labels) and found.pixels.shape[3:] == (CHANNELS,)
        refuse_misfit(folder, fits and (resize is not None or found.pixels.shape[1:3] == found.size))
        return found


class ImageShard:
    """Rows of an image set that one device has; implements `model_types.Shard`. Keeps row numbers and labels only."""

    def __init__(self, source: ImageSet, rows: NDArray[np.int64]):
        self._source, self._rows = source, rows
        self.labels = torch.from_numpy(source.labels[rows])
        self.lengths = torch.zeros(len(rows), dtype=torch.int64)
        self.true_difficulty = (
            None if source.true_difficulty is None else torch.from_numpy(source.true_difficulty[rows])
        )

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self._rows)

    def shortened(self, max_length: int) -> ImageShard:
        """Itself: images have no length."""
        return self

    def batch(self, rows: Tensor) -> Batch:
        """The samples at positions `rows` (B,) of the shard."""
        assert len(rows), "a batch of no samples"
        return Batch({"features": self._source.features(self._rows[rows.numpy()])}, self.labels[rows])


def encode_images(rows: Images, reading: Reading) -> ImageSet:
    """Decode all images and store them as the model reads them.

    Raises DataError for an image that cannot be read, and for images of different sizes where nothing makes them equal.
    """
    return _Encoding(rows, reading).run()


class _Encoding:
    """Decodes each image once, and stores images at their own size until one differs."""

    def __init__(self, rows: Images, reading: Reading):
        self._rows, self._reading = rows, reading
        first = rows.image(0)
        fitted = reading.fitted(first, rows.place(0))
        self._target = fitted.shape[:2]
        smaller = first.shape[0] * first.shape[1] < fitted.shape[0] * fitted.shape[1]
        self._resize = reading.later(first) if smaller else None
        self._pixels = self._room(first.shape if self._resize else fitted.shape)

    def run(self) -> ImageSet:
        for row in range(len(self._rows)):
            image = self._rows.image(row)
            if self._resize is not None and image.shape != self._pixels.shape[1:]:
                self._enlarge(row)
            self._pixels[row] = image if self._resize is not None else self._fitted(image, row)
        rows = self._rows
        return ImageSet(
            self._pixels, rows.labels, self._reading.table, self._target, self._resize, rows.true_difficulty
        )

    def _fitted(self, image: Image, row: int) -> Image:
        found = self._reading.fitted(image, self._rows.place(row))
        if found.shape[:2] != self._target:
            raise DataError(
                f"{self._rows.place(row)}: is read at {_by(found.shape)} pixels, but the first image at "
                f"{_by(self._target)}; a model needs images of one size: set data.image_size=[HEIGHT,WIDTH] to resize "
                "all of them"
            )
        return found

    def _enlarge(self, count: int) -> None:
        """Store the model's size from now on, and also for the `count` images that are stored already."""
        stored, self._resize = self._pixels, None
        self._pixels = self._room((*self._target, CHANNELS))
        for row in range(count):
            self._pixels[row] = self._fitted(stored[row], row)

    def _room(self, shape: Sequence[int]) -> NDArray[np.uint8]:
        whole = (len(self._rows), *shape)
        if np.prod(whole, dtype=np.int64) <= MOST_IN_MEMORY:
            return np.empty(whole, dtype=np.uint8)
        return np.memmap(tempfile.TemporaryFile(prefix="fibec-images-"), dtype=np.uint8, shape=whole)


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"
