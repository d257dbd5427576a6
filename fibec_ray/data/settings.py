"""The `data` section of an experiment: where the rows are, how the files are written, which columns matter."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, PositiveInt, ValidationInfo, field_validator, model_validator

from fibec_ray.data.exercises import ExerciseSettings
from fibec_ray.data.instructions import Columns
from fibec_ray.data.labels import Reading
from fibec_ray.data.layout import Delimiter, Format, Layout
from fibec_ray.data.mentions import MentionSettings
from fibec_ray.data.pde import PdeSettings
from fibec_ray.data.points import RegressionSettings
from fibec_ray.data.preference_exercises import PreferenceSettings
from fibec_ray.data.shapes import ShapeSettings
from fibec_ray.data.similar import SimilarSettings
from fibec_ray.data.synthetic import SyntheticSettings
from fibec_ray.data.tagging import TaggingSettings
from fibec_ray.files.storage import refuse_secrets

FILE_SETTINGS = ("path", "train", "test")
TEXT_FILE_SETTINGS = ("delimiter", "encoding", "header")
MAX_LENGTH = 64
TEST_FRACTION = 0.2
TEST_FRACTION_INSTRUCTIONS = 0.1
_SHORT_NAMES = {"text": "text_columns", "label": "label_column", "image": "image_column"}


class DataConfig(BaseModel, frozen=True, extra="forbid"):
    """The `data` section of an experiment. None leaves the choice to the task.

    `text`, `image` and `label` are short for `text_columns`, `image_column` and `label_column`: `data.text=review
    data.label=stars`.
    """

    path: str | None = Field(
        None,
        description="a file of rows, or a folder with train.* and test.* files (Parquet, CSV, TSV, JSON, JSON lines; "
        ".gz too); a path or a URL (s3://, gs://, file://)",
    )
    format: Format = Field("auto", description="file format; auto: by the file's suffix")
    delimiter: Delimiter = Field("auto", description="what separates the columns of a CSV; auto: by its first lines")
    encoding: str = Field("auto", description="of text files, such as utf-8, cp1252, utf-16; auto: by their bytes")
    header: bool = Field(True, description="a CSV's first line has the column names; false: they are f0, f1, f2 ...")
    train: str | None = Field(None, description="file of the training rows, relative to path if path is a folder")
    test: str | None = Field(None, description="file of the test rows, relative to path if path is a folder")
    revision: str | None = Field(None, min_length=1, description="of the data set on the hub: a commit, tag or branch")
    train_splits: tuple[str, ...] | None = Field(None, min_length=1, description="splits to train on")
    eval_split: str | None = Field(None, description="split to evaluate on")
    text_columns: tuple[str, ...] | None = Field(
        None, min_length=1, max_length=2, description="column of the text, or two columns for pairs of texts"
    )
    image_column: str | None = Field(None, description="column of the images: their content, or their paths")
    image_size: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="height and width in pixels that images are resized to when they are read; null: their "
        "own size. The backbone's image processor resizes them further",
    )
    label_column: str | None = Field(None, description="column of the labels")
    labels: Reading = Field(
        "auto",
        description="how whole numbers in label_column are read: names (of classes), ids (positions in the task's "
        "label_names), auto (names if every one of them is a class name, otherwise ids)",
    )
    drop_missing: bool = Field(False, description="leave out rows without a text or a label; false: they are an error")
    columns: Columns = Field(Columns(), description="columns of instructions; they override the task's own")
    test_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the rows to hold out for testing if there are no test rows: seeded, the same share of "
        f"each label; null: {TEST_FRACTION}, for instructions {TEST_FRACTION_INSTRUCTIONS}",
    )
    max_train: PositiveInt | None = Field(None, description="seeded subset of the training rows; null: all")
    max_test: PositiveInt | None = Field(None, description="seeded subset of the test rows; null: all")
    max_length: int = Field(MAX_LENGTH, ge=4, description="tokens per sample, special tokens included")
    synthetic: SyntheticSettings = Field(SyntheticSettings(), json_schema_extra={"task": "synthetic"})
    regression: RegressionSettings = Field(RegressionSettings(), json_schema_extra={"task": "regression"})
    pde: PdeSettings = Field(PdeSettings(), json_schema_extra={"task": "fisher-kpp"})
    shapes: ShapeSettings = Field(ShapeSettings(), json_schema_extra={"task": "shapes"})
    similar: SimilarSettings = Field(SimilarSettings(), json_schema_extra={"task": "similar"})
    mentions: MentionSettings = Field(MentionSettings(), json_schema_extra={"task": "mentions"})
    tagging: TaggingSettings = Field(TaggingSettings(), json_schema_extra={"task": "tagging"})
    exercises: ExerciseSettings = Field(ExerciseSettings(), json_schema_extra={"task": "instructions"})
    preferences: PreferenceSettings = Field(PreferenceSettings(), json_schema_extra={"task": "preferences"})

    @model_validator(mode="before")
    @classmethod
    def _short_names(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        for short, field in _SHORT_NAMES.items():
            if short in raw and raw.get(field) is not None:
                raise ValueError(f"{short} and {field} are the same setting; give one of them")
            if short in raw:
                raw[field] = raw.pop(short)
        for field in _SHORT_NAMES.values():
            if isinstance(raw.get(field), int) and not isinstance(raw[field], bool):
                raw[field] = str(raw[field])  # a column may be called 0
        if isinstance(raw.get("text_columns"), str):
            raw["text_columns"] = (raw["text_columns"],)
        return raw

    @field_validator(*FILE_SETTINGS)
    @classmethod
    def _no_secrets(cls, value: str | None, info: ValidationInfo) -> str | None:
        refuse_secrets(value, f"data.{info.field_name}")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "".encode("utf-8" if value == "auto" else value)
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"{value!r} is not a text encoding that Python knows; try utf-8, cp1252, latin-1 or utf-16"
            ) from error
        return value

    @property
    def reads_files(self) -> bool:
        """True if rows come from the user's files."""
        return any(getattr(self, name) is not None for name in FILE_SETTINGS)

    @property
    def layout(self) -> Layout:
        """How the files are written."""
        return Layout(self.format, self.delimiter, self.encoding, self.header)

    def given(self, *names: str) -> list[str]:
        """The settings among `names` that differ from their defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


EMBEDDED = {
    name: str(field.json_schema_extra["task"])
    for name, field in DataConfig.model_fields.items()
    if isinstance(field.json_schema_extra, dict) and "task" in field.json_schema_extra
}
"""Sections about generated rows, and the packaged task that each belongs to."""
