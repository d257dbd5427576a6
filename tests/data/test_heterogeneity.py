"""Measures of heterogeneity: by hand, and against direct computation for any shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fibec_ray.data.dealing import Ints, shards_of
from fibec_ray.data.heterogeneity import heterogeneity

HALVES = [np.array([0, 1]), np.array([2, 3])]
Drawn = tuple[list[Ints], np.random.Generator]


@st.composite
def dealt(draw: Any) -> Drawn:
    """Shards of up to 60 rows, some of them empty, and a generator for columns."""
    num_devices, rng = draw(st.integers(1, 6)), np.random.default_rng(draw(st.integers(0, 10**6)))
    return shards_of(rng.integers(0, num_devices, draw(st.integers(1, 60))), num_devices), rng


def test_several_labels_by_hand() -> None:
    # Overall shares 1/2 and 1/4. Device 0 has (1, 1/2) and device 1 (0, 0): differences 1/2 and 1/4 on both.
    labels = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])
    assert heterogeneity(HALVES, {"label": labels})["label_shift_mean"] == 0.375


def test_values_by_hand() -> None:
    # Mean 2, standard deviation 2; the devices' means are 0 and 4.
    found = heterogeneity(HALVES, {"value": np.array([0.0, 0.0, 4.0, 4.0], np.float32)})
    assert found == {"value_shift_mean": 1.0, "smallest_shard": 2.0, "largest_shard": 2.0}


def test_names_follow_the_columns_and_what_says_nothing_is_left_out() -> None:
    columns = {
        "label": np.array([0, 0, 1, 1]),
        "topic": np.array(["a", "b", "a", "b"]),
        "value": None,
        "length": np.full(4, 7.0),
        "none": np.zeros(0),
    }
    found = heterogeneity(HALVES, columns)
    assert found == {"label_tv_mean": 0.5, "topic_tv_mean": 0.0, "smallest_shard": 2.0, "largest_shard": 2.0}


@settings(max_examples=60, deadline=None)
@given(dealt(), st.integers(1, 8))
def test_total_variation_is_that_of_the_definition(drawn: Drawn, classes: int) -> None:
    shards, rng = drawn
    labels = rng.integers(0, classes, sum(map(len, shards)))
    overall = np.bincount(labels, minlength=classes) / len(labels)
    wanted = [
        0.5 * np.abs(np.bincount(labels[rows], minlength=classes) / len(rows) - overall).sum()
        for rows in shards
        if len(rows)
    ]
    found = heterogeneity(shards, {"label": labels, "name": np.array([f"class {c}" for c in labels])})
    assert found["label_tv_mean"] == pytest.approx(np.mean(wanted)) and 0 <= found["label_tv_mean"] < 1
    assert found["name_tv_mean"] == pytest.approx(found["label_tv_mean"])  # names of classes serve as well as ids
    assert found["smallest_shard"] <= len(labels) / len(shards) <= found["largest_shard"]


@settings(max_examples=60, deadline=None)
@given(dealt(), st.floats(0.01, 100), st.floats(-50, 50))
def test_shifts_depend_on_no_unit_and_two_classes_shift_like_one_label(
    drawn: Drawn, scale: float, offset: float
) -> None:
    shards, rng = drawn
    values = rng.standard_normal(sum(map(len, shards)))
    one, two = (heterogeneity(shards, {"value": each}) for each in (values, scale * values + offset))
    assert one.get("value_shift_mean", 0.0) == pytest.approx(two.get("value_shift_mean", 0.0), abs=1e-6)
    binary = (values > 0).astype(np.int64)
    found = heterogeneity(shards, {"class": binary, "label": binary[:, None]})
    assert found["class_tv_mean"] == pytest.approx(found["label_shift_mean"])


def test_one_device_with_all_rows_differs_in_nothing() -> None:
    rows, rng = [np.arange(50)], np.random.default_rng(0)
    columns = {"label": rng.integers(0, 3, 50), "tags": rng.integers(0, 2, (50, 4)), "value": rng.standard_normal(50)}
    found = heterogeneity(rows, columns)
    assert [found[name] for name in ("label_tv_mean", "tags_shift_mean", "value_shift_mean")] == [0.0, 0.0, 0.0]


def test_many_devices_of_one_user_each_fit_in_memory() -> None:
    users = np.arange(100_000) // 10
    found = heterogeneity(list(np.arange(100_000).reshape(10_000, 10)), {"user": users})
    assert found["user_tv_mean"] == pytest.approx(1 - 1e-4)
