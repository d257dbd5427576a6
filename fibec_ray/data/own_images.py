"""Looks at a user's own images and works out the task: classes, columns, and which images are for testing.

`own.py` does the same for texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fibec_ray.data.columns import require_columns
from fibec_ray.data.guess import Roles, by_names
from fibec_ray.data.image_source import in_tables, read_images
from fibec_ray.data.image_table import image_column
from fibec_ray.data.infer_classes import names_of_classes
from fibec_ray.data.own import OwnData, examine, title_of
from fibec_ray.data.readers import read_table
from fibec_ray.data.settings import TEST_FRACTION, DataConfig
from fibec_ray.data.source import nearby
from fibec_ray.errors import DataError

REMEDY = "set data.image or data.label to a column's name"


class _AnySplits:
    """A task that takes the splits that the files have."""

    name = "images"
    train_splits: tuple[str, ...] = ("train",)
    eval_split: str | None = None


def examine_images(config: DataConfig, user_column: str | None = None, label_names: Sequence[str] = ()) -> OwnData:
    """The classes, columns and test images of a user's own images. The arguments are those of `own.examine`."""
    try:
        with nearby(config.path) as local:
            if not in_tables(local):
                return _without_tables(config, str(local), label_names)
    except OSError as error:
        raise DataError(
            f"data.path: {config.path}: cannot be read ({error.strerror or error}); give another path"
        ) from error
    return examine(config, user_column, label_names, _table)


def _without_tables(config: DataConfig, local: str, label_names: Sequence[str]) -> OwnData:
    train, test = read_images(_AnySplits(), config.model_copy(update={"path": local}))
    names = tuple(label_names) or names_of_classes([part.labels for part in (*train, *test)], config.drop_missing)
    count = sum(len(part.sources) for part in train)
    if not test:
        count -= max(1, round((config.test_fraction or TEST_FRACTION) * count))
    title = title_of(config.path, None)
    return OwnData(
        title, config.path, config.train, config.test, (), "", {"label_names": list(names)}, max(count, 0), 0
    )


def _table(path: Path, config: DataConfig, roles: Roles | None, user_column: str | None) -> tuple[Any, Roles]:
    """The columns of labels and users of a table; and which columns have the images and the labels."""
    others = [user_column] if user_column else []
    if roles is not None:
        wanted = (str(roles.label), *others)
        return read_table(path, config.layout, lambda there: require_columns(str(path), wanted, there, REMEDY)), roles
    table = read_table(path, config.layout, lambda there: tuple(there))
    there = list(table.column_names)
    images = config.image_column or image_column(table, [name for name in there if name not in others])
    label = config.label_column or by_names(there, (images,) if images else None, None, others).label
    require_columns(str(path), tuple(name for name in (images, label, *others) if name), there, REMEDY)
    if images is None or label is None:
        missing = " and which has the ".join(
            what for what, found in (("images", images), ("labels", label)) if found is None
        )
        raise DataError(f"{path}: cannot tell which column has the {missing}; {REMEDY}; it has {', '.join(there)}")
    return table.select([label, *others]), Roles((images,), label)
