"""From rows to a federation on disk: what devices get, the anchors by hand, and the real sets where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED_DATA, named

from fibec_ray.config.load import check, load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.data.partition import Iid
from fibec_ray.errors import ConfigError, DataError
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.prepare import Prepared
from fibec_ray.models.backbone import load_tokenizer
from fibec_ray.models.spec import Backbone
from fibec_ray.runs.simulation import prepare

REAL = [path.stem for path in sorted((config_folder() / "tasks").glob("*.yaml"))]
REAL = [name for name in REAL if (SHARED_DATA / name / "train.parquet").is_file()]
QUICKSTART = config_folder() / "quickstart.yaml"


def prepared(settings: dict[str, Any], folder: Path) -> tuple[Prepared, Federation]:
    folder.mkdir(exist_ok=True)
    return prepare(check(settings, "test"), folder), Federation.load(folder / "data")


def csv_of(path: Path, labels: list[int]) -> None:
    path.write_text("sentence,label\n" + "".join(f"film number {i},{label}\n" for i, label in enumerate(labels)))


# --- the federation


def test_every_row_belongs_to_exactly_one_device(tiny_settings: Any, tmp_path: Path) -> None:
    found, data = prepared(tiny_settings(), tmp_path / "run")
    assert data.num_devices == 6
    for rows, size in ((data.train_rows, 72), (data.test_rows, 24)):
        assert sorted(np.concatenate(rows).tolist()) == list(range(size))
    assert found.num_classes == 6
    assert found.heterogeneity["smallest_shard"] == min(map(len, data.train_rows))
    assert found.heterogeneity["largest_shard"] == max(map(len, data.train_rows))


def test_what_is_saved_is_what_is_loaded(tiny_settings: Any, tmp_path: Path) -> None:
    _, data = prepared(tiny_settings(), tmp_path / "run")
    data.save(tmp_path / "again")
    again = Federation.load(tmp_path / "again")
    for device in range(6):
        assert np.array_equal(again.train_rows[device], data.train_rows[device])
        assert np.array_equal(again.test_shard(device).labels, data.test_shard(device).labels)
    assert np.array_equal(again.train.tokens, data.train.tokens)
    assert again.test_set().num_samples == 24


def test_a_device_may_have_no_test_rows(tiny_settings: Any, tmp_path: Path) -> None:
    settings = tiny_settings(
        num_devices=30, partition={"kind": "iid"}, data={"synthetic": {"num_train": 60, "num_test": 4}}
    )
    _, data = prepared(settings, tmp_path / "run")
    sizes = [data.test_shard(device).num_samples for device in range(30)]
    assert sum(sizes) == 4 and min(sizes) == 0


def test_the_same_seed_prepares_the_same_files(tiny_settings: Any, tmp_path: Path) -> None:
    def files(seed: int, name: str) -> dict[str, bytes]:
        prepared(tiny_settings(seed=seed), tmp_path / name)
        folder = tmp_path / name / "data"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    one = files(3, "a")
    assert one == files(3, "b")
    assert one != files(4, "c")


def test_methods_are_compared_on_the_same_data(tiny_settings: Any, tmp_path: Path) -> None:
    rows = [prepared(tiny_settings(name), tmp_path / name)[1] for name in ("fedavg", "fibecfed")]
    assert all(np.array_equal(a, b) for a, b in zip(rows[0].train_rows, rows[1].train_rows, strict=True))
    assert np.array_equal(rows[0].train.tokens, rows[1].train.tokens)


# --- anchors, by hand


def test_anchors_by_hand(tiny_settings: Any, tmp_path: Path) -> None:
    """Eight training rows, five of class 1; of four test rows one is of class 1: always saying 1 is right 1 time in 4.

    With one device its own majority class is the same one.
    """
    csv_of(tmp_path / "train.csv", [1, 1, 1, 1, 1, 0, 0, 0])
    csv_of(tmp_path / "validation.csv", [0, 1, 0, 0])
    settings = tiny_settings(num_devices=1, cohort_size=1, partition={"kind": "iid"})
    settings |= {"task": named("tasks", "sst2"), "data": {"path": str(tmp_path)}}
    found, _ = prepared(settings, tmp_path / "run")
    assert found.anchors == {"majority": 0.25, "own_majority": 0.25}
    assert found.num_classes == 2


def test_the_own_majority_anchor_is_each_devices_own(tiny_settings: Any, tmp_path: Path) -> None:
    """Shards of one class each: a device's own class is always right, the most frequent class half the time."""
    csv_of(tmp_path / "train.csv", [0, 1] * 8)
    csv_of(tmp_path / "validation.csv", [0, 1] * 4)
    settings = tiny_settings(num_devices=2, cohort_size=1, partition={"kind": "shards", "shards_per_device": 1})
    settings |= {"task": named("tasks", "sst2"), "data": {"path": str(tmp_path)}}
    found, data = prepared(settings, tmp_path / "run")
    assert sorted(set(data.train_shard(d).labels.tolist()).pop() for d in (0, 1)) == [0, 1]
    assert found.anchors == {"majority": 0.5, "own_majority": 1.0}


