"""Classes of images: from class folders, arrays and tables (`images`), or embedded (`shapes`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from fibec_ray.data import shapes
from fibec_ray.data.columns import class_names, require_columns
from fibec_ray.data.examples import Origin
from fibec_ray.data.image_rows import Images
from fibec_ray.data.image_source import LabelledImages, in_tables, read_images
from fibec_ray.data.image_table import complete_images, folder_of, sources_of
from fibec_ray.data.images import encode_images
from fibec_ray.data.labels import class_ids, read_labels
from fibec_ray.data.own import OwnData
from fibec_ray.data.own_images import examine_images
from fibec_ray.data.pixels import source_of
from fibec_ray.data.sets import SampleSet
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.source import Table, nearby
from fibec_ray.data.stamps import Stamp
from fibec_ray.encoder import Encoder, Reads
from fibec_ray.errors import DataError
from fibec_ray.files.storage import is_url
from fibec_ray.image_reading import Plain
from fibec_ray.tasks.base import generated
from fibec_ray.tasks.classification import Classes, refuse_other_aliases
from fibec_ray.tasks.tables import FILES_ONLY, FromTables


class ImageClasses(Classes):
    """Images with one of several classes. A pretrained backbone reads them as its image processor says."""

    reads: ClassVar[Reads] = "image"
    pipeline: ClassVar[str | None] = "image-classification"

    def encode(self, rows: Images, encoder: Encoder) -> SampleSet:
        return encode_images(rows, encoder.processor or Plain())

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Images:
        """inputs: paths, Pillow images, content of image files, or arrays (H, W, 3) or (H, W)."""
        sources = [source_of(value, f"input {at}") for at, value in enumerate(inputs)]
        size = (shape[1], shape[2]) if shape else self.read_size
        return Images(sources, np.zeros(len(sources), np.int64), size=size)

    @property
    def read_size(self) -> tuple[int, int] | None:
        """(H, W) that images are resized to when they are read; None: their own."""
        return None

    def input_columns(self, there: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
        wanted = tuple(chosen) or ("image",)
        if len(wanted) != 1 or wanted[0] not in there:
            raise DataError(f"has the columns {', '.join(there)}; name the column with the paths: --columns NAME")
        return wanted

    @property
    def typed_columns(self) -> tuple[str, ...]:
        return ("image",)


class ImageClassification(ImageClasses, FromTables):
    """Images from class folders, numpy's arrays, or tables with a column of images."""

    kind: Literal["images"] = "images"
    image_column: str = Field("image", description="column of the images: their content, or their paths")
    label_column: str = Field("label", description="column of the class labels")
    label_aliases: dict[str, str] = Field({}, description="other spellings of class names, as some copies have them")
    image_size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="height and width in pixels that images are resized to when they are read; null: their own"
    )

    uses: ClassVar[tuple[str, ...]] = (
        *(name for name in FromTables.uses if name != "max_length"),
        "image_column",
        "image_size",
        "label_column",
        "labels",
        "drop_missing",
    )
    found_in_files: ClassVar[bool] = True

    @classmethod
    def examined(
        cls, config: DataConfig, user_column: str | None, label_names: Sequence[str]
    ) -> tuple[OwnData, dict[str, Any]]:
        found = examine_images(config, user_column, label_names)
        columns = {"image_column": found.columns[0], "label_column": found.label_column} if found.columns else {}
        return found, columns

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Images, Images]:
        with nearby(config.path) as path:
            here = config.model_copy(update={"path": path})
            if in_tables(path):
                found = super().load(here, seed, user_column)
            else:
                found = self._not_in_tables(here, seed, user_column)
            if is_url(config.path or ""):
                found = (found[0].read(), found[1].read())  # the copy of the files is about to be deleted
        return replace(found[0], size=self.image_size), replace(found[1], size=self.image_size)

    @property
    def read_size(self) -> tuple[int, int] | None:
        return self.image_size

    def _not_in_tables(self, config: DataConfig, seed: int, user_column: str | None) -> tuple[Images, Images]:
        if user_column:
            raise DataError(
                f"partition.column: images in folders and arrays have no column {user_column!r}; set data.path to a "
                "table with a column of paths, or choose another partition.kind"
            )
        if unused := config.given(*FILES_ONLY, "drop_missing", "label_column", "image_column"):
            raise DataError(f"data.{unused[0]}: has no effect, because {config.path} is not a table; remove it")
        train, test = read_images(self, config)
        ids = class_ids([part.labels for part in (*train, *test)], self, config.labels)
        parts = [_rows(part, labels) for part, labels in zip((*train, *test), ids, strict=True)]
        return self.with_test(parts[: len(train)], parts[len(train) :], config, seed)

    def columns(self, there: list[str], where: str) -> tuple[str, ...]:
        wanted = tuple(dict.fromkeys((self.image_column, self.label_column)))
        return require_columns(where, wanted, there, "set data.image or data.label")

    def rows_of(self, tables: Sequence[Table], config: DataConfig) -> list[Images]:
        parts = [self._read(table, config) for table in tables]
        ids = class_ids([part.labels for part, _ in parts], self, config.labels)
        return [_rows(part, labels, origin) for (part, origin), labels in zip(parts, ids, strict=True)]

    def _read(self, table: Table, config: DataConfig) -> tuple[LabelledImages, Origin]:
        content, where = table
        rows = complete_images(content, self.image_column, self.label_column, where) if config.drop_missing else None
        origin = Origin.of(where, content.num_rows, rows)
        names = class_names(content.schema.metadata, self.label_column)
        content = content if rows is None else content.take(rows)
        folder = folder_of(where) if config.reads_files else None
        sources = sources_of(content[self.image_column], folder, f"{where}, column '{self.image_column}'")
        labels = read_labels(content[self.label_column], names, self, f"{where}, column '{self.label_column}'")
        return LabelledImages(sources, replace(labels, rows=rows)), origin

    def strata(self, train: Images) -> Any:
        return train.labels

    def stamps(self, config: DataConfig) -> tuple[Stamp, ...]:
        return super().stamps(config) if is_url(config.path or "") or in_tables(config.path) else ()

    @model_validator(mode="after")
    def _aliases_fit(self) -> Self:
        refuse_other_aliases(self.label_aliases, self.label_names)
        return self


class Shapes(ImageClasses):
    """The embedded images: colored shapes on noise, with a known true difficulty (`data.shapes`)."""

    kind: Literal["shapes"] = "shapes"
    label_names: tuple[str, ...] = Field(
        tuple(shapes.SHAPES), min_length=2, max_length=len(shapes.SHAPES), description="names of the shapes, in order"
    )

    embedded: ClassVar[str | None] = "shapes"
    with_own_files: ClassVar[str | None] = "images"

    def effective(self, config: DataConfig) -> Self:
        """The same task with the first classes only, as many as `data.shapes.num_classes`."""
        return super().effective(config).first_classes(config.shapes.num_classes)

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Images, Images]:
        return generated(shapes.generate, seed, config.shapes)


def _rows(part: LabelledImages, labels: Any, origin: Origin | None = None) -> Images:
    return Images(part.sources, labels, origin=origin)
