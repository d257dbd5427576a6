"""Generates the embedded images: seeded colored shapes on noise, with a known true difficulty.

The class is the shape. Each class has a typical color, which some images have; place, size and background tell nothing
about the class. Each image has a true difficulty in [0, 1]. No method sees it; the round log uses it to show how well a
curriculum orders the samples:

    0.3 * (noise / most noise) + 0.2 * (1 - contrast) / (1 - least contrast) + 0.2 * (second, smaller shape)
    + 0.3 * (not in the typical color of its class)

An image with a wrong label (label noise) has difficulty 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from fibec_ray.data.image_rows import Images
from fibec_ray.seeds import numpy_generator

Floats = NDArray[np.float64]
LEAST_CONTRAST = 0.35
_SMALLER = 0.45
"""radius of the second shape, relative to the first"""

SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.9,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.8,
    "triangle": lambda x, y: np.maximum(abs(x) * 1.7 - y - 0.75, y - 0.8),
    "cross": lambda x, y: np.maximum(np.minimum(abs(x), abs(y)) - 0.27, np.maximum(abs(x), abs(y)) - 0.95),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.7) - 0.22,
    "bars": lambda x, y: np.maximum(abs(abs(y) - 0.55) - 0.25, abs(x) - 0.85),
}
"""Shapes by class name: negative inside, for x and y in [-1, 1]."""
COLORS = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=np.float64)
"""Typical color of each class: red, blue, green, yellow, magenta, cyan."""


class ShapeSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Number, size and difficulty of the embedded images."""

    num_train: int = Field(1200, ge=2, le=200_000, description="training images to generate")
    num_test: int = Field(300, ge=1, le=50_000, description="test images to generate")
    num_classes: int = Field(len(SHAPES), ge=2, le=len(SHAPES), description="shapes that images show")
    size: int = Field(32, ge=12, le=512, description="height and width in pixels")
    noise: float = Field(0.25, ge=0, le=1, description="largest standard deviation of a pixel's noise; white is 1")
    typical: float = Field(0.6, ge=0, le=1, description="fraction of images in the typical color of their class")
    clutter: float = Field(0.3, ge=0, le=1, description="fraction of images with a second, smaller shape")
    label_noise: float = Field(0.05, ge=0, lt=1, description="fraction of training images with a wrong label")


class Scene(NamedTuple):
    """What one image shows."""

    class_: int
    noise: float
    """standard deviation, a fraction of the largest one"""
    contrast: float
    """distance of the shape's color from the background's, LEAST_CONTRAST to 1"""
    color: int
    """class that the color is typical of"""
    other: int | None
    """class of the second shape"""

    @property
    def difficulty(self) -> float:
        """True difficulty in [0, 1]."""
        faint = (1 - self.contrast) / (1 - LEAST_CONTRAST)
        odd = self.color != self.class_
        return 0.3 * self.noise + 0.2 * faint + 0.2 * (self.other is not None) + 0.3 * odd


def generate(num_samples: int, seed: int, split: str, settings: ShapeSettings) -> Images:
    """Draw images of one split, "train" or "test"; classes are balanced to within one."""
    assert split in ("train", "test"), split
    rng = numpy_generator(seed, "shapes", split)
    classes = rng.permutation(np.arange(num_samples) % settings.num_classes).astype(np.int64)
    scenes = [_scene(int(class_), rng, settings) for class_ in classes]
    images = [_draw(scene, rng, settings) for scene in scenes]
    difficulty = np.array([scene.difficulty for scene in scenes], dtype=np.float32)
    labels = classes.copy()
    wrong = rng.permutation(num_samples)[: round((settings.label_noise if split == "train" else 0) * num_samples)]
    labels[wrong] = (labels[wrong] + rng.integers(1, settings.num_classes, size=len(wrong))) % settings.num_classes
    difficulty[wrong] = 1.0
    return Images(list(images), labels, true_difficulty=difficulty)


def _scene(class_: int, rng: np.random.Generator, settings: ShapeSettings) -> Scene:
    noise, contrast = rng.random(), rng.uniform(LEAST_CONTRAST, 1)
    color, other = ((class_ + int(rng.integers(1, settings.num_classes))) % settings.num_classes for _ in range(2))
    is_typical, has_other = rng.random() < settings.typical, rng.random() < settings.clutter
    return Scene(class_, noise, contrast, class_ if is_typical else color, other if has_other else None)


def _draw(scene: Scene, rng: np.random.Generator, settings: ShapeSettings) -> NDArray[np.uint8]:
    """(size, size, 3)"""
    ink = abs(COLORS[scene.color] - rng.uniform(0, 0.1, 3))
    back = _background(ink, scene.contrast, rng)
    side = settings.size
    radius = rng.uniform(0.28, 0.4) * side
    center = side / 2 + rng.uniform(-0.1, 0.1, 2) * side
    image = np.broadcast_to(back, (side, side, 3)).astype(np.float64)
    if scene.other is not None:
        corner = side * rng.choice([0.15, 0.85], 2)
        image = _painted(image, scene.other, corner, _SMALLER * radius, ink)
    image = _painted(image, scene.class_, center, radius, ink)
    image += scene.noise * settings.noise * rng.standard_normal(image.shape)
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def _background(ink: Floats, contrast: float, rng: np.random.Generator) -> Floats:
    """A color (3,) at a distance from the shape's: the largest difference of a channel is about the contrast."""
    share = rng.random(3)
    share[rng.integers(3)] = 1
    towards = np.where(ink < 0.5, 1.0, -1.0)
    return (ink + towards * share * contrast).clip(0, 1)


def _painted(image: Floats, class_: int, center: Floats, radius: float, ink: Floats) -> Floats:
    """The image with a shape on it, its edge one pixel wide."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    inside = list(SHAPES.values())[class_]((x - center[1]) / radius, (y - center[0]) / radius)
    cover = (0.5 - inside * radius).clip(0, 1)[..., None]
    return image * (1 - cover) + ink * cover
