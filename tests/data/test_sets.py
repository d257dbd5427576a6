"""Sets of samples on disk: any kind is opened by its folder, and tells what its batches look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fibec_ray.data.dense import DenseForm, DenseSet
from fibec_ray.data.encoded import EncodedSet, TextForm
from fibec_ray.data.sets import SETS, SampleSet, open_set
from fibec_ray.errors import DataError

OFFSETS, ANSWER_AT = np.array([0, 3, 8, 10]), np.array([0, 2, 0], dtype=np.int32)
"""Three texts of 3, 5 and 2 tokens; their responses have 2, 2 and 1."""


def texts(**changes: Any) -> EncodedSet:
    zeros = np.zeros(10, np.uint8)
    held = (np.arange(10, dtype=np.int32), OFFSETS, np.array([0, 1, 1]), ANSWER_AT, None, 0, zeros)
    return EncodedSet(*held, **changes)


def arrays(real: bool = False) -> DenseSet:
    return DenseSet(np.zeros((3, 1, 4, 4), np.float32), np.zeros(3, np.float32 if real else np.int64))


MADE = {
    "classes": texts(),
    "typed": texts(types=np.zeros(10, np.uint8)),
    "responses": texts(answers_are_texts=True),
    "images": arrays(),
    "values": arrays(real=True),
}
every_set = pytest.mark.parametrize("made", MADE.values(), ids=MADE)


@every_set
def test_a_saved_set_is_opened_with_the_same_form(made: SampleSet, tmp_path: Path) -> None:
    made.save(tmp_path / "set")
    found = open_set(tmp_path / "set")
    assert type(found) is type(made) is SETS[made.kind] and found.form == made.form
    assert found.lengths.tolist() == made.lengths.tolist()
    assert found.answer_lengths.tolist() == made.answer_lengths.tolist()


@every_set
def test_a_made_up_batch_has_the_columns_of_a_real_one(made: SampleSet) -> None:
    real = made.shard(np.array([1])).batch(torch.tensor([0]))
    found = made.form.batch(1, real.length)
    assert (found.num_samples, found.length) == (1, real.length) and hash(made.form) == hash(made.form)
    for mine, others in [(found.labels, real.labels), *((found.inputs[n], real.inputs[n]) for n in real.inputs)]:
        assert mine.shape == others.shape and mine.dtype == others.dtype
    assert found.inputs.keys() == real.inputs.keys() and found.real(torch.zeros(1, real.length, 2)).all()


def test_lengths() -> None:
    assert texts().lengths.tolist() == [3, 5, 2] and texts().answer_lengths.tolist() == [0, 0, 0]
    assert texts(answers_are_texts=True).answer_lengths.tolist() == [2, 2, 1]
    assert arrays().lengths.tolist() == [1, 1, 1] and arrays().answer_lengths.tolist() == [0, 0, 0]
    assert texts(answers_are_texts=True).form == TextForm(2) and arrays(real=True).form == DenseForm((1, 4, 4), True)


def test_made_up_responses_are_as_long_as_the_longest_or_as_fits() -> None:
    for length, at in ((7, 3), (4, 0), (2, 0)):
        assert TextForm(longest_answer=3).batch(2, length).inputs["answer_at"].tolist() == [at, at]


def test_a_set_of_an_earlier_release_is_opened_by_its_arrays(tmp_path: Path) -> None:
    for made in (texts(), arrays()):
        made.save(tmp_path / "set")
        about = json.loads((tmp_path / "set" / "set.json").read_text())
        del about["kind"]
        about.pop("answers_are_texts", None)
        (tmp_path / "set" / "set.json").write_text(json.dumps(about))
        assert type(open_set(tmp_path / "set")) is type(made)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    texts().save(tmp_path / "set")
    path = tmp_path / "set" / "set.json"
    path.write_text(path.read_text().replace('"kind": "texts"', '"kind": "sounds"'))
    with pytest.raises(DataError, match="of the kind sounds, this version reads texts, source_target, arrays"):
        open_set(tmp_path / "set")