@pytest.mark.parametrize(
    ("metric", "scores"),
    [
        ("mcc", {"majority_metric": 0.0, "own_majority_metric": 1.0}),  # a constant has no correlation
        ("accuracy_f1", {"majority_metric": (0.5 + 2 / 3) / 2, "own_majority_metric": 1.0}),  # precision .5, recall 1
    ],
)
def test_anchors_are_in_the_tasks_own_metric_too(
    metric: str, scores: dict[str, float], tiny_settings: Any, tmp_path: Path
) -> None:
    csv_of(tmp_path / "train.csv", [0, 1, 1] * 6)
    csv_of(tmp_path / "validation.csv", [0, 1] * 6)
    settings = tiny_settings(num_devices=2, cohort_size=1, partition={"kind": "pathological", "classes_per_device": 1})
    settings |= {"task": named("tasks", "sst2") | {"metric": metric}, "data": {"path": str(tmp_path)}}
    found, _ = prepared(settings, tmp_path / "run")
    assert found.anchors == pytest.approx({"majority": 0.5, "own_majority": 1.0} | scores)


# --- what a person should know


def test_samples_that_are_cut_are_noted(tiny_settings: Any, tmp_path: Path) -> None:
    for split, long in (("train", 5), ("validation", 1)):
        rows = [f"{'a film as long as that ' if i < long else ''}good,{i % 2}\n" for i in range(10)]
        (tmp_path / f"{split}.csv").write_text("sentence,label\n" + "".join(rows))
    settings = tiny_settings(num_devices=2, cohort_size=1, partition={"kind": "iid"}) | {"task": named("tasks", "sst2")}
    for length, note in (
        (6, "5 of 10 training samples (50%) and 1 of 10 test samples (10%) were truncated to data.max_length=6"),
        (9, ""),
    ):
        settings["data"] = {"path": str(tmp_path), "max_length": length}
        assert prepared(settings, tmp_path / f"run{length}")[0].note == note


# --- label words


@pytest.mark.parametrize(("head", "config"), [("masked_lm", "bert"), ("causal_lm", "llama")])
def test_label_words_are_the_tokens_of_the_verbaliser(
    head: str, config: str, tiny_settings: Any, tmp_path: Path
) -> None:
    settings = tiny_settings(backbone={"head": head, "config": {"model_type": config}}, data={"max_length": 48})
    found, data = prepared(settings, tmp_path / "run")
    tokenizer = load_tokenizer(Backbone())
    assert found.label_words is not None
    words = [tokenizer.decode([token]).strip() for token in found.label_words]
    assert words == settings["task"]["verbaliser"]
    batch = data.test_set().batch(torch.arange(3))
    answers = batch.inputs["input_ids"][range(3), batch.inputs["answer_at"]]
    if head == "masked_lm":
        assert answers.tolist() == [tokenizer.mask_token_id] * 3
    else:  # the prompt's last token
        assert batch.inputs["answer_at"].tolist() == (batch.inputs["attention_mask"].sum(1) - 1).tolist()


