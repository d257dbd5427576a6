"""Images from class folders and from numpy's arrays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from fibec_ray.data.image_source import in_tables, read_images
from fibec_ray.data.pixels import decode
from fibec_ray.data.settings import DataConfig
from fibec_ray.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write(folder: Path, names: list[str]) -> Path:
    """Images at these paths below the folder."""
    for name, image in zip(names, [*IMAGES, *IMAGES], strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Pil.fromarray(image).save(path)
    return folder


def read(path: Path, train: tuple[str, ...] = ("train",), test: str | None = None, **settings: Any) -> Any:
    """train, test: the task's own splits."""
    task = SimpleNamespace(name="photos", train_splits=train, eval_split=test)
    return read_images(task, DataConfig(path=str(path), **settings))


# --- class folders


def test_a_folder_per_class_gives_labels_by_name(tmp_path: Path) -> None:
    write(tmp_path, ["dog/1.png", "cat/2.png", "cat/deep/3.PNG", "dog/.hidden.png"])
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (train,), test = read(tmp_path)
    assert test == [] and not in_tables(str(tmp_path))
    assert [path.name for path in train.sources] == ["2.png", "3.PNG", "1.png"]
    assert [train.labels.values[code] for code in train.labels.codes] == ["cat", "cat", "dog"]


@pytest.mark.parametrize("split", ["test", "val", "Validation"])
def test_folders_per_split_hold_folders_per_class(tmp_path: Path, split: str) -> None:
    write(tmp_path, ["train/cat/1.png", "train/dog/2.png", f"{split}/cat/3.png", f"{split}/dog/4.png"])
    (train,), (test,) = read(tmp_path)
    assert len(train.sources) == len(test.sources) == 2
    assert np.array_equal(decode(test.sources[0], ""), IMAGES[2])


def test_splits_can_be_named(tmp_path: Path) -> None:
    write(tmp_path, [f"{split}/{name}/1.png" for split in ("a", "b", "c") for name in ("cat", "dog")])
    train, test = read(tmp_path, ("a", "b"), "c")
    assert [len(part.sources) for part in (*train, *test)] == [2, 2, 2]
    settings = DataConfig(path=str(tmp_path), train="b", test="a")
    train, test = read_images(SimpleNamespace(name="photos", train_splits=("train",), eval_split=None), settings)
    assert [part.labels.where for part in (*train, *test)] == [str(tmp_path / "b"), str(tmp_path / "a")]


def test_usual_names_of_splits_stand_in_for_the_tasks_own(tmp_path: Path) -> None:
    write(tmp_path, [f"{split}/{name}/1.png" for split in ("Training", "val") for name in ("cat", "dog")])
    train, test = read(tmp_path, ("train",), "test")
    assert [part.labels.where for part in (*train, *test)] == [str(tmp_path / "Training"), str(tmp_path / "val")]


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    (train,), test = read(write(tmp_path, ["test/1.png", "train/1.png"]))
    assert train.labels.values == ["test", "train"] and test == []


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["train/cat/1.png", "test/cat/1.png"], {}, "1 folders of classes; put the images of each class"),
        (["cat/1.png", "dog/1.png"], {}, "no folder of test images; it holds cat, dog; name it with data.test=FOLDER"),
        (["a/x/1.png", "a/y/1.png"], {"train": "b", "test": "a"}, "data.train: .*b: no such folder; .* holds a"),
        (["a/x/1.png", "a/y/1.png"], {"train": "a", "test": "a"}, "a is also trained on; name two different folders"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    tmp_path: Path, names: list[str], settings: dict[str, Any], message: str
) -> None:
    task = SimpleNamespace(name="photos", train_splits=("train",), eval_split="test")
    with pytest.raises(DataError, match=message):
        read_images(task, DataConfig(path=str(write(tmp_path, names)), **settings))


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["cat/1.png", "dog/1.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no image .*; add some, or remove it"):
        read(tmp_path)


# --- arrays


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("train_images", "train_labels", "val_images", "val_labels"),
        ("images", "labels", "test_images", "test_labels"),
    ],
)
def test_an_npz_of_both_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **dict(zip(names, (IMAGES, LABELS[:, None], IMAGES[:3], LABELS[:3]), strict=True)))
    (train,), (test,) = read(path)
    assert [train.labels.values[code] for code in train.labels.codes] == LABELS.tolist()
    assert len(test.sources) == 3 and np.array_equal(decode(test.sources[2], ""), IMAGES[2])


def test_npy_files_of_a_folder_and_beside_each_other(tmp_path: Path) -> None:
    for name, array in {"train_images": IMAGES[..., 0], "train_labels": LABELS, "images": IMAGES}.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "labels.npy", np.array(["cat", "dog", "cat", "dog", "cat", "dog"]))
    (train,), test = read(tmp_path / "images.npy")
    assert test == [] and train.labels.values == ["cat", "dog"]
    assert decode(read(tmp_path)[0][0].sources[0], "").shape == (4, 5, 3)


def test_train_and_test_npz_in_a_folder_with_channels_first(tmp_path: Path) -> None:
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=np.moveaxis(IMAGES, -1, 1), labels=LABELS)
    (train,), (test,) = read(tmp_path)
    assert np.array_equal(decode(train.sources[1], ""), IMAGES[1]) and len(test.sources) == 6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "has images but no labels for it; it holds images"),
        ({"a": IMAGES, "b": LABELS}, "has the arrays a, b; name them images and labels"),
        ({"images": IMAGES, "labels": LABELS[:5]}, r"6 images, but labels of shape \(5,\)"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels of type float64"),
        ({"images": IMAGES[0, 0], "labels": LABELS[:5]}, "allowed: "),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "no images; give at least one"),
        ({"images": IMAGES - 300.0, "labels": LABELS}, "values from -300"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "set.npz")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "set.npz", images=np.array([Trap()], dtype=object), labels=LABELS[:1])
    with pytest.raises(DataError, match="pickled Python objects, which can run code"):
        read(tmp_path / "set.npz")
    np.save(tmp_path / "images.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled Python objects"):
        read(tmp_path / "images.npy")
    assert not (tmp_path / "sprung").exists()


def test_a_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read as arrays"):
        read(path)


def test_settings_without_effect_on_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=IMAGES, labels=LABELS)
    with pytest.raises(DataError, match=r"data.eval_split: has no effect, because the arrays of"):
        read(tmp_path / "set.npz", eval_split="test")
