"""Columns of images in tables, as `datasets` writes them and as paths."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image as Pil

from fibec_ray.data.image_table import complete_images, image_column, sources_of
from fibec_ray.data.pixels import decode
from fibec_ray.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)


def png(image: Any) -> bytes:
    file = io.BytesIO()
    Pil.fromarray(image).save(file, "PNG")
    return file.getvalue()


CONTENT = [png(image) for image in IMAGES]


def column(values: list[Any], kind: Any = None) -> Any:
    return pa.table({"image": pa.array(values, kind)})["image"]


def test_the_images_of_datasets_are_read(tmp_path: Path) -> None:
    import datasets

    found = datasets.Dataset.from_dict(
        {"img": [Pil.fromarray(image) for image in IMAGES], "label": [0, 1]},
        features=datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}),
    )
    found.to_parquet(tmp_path / "train.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "train.parquet")
    assert image_column(table, table.column_names) == "img"
    for source, image in zip(sources_of(table["img"], tmp_path, "here"), IMAGES, strict=True):
        assert np.array_equal(decode(source, "here"), image)


def test_bytes_and_paths_are_read(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name, content in zip(("below/0.png", "1.png"), CONTENT, strict=True):
        (tmp_path / name).write_bytes(content)
    paths = ["below/0.png", str(tmp_path / "1.png")]
    structs = [{"bytes": None, "path": "below/0.png"}, {"bytes": CONTENT[1], "path": "lost.png"}]
    for values in (CONTENT, paths, structs):
        sources = sources_of(column(values), tmp_path, "here")
        assert [decode(source, "here").tobytes() for source in sources] == [image.tobytes() for image in IMAGES]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "here: no rows"),
        ([CONTENT[0], None], "here: no image in row 1; add it, set data.drop_missing=true"),
        ([{"bytes": None, "path": None}], "no image in row 0"),
        ([None], "no image in row 0"),
        (["lost.png"], "here, row 0: no file .*lost.png; paths are relative to the table's folder"),
        ([{"pixels": 1}], "structs of pixels, not of bytes and path; name another column with data.image"),
        ([[1, 2]], "the values are of type list"),
        ([3], "the values are of type int64"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sources_of(column(values), tmp_path, "here")


def test_a_path_without_files_is_refused() -> None:
    with pytest.raises(DataError, match="the path a.png of an image, but no image"):
        sources_of(column([{"bytes": None, "path": "a.png"}]), None, "hub x, split 'train'")


def test_rows_without_an_image_are_known() -> None:
    structs = [{"bytes": None, "path": None}, {"bytes": b"x", "path": None}, None]
    for images, complete in ((structs, [1]), (["a.png", "", None], [0])):
        table = pa.table({"image": images, "label": ["a", "b", "c"]})
        assert complete_images(table, "image", "label", "t").tolist() == complete


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"x": [b"1"], "label": ["a"]}, "x"),
        ({"a": ["1.png"], "label": ["cat"]}, "a"),
        ({"img": [b"1"], "mask": [b"1"]}, "img"),
        ({"left": [b"1"], "right": [b"1"]}, None),
        ({"Image Path": ["https://x/1"], "label": ["cat"]}, "Image Path"),
        ({"text": ["a"], "label": ["b"]}, None),
    ],
)
def test_the_column_is_found_by_its_type_then_by_its_name(columns: dict[str, list[Any]], found: str | None) -> None:
    assert image_column(pa.table(columns), list(columns)) == found