def test_a_classification_head_has_no_label_words(tiny_settings: Any, tmp_path: Path) -> None:
    assert prepared(tiny_settings(), tmp_path / "run")[0].label_words is None


def test_label_words_of_several_tokens_are_refused(tiny_settings: Any, tmp_path: Path) -> None:
    settings = tiny_settings(backbone={"head": "masked_lm"}, data={"max_length": 48})
    settings["task"] = settings["task"] | {
        "verbaliser": ["weather", "travel", "food", "music", "money", "unhealthiness"]
    }
    with pytest.raises(DataError, match="the verbaliser word 'unhealthiness' is"):
        prepared(settings, tmp_path / "run")


def test_topics_need_no_labels_and_are_measured(tiny_settings: Any, tmp_path: Path) -> None:
    settings = tiny_settings(num_devices=3, cohort_size=1, partition={"kind": "topics", "num_topics": 4, "alpha": 0.1})
    found, data = prepared(settings, tmp_path / "run")
    assert sorted(np.concatenate(data.train_rows).tolist()) == list(range(72))
    shown = {"label_tv_mean", "length_shift_mean", "topic_tv_mean", "smallest_shard", "largest_shard"}
    assert set(found.heterogeneity) == shown
    assert found.heterogeneity["topic_tv_mean"] > 0.2 and min(found.heterogeneity.values()) >= 0


# --- refused


def test_a_partition_that_starves_a_device_is_refused_before_anything_is_encoded(
    tiny_settings: Any, tmp_path: Path
) -> None:
    settings = tiny_settings(partition={"kind": "dirichlet_quantity", "alpha": 0.01})
    with pytest.raises(
        ConfigError, match=r"partition.alpha: 0.01 leaves device \d with 0 of at least 1 samples; raise alpha"
    ):
        prepared(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_a_text_that_has_no_room_beside_its_template_is_refused(tiny_settings: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.max_length: 6 tokens have no room"):
        prepared(tiny_settings(backbone={"head": "masked_lm"}, data={"max_length": 6}), tmp_path / "run")


# --- real data


@pytest.mark.skipif(not REAL, reason="needs the data sets in shared/data beside the checkout")
@pytest.mark.parametrize("name", REAL)
def test_a_real_set_becomes_a_federation(name: str, tmp_path: Path) -> None:
    """500 rows of each set, in 20 shards: the anchor is that of the labels, and texts are there as known tokens."""
    changes = [f"task={name}", f"data={{path: {SHARED_DATA / name}, max_train: 400, max_test: 100, max_length: 64}}"]
    experiment = load_experiment(QUICKSTART, [*changes, "partition=iid"])
    assert isinstance(experiment.partition, Iid)
    found = prepare(experiment, tmp_path)
    data = Federation.load(tmp_path / "data")
    assert [len(rows) for rows in data.train_rows] == [20] * 20 and data.test_set().num_samples == 100
    counts = np.bincount(data.train.labels, minlength=found.num_classes)
    assert found.num_classes == experiment.task.num_classes == len(counts)
    majority = float(np.mean(data.test.labels == counts.argmax()))
    assert found.anchors["majority"] == pytest.approx(majority)
    assert 1 / found.num_classes - 0.15 < majority < 1
    tokenizer = load_tokenizer(experiment.backbone)
    batch = data.train_shard(0).batch(torch.arange(4))
    for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True):
        assert ids[0] == tokenizer.cls_token_id and ids[int(mask.sum()) - 1] == tokenizer.sep_token_id
        assert tokenizer.unk_token_id not in ids.tolist()
        assert len(tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)) > 3
