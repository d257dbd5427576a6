"""Files of a user travel with a job, as far as the experiment reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.data.settings import DataConfig
from fibec_ray.jobs.parcel import settings_for
from fibec_ray.tasks import load

ROWS = "".join(f"{word} number {i},{word}\n" for i in range(12) for word in ("good", "bad"))


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        (["mine.csv"], ["data.path=mine.csv"]),
        (["sets/train.csv", "sets/test.csv"], ["data.path=sets/train.csv"]),
        (["sets/train.csv", "sets/test.csv"], ["data.path=sets"]),
        (["one/rows.csv", "two/rows.csv"], ["data.path=one/rows.csv", "data.test=two/rows.csv"]),
        (["one/rows.csv", "two/rows.csv"], ["data.train=one/rows.csv", "data.test=two/rows.csv"]),
        ([f"s/train-{i:05}-of-00003.csv" for i in range(3)], ["data.path=s/train-00000-of-00003.csv"]),
    ],
)
def test_the_cluster_reads_the_same_rows(
    files: list[str], settings: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, file in enumerate(files):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("text,label\n" + ROWS.replace("number", f"number {number}"))
    experiment = load_experiment(config_folder() / "own-data.yaml", settings)
    here = load(experiment.task, experiment.data, 0)
    work = tmp_path / "work"
    work.mkdir()
    config = DataConfig.model_validate(settings_for(experiment, work)["data"])
    monkeypatch.chdir(work)
    there = load(experiment.task, config, 0)
    assert [part.texts_a for part in here] == [part.texts_a for part in there]
    assert len(here[0]) + len(here[1]) == 24 * len(files)
