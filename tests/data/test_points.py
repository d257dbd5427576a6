"""Samples that are no text: where they come from, what their labels are, and how they lie on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fibec_ray.data.dealing import Split
from fibec_ray.data.dense import DenseSet
from fibec_ray.data.examples import Points
from fibec_ray.data.heterogeneity import mean_r2, own_mean_r2, r2
from fibec_ray.data.partition import DirichletLabel, Pathological
from fibec_ray.data.points import FUNCTIONS, RegressionSettings, generate, region_of
from fibec_ray.data.sets import open_set
from fibec_ray.data.settings import DataConfig
from fibec_ray.errors import DataError
from fibec_ray.tasks import Task, load, parse_task

DIGITS = parse_task({"name": "digits", "kind": "digits", "label_names": tuple("0123456789")})
REGRESSION = parse_task({"name": "regression", "kind": "regression"})


def points(task: Task, seed: int = 0, **config: Any) -> tuple[Points, Points]:
    return load(task, DataConfig.model_validate(config), seed)


# --- digits


def test_digits_are_all_images_once_and_the_seed_splits_them() -> None:
    train, test = points(DIGITS)
    assert (len(train), len(test), train.features.shape[1:]) == (1437, 360, (1, 8, 8))
    both = np.concatenate([train.features, test.features])
    assert len(np.unique(both.reshape(1797, -1), axis=0)) == 1797  # no two images are alike
    assert (both.min(), both.max(), both.dtype) == (0, 1, np.float32)
    again, _ = points(DIGITS)
    assert np.array_equal(again.features, train.features) and np.array_equal(again.labels, train.labels)
    assert not np.array_equal(points(DIGITS, seed=1)[1].labels, test.labels)
    counts = np.bincount(np.concatenate([train.labels, test.labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn describes the set


def test_digits_can_be_fewer() -> None:
    train, test = points(DIGITS, max_train=50, max_test=7)
    assert (len(train), len(test)) == (50, 7)


# --- regression


def test_the_wave_by_hand() -> None:
    """sin(pi / 2) = 1, sin(-pi / 4) = -sqrt(1/2); on two axes times sin(pi x_1 + pi / 2) = cos(pi x_1)."""
    wave = FUNCTIONS["wave"]
    assert wave(np.array([[0.5], [-0.25]])) == pytest.approx([1, -(0.5**0.5)])
    assert wave(np.array([[0.5, 0.0], [0.5, 1.0], [0.5, 0.5]])) == pytest.approx([1, -1, 0])


def test_the_linear_function_by_hand() -> None:
    """x_0 - x_1 / 2 + x_2 / 4."""
    assert FUNCTIONS["linear"](np.array([[1.0, 2.0, 4.0]])) == pytest.approx([1.0])


def test_regions_are_equal_cells_and_the_last_axis_counts_fastest() -> None:
    x = np.array([[-1, -1], [-1, -0.2], [-0.01, 0.9], [0, -1], [1, 1]], dtype=np.float64)
    assert region_of(x, (2, 3)).tolist() == [0, 1, 2, 3, 5]
    assert region_of(np.array([[-1.0], [-0.5], [0.49], [1.0]]), (4,)).tolist() == [0, 1, 2, 3]


def test_training_values_have_noise_and_test_values_none() -> None:
    settings = RegressionSettings(regions=(4,), noise=0.1, num_train=4000, num_test=50)
    train, test = points(REGRESSION, regression=settings)
    assert train.values is not None and test.values is not None
    assert train.features.shape == (4000, 1) and np.abs(train.features).max() <= 1
    off = train.values - FUNCTIONS["wave"](train.features.astype(np.float64))
    assert off.std() == pytest.approx(0.1, rel=0.05) and abs(off.mean()) < 0.01
    assert test.values == pytest.approx(FUNCTIONS["wave"](test.features.astype(np.float64)), abs=1e-6)
    assert np.array_equal(train.labels, region_of(train.features.astype(np.float64), (4,)))


def test_the_same_seed_draws_the_same_points_and_splits_differ() -> None:
    settings = RegressionSettings()
    one, again, other = (generate(20, seed, "train", settings).features for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert not np.array_equal(one, generate(20, 0, "test", settings).features)


def test_a_partition_by_labels_is_one_of_the_domain() -> None:
    """One region for each device, or mixtures of regions."""
    train, test = points(REGRESSION)
    split = Pathological(classes_per_device=1).split(train.labels, test.labels, 6, 6, seed=0)
    own = [set(train.labels[rows].tolist()) for rows in split.train]
    assert sorted(own, key=min) == [{region} for region in range(6)]
    assert own == [set(test.labels[rows].tolist()) for rows in split.test]
    mixed = DirichletLabel(alpha=0.3).split(train.labels, test.labels, 6, 4, seed=0)
    assert sum(map(len, mixed.train)) == len(train)


# --- R2, by hand


def test_r2_by_hand() -> None:
    """Around the mean 2: spread 1 + 0 + 1 = 2; missed 0 + 1 + 0."""
    assert r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 3.0])) == pytest.approx(1 - 1 / 2)
    assert r2(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == 0
    assert r2(np.array([2.0, 2.0]), np.array([2.0, 1.0])) is None


def test_anchors_by_hand() -> None:
    """Training means: 2 over all; 1 and 4 of the devices. Test values 1, 4, 4: mean 3, spread 4 + 1 + 1 = 6."""
    train, test = np.array([1.0, 1.0, 4.0]), np.array([1.0, 4.0, 4.0])
    assert mean_r2(train, test) == pytest.approx(1 - (1 + 4 + 4) / 6)
    split = Split([np.array([0, 1]), np.array([2])], [np.array([0, 1]), np.array([2])])
    assert own_mean_r2(train, test, split) == pytest.approx(1 - 9 / 6)


# --- on disk


def a_set(regression: bool) -> DenseSet:
    features = np.arange(24, dtype=np.float32).reshape(6, 1, 2, 2)
    values = np.linspace(0, 1, 6, dtype=np.float32) if regression else None
    return DenseSet.of(Points(features, np.array([0, 1, 2, 0, 1, 2]), values))


@pytest.mark.parametrize("regression", [False, True])
def test_a_saved_set_loads_as_memory_maps_of_its_own_kind(regression: bool, tmp_path: Path) -> None:
    made = a_set(regression)
    made.save(tmp_path / "set")
    back = open_set(tmp_path / "set")
    assert isinstance(back, DenseSet) and (back.num_samples, back.shape) == (6, (1, 2, 2))
    assert isinstance(back.features, np.memmap) and np.array_equal(back.features, made.features)
    assert np.array_equal(back.labels, made.labels) and back.labels.dtype == ("float32" if regression else "int64")


@pytest.mark.parametrize("regression", [False, True])
def test_a_batch_holds_the_samples_asked_for(regression: bool) -> None:
    """A sample has one position, and no padding."""
    made = a_set(regression)
    shard = made.shard(np.array([5, 3, 1]))
    batch = shard.batch(torch.tensor([2, 0]))
    assert torch.equal(batch.inputs["features"], torch.from_numpy(made.features[[1, 5]]))
    assert batch.labels.tolist() == made.labels[[1, 5]].tolist()
    assert batch.num_samples == 2 and batch.length == 1
    assert batch.real(torch.zeros(2, 1, 4)).tolist() == [[[1]], [[1]]]
    assert shard.num_samples == 3 and shard.true_difficulty is None and shard.lengths.tolist() == [0, 0, 0]


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    a_set(False).save(tmp_path / "set")
    np.save(tmp_path / "set" / "labels.npy", np.zeros(3, np.int64))
    with pytest.raises(DataError, match="do not fit together"):
        open_set(tmp_path / "set")
    (tmp_path / "set" / "labels.npy").unlink()
    with pytest.raises(DataError, match="encode the data again"):
        open_set(tmp_path / "set")


# --- refused


@pytest.mark.parametrize(
    ("task", "config", "says"),
    [
        (DIGITS, {"path": "."}, "data.path: has no effect"),
        (DIGITS, {"max_length": 32}, "data.max_length: has no effect, because task digits has no text"),
        (
            DIGITS,
            {"regression": {"noise": 0.5}},
            "data.regression: has no effect, because task digits is of kind digits",
        ),
        (REGRESSION, {"synthetic": {"num_train": 9}}, "data.synthetic: has no effect"),
        (REGRESSION, {"label_column": "y"}, "data.label_column: has no effect"),
    ],
)
def test_settings_without_effect_are_refused(task: Task, config: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        points(task, **config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "digits", "label_names": ("0", "1"), "verbaliser": ("no", "yes")}, "verbaliser\n  Extra inputs"),
        ({"kind": "digits", "label_names": ("0", "1"), "hub": "x/y"}, "hub\n  Extra inputs"),
        ({"kind": "digits"}, "label_names has 0 names"),
        (
            {"kind": "digits", "label_names": ("0", "1"), "metric": "r2"},
            "metric\n  Input should be 'accuracy', 'mcc' or",
        ),
        ({"kind": "regression", "metric": "accuracy"}, "metric\n  Input should be 'r2'"),
        ({"kind": "regression", "metric": "r2", "label_names": ("0", "1")}, "label_names\n  Extra inputs"),
        ({"kind": "text", "label_names": ("0", "1"), "verbaliser": ("a",)}, "verbaliser has 1 words for 2 label_names"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        parse_task({"name": "x", **change})
