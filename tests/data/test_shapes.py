"""The embedded images: seeded, balanced, and of a known difficulty."""

from __future__ import annotations

import numpy as np
import pytest

from fibec_ray.data.shapes import SHAPES, ShapeSettings, generate

FEW = ShapeSettings(num_train=120, num_test=60, size=16)


def test_the_same_seed_draws_the_same_images_and_another_seed_others() -> None:
    once, again, other = (generate(60, seed, "train", FEW) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(once.sources, again.sources, strict=True))
    assert np.array_equal(once.labels, again.labels)
    assert not all(np.array_equal(a, b) for a, b in zip(once.sources, other.sources, strict=True))


def test_training_and_test_images_differ() -> None:
    train, test = (generate(60, 1, split, FEW) for split in ("train", "test"))
    assert not {image.tobytes() for image in train.sources} & {image.tobytes() for image in test.sources}


def test_classes_are_balanced_and_images_have_the_size() -> None:
    rows = generate(60, 1, "test", FEW)
    assert np.bincount(rows.labels).tolist() == [10] * len(SHAPES)
    assert {image.shape for image in rows.sources} == {(16, 16, 3)}
    assert rows.image(0).dtype == np.uint8


def test_difficulty_is_in_0_to_1_and_1_for_wrong_labels() -> None:
    settings = FEW.model_copy(update={"label_noise": 0.25})
    noisy, clean = (generate(120, 1, "train", each) for each in (settings, FEW.model_copy(update={"label_noise": 0.0})))
    wrong = noisy.labels != clean.labels
    assert wrong.sum() == 30
    assert noisy.true_difficulty is not None and clean.true_difficulty is not None
    assert (noisy.true_difficulty[wrong] == 1).all()
    assert np.array_equal(noisy.true_difficulty[~wrong], clean.true_difficulty[~wrong])
    assert 0 <= clean.true_difficulty.min() < 0.2 and 0.6 < clean.true_difficulty.max() <= 1


def test_easy_images_are_easier_for_the_nearest_color() -> None:
    rows = generate(600, 1, "test", FEW)
    colors = np.stack([image[6:10, 6:10].reshape(-1, 3).mean(0) for image in rows.sources])
    easy = rows.true_difficulty < np.median(rows.true_difficulty)
    half = np.arange(600) < 300

    def accuracy(chosen: np.ndarray) -> float:
        means = np.stack([colors[half & (rows.labels == c)].mean(0) for c in range(len(SHAPES))])
        nearest = np.linalg.norm(colors[:, None] - means, axis=2).argmin(1)
        return float((nearest == rows.labels)[chosen & ~half].mean())

    assert accuracy(easy) > accuracy(~easy) + 0.15


@pytest.mark.parametrize("settings", [{"size": 4}, {"num_classes": 1}, {"num_classes": 7}, {"noise": 2}, {"hue": 1}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ShapeSettings.model_validate(settings)
