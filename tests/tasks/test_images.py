"""Images of a user's own: class folders, arrays and tables, for image backbones and networks from scratch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import TINY_CONVNEXT, TINY_SWIN, TINY_VIT, make_shapes, named
from PIL import Image as Pil

import fibec_ray
from fibec_ray.config.load import build_experiment, check, load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.data.image_rows import Images
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.shapes import ShapeSettings, generate
from fibec_ray.errors import ConfigError, DataError
from fibec_ray.models.image_processor import default_processor
from fibec_ray.preflight.check import foresee
from fibec_ray.roundlog.reader import read_rounds, read_table
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.runs.verify import verify
from fibec_ray.tasks import load, parse_task

ROWS = generate(36, 0, "train", ShapeSettings(size=16, num_classes=3, label_noise=0))
NAMES = ("disc", "square", "triangle")
TASK = {"name": "photos", "kind": "images", "label_names": NAMES, "eval_split": None}


def png(image: Any) -> bytes:
    file = io.BytesIO()
    Pil.fromarray(image).save(file, "PNG")
    return file.getvalue()


def folders(place: Path, rows: slice = slice(None)) -> Path:
    for at, (image, label) in enumerate(zip(ROWS.sources[rows], ROWS.labels[rows], strict=True)):
        path = place / NAMES[label] / f"{at:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return place


def table(place: Path, **columns: Any) -> Path:
    images = [{"bytes": png(image), "path": None} for image in ROWS.sources]
    found = {"image": images, "label": [NAMES[label] for label in ROWS.labels], **columns}
    pyarrow.parquet.write_table(pa.table(found), place)
    return place


def read(path: Path, task: dict[str, Any] = TASK, user_column: str | None = None, **data: Any) -> tuple[Images, Images]:
    return load(parse_task(task), DataConfig.model_validate({"path": str(path), **data}), 0, user_column)


def settings(path: Path, backbone: Any = None, **changes: Any) -> dict[str, Any]:
    return make_shapes(
        "fedavg",
        task={"kind": "images"},
        data={"path": str(path)},
        backbone=backbone,
        rounds=1,
        num_devices=3,
        **changes,
    )


# --- rows


def pixels(rows: Images) -> set[bytes]:
    return {rows.image(row).tobytes() for row in range(len(rows))}


def test_folders_arrays_and_tables_give_the_same_rows(tmp_path: Path) -> None:
    csv = folders(tmp_path / "csv")
    listed = [f"{path.relative_to(csv)},{path.parent.name}" for path in sorted(csv.rglob("*.png"))]
    (csv / "all.csv").write_text("\n".join(["image,label", *listed]))
    np.savez(tmp_path / "set.npz", images=np.stack(ROWS.sources), labels=[NAMES[label] for label in ROWS.labels])
    wanted = {image.tobytes() for image in ROWS.sources}
    for path in (folders(tmp_path / "folders"), tmp_path / "set.npz", table(tmp_path / "all.parquet"), csv / "all.csv"):
        train, test = read(path)
        assert (len(train), len(test)) == (29, 7)
        assert pixels(train) | pixels(test) == wanted
        assert np.bincount(np.concatenate([train.labels, test.labels])).tolist() == [12, 12, 12]


def test_labels_mean_the_same_from_every_source(tmp_path: Path) -> None:
    by_image = {image.tobytes(): label for image, label in zip(ROWS.sources, ROWS.labels, strict=True)}
    for path in (folders(tmp_path / "folders"), table(tmp_path / "all.parquet")):
        train, _ = read(path)
        assert all(by_image[train.image(row).tobytes()] == train.labels[row] for row in range(len(train)))


def test_users_come_from_a_column(tmp_path: Path) -> None:
    path = table(tmp_path / "all.parquet", who=[f"u{row % 4}" for row in range(36)])
    train, test = read(path, user_column="who")
    assert set(train.users or ()) == set(test.users or ()) == {"u0", "u1", "u2", "u3"}
    with pytest.raises(DataError, match="partition.column: images in folders and arrays have no column 'who'"):
        read(folders(tmp_path / "folders"), user_column="who")


def test_missing_images_and_labels_can_be_left_out(tmp_path: Path) -> None:
    images = [{"bytes": png(image), "path": None} for image in ROWS.sources]
    labels: list[str | None] = [NAMES[label] for label in ROWS.labels]
    images[3], labels[5] = {"bytes": None, "path": None}, None
    path = tmp_path / "all.parquet"
    pyarrow.parquet.write_table(pa.table({"image": images, "label": labels}), path)
    with pytest.raises(DataError, match="column 'image': no image in row 3; add it, set data.drop_missing=true"):
        read(path)
    train, test = read(path, drop_missing=True)
    assert len(train) + len(test) == 34


def test_a_damaged_image_is_named_by_file_and_row(tmp_path: Path) -> None:
    images = [{"bytes": png(image), "path": None} for image in ROWS.sources]
    images[7] = {"bytes": b"broken", "path": None}
    path = tmp_path / "all.parquet"
    pyarrow.parquet.write_table(pa.table({"image": images, "label": ROWS.labels}), path)
    experiment = check(settings(path) | {"task": TASK}, "test")
    with pytest.raises(DataError, match=r"all.parquet, row 7: is not an image that can be read"):
        simulate(experiment, tmp_path / "run")
    place = folders(tmp_path / "folders")
    broken = place / "disc" / "broken.jpg"
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=r"disc/broken.jpg: is not an image that can be read"):
        simulate(check(settings(place), "test"), tmp_path / "run2")


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ({"label_names": ("disc", "square")}, {}, "class 'triangle' is unknown to task photos"),
        ({}, {"format": "csv"}, "data.format: has no effect, because .* is not a table"),
        ({}, {"max_length": 32}, "data.max_length: has no effect"),
        ({}, {"shapes": {"size": 20}}, "data.shapes: has no effect, because task photos is of kind images"),
        ({}, {"image": "img"}, "data.image_column: has no effect, because .* is not a table"),
        ({"eval_split": "test"}, {}, "no folder of test images; it holds disc, square, triangle"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, task: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(folders(tmp_path / "folders"), {**TASK, **task}, **data)


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no column 'img'; it has image, label; did you mean .* set data.image or data."
    ):
        read(table(tmp_path / "all.parquet"), image="img")


# --- a user's own images without a task


def test_a_folder_says_its_classes_and_its_test_images(tmp_path: Path) -> None:
    folders(tmp_path / "photos" / "train", slice(0, 24)), folders(tmp_path / "photos" / "test", slice(24, 36))
    experiment = check(settings(tmp_path / "photos"), "test")
    assert experiment.task.name == "photos" and experiment.task.num_scores == 3
    train, test = load(experiment.task, experiment.data, 0)
    assert (len(train), len(test)) == (24, 12)


def test_a_table_says_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    images = [{"bytes": png(image), "path": None} for image in ROWS.sources]
    pyarrow.parquet.write_table(pa.table({"id": range(36), "photo": images, "class": ROWS.labels}), path)
    task: Any = check(settings(path), "test").task
    assert (task.image_column, task.label_column, task.label_names) == ("photo", "class", ("0", "1", "2"))
    pyarrow.parquet.write_table(pa.table({"photo": images, "a": ROWS.labels, "b": ROWS.labels}), path)
    with pytest.raises(DataError, match="cannot tell which column has the labels; set data.image or data.label"):
        check(settings(path), "test")


def test_the_packaged_experiment_runs_on_a_folder(tmp_path: Path) -> None:
    path = config_folder() / "experiments" / "images.yaml"
    experiment = load_experiment(path, [f"data.path={folders(tmp_path / 'photos')}"])
    assert (experiment.task.kind, experiment.task.name) == ("images", "photos")
    assert load_experiment(path, []).task.kind == "shapes"


def test_texts_and_images_are_told_apart(tmp_path: Path) -> None:
    place = folders(tmp_path / "photos")
    with pytest.raises(DataError, match="has a folder of images per class; set task.kind=images"):
        build_experiment({"data": {"path": str(place)}, "rounds": 1}, [], tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="a pretrained backbone takes text, but task shapes has images; set backbone"):
        check(make_shapes(backbone={"name": "minilm"}), "test")
    with pytest.raises(ConfigError, match="an image backbone takes image, but task .* is text; set backbone=minilm"):
        check(make_shapes(task=named("tasks", "synthetic"), data={}), "test")


# --- runs


@pytest.mark.parametrize("backbone", [None, {"kind": "cnn", "channels": [4]}, {"kind": "mlp", "hidden": [8]}])
def test_a_trained_model_predicts_from_files_images_and_arrays(tmp_path: Path, backbone: Any) -> None:
    place = folders(tmp_path / "photos")
    run = simulate(check(settings(place, backbone), "test"), tmp_path / "run")
    model = fibec_ray.load(run.folder)
    paths = sorted(place.rglob("*.png"))
    arrays = [np.asarray(Pil.open(path)) for path in paths]
    found = model.predict(paths)
    assert [p.label for p in found] == [p.label for p in model.predict([Pil.open(path) for path in paths])]
    assert [p.score for p in found] == [p.score for p in model.predict(arrays)]
    (alone,) = model.predict([str(paths[0])])
    assert {p.label for p in found} <= set(NAMES) and alone.scores == pytest.approx(found[0].scores)
    with pytest.raises(DataError, match="input 1: give the path of an image"):
        model.predict([paths[0], 3])
    with pytest.raises(DataError, match="missing.png: no such file"):
        model.predict(["missing.png"])


def test_images_of_several_sizes_train_a_network_once_a_size_is_set(tmp_path: Path) -> None:
    place = folders(tmp_path / "photos")
    Pil.fromarray(ROWS.sources[0]).resize((20, 24)).save(place / "disc" / "large.png")
    cnn = {"kind": "cnn", "channels": [4]}
    with pytest.raises(
        DataError, match=r"large.png: is read at 24 x 20 pixels, .* set data.image_size=\[HEIGHT,WIDTH\]"
    ):
        simulate(check(settings(place, cnn), "test"), tmp_path / "run")
    sized = settings(place, cnn)
    sized["data"] = {**sized["data"], "image_size": [10, 12]}
    run = simulate(check(sized, "test"), tmp_path / "run2")
    model = fibec_ray.load(run.folder)
    assert model.engine.adapter_config["input_shape"] == [3, 10, 12]
    assert len(model.predict([place / "disc" / "large.png"])) == 1


def test_kinds_of_peft_with_virtual_tokens_are_refused() -> None:
    for kind in ("prompt", "prefix", "p_tuning", "idpg", "lpt", "attempt"):
        with pytest.raises(
            ConfigError, match=f"method.peft: {kind} works on tokens, but the samples of task shapes are"
        ):
            check(make_shapes({"peft": {"kind": kind}}), "test")


def test_cifar10_has_its_columns_and_classes() -> None:
    task: Any = parse_task(named("tasks", "cifar10"))
    assert (task.hub, task.image_column, task.num_scores) == ("uoft-cs/cifar10", "img", 10)
    experiment = load_experiment(config_folder() / "experiments" / "cifar10.yaml", [])
    assert experiment.backbone.reads == "image"


@pytest.mark.parametrize("config", [TINY_SWIN, TINY_CONVNEXT], ids=lambda config: str(config["model_type"]))
def test_a_run_of_stages_takes_what_was_planned_and_does_the_same_again(config: dict[str, Any], tmp_path: Path) -> None:
    experiment = check(make_shapes("fibecfed", config, rounds=2), "test")
    outlook = foresee(experiment, prepare, tmp_path / "plan", cache_dir())
    run = simulate(experiment, tmp_path / "run")
    rows = read_rounds(run.folder).to_pylist()
    assert outlook.traffic.total == rows[-1]["bytes_total"]
    flops = outlook.work.setup_flops + sum(outlook.work.rounds_flops)
    assert flops == pytest.approx(sum(row["flops"] for row in rows), rel=0.25)
    assert verify(run.folder, num_rounds=2).differences == []
    assert {row["layer"] for row in read_table(run.folder, "layers").to_pylist()} == {0, 1, 2}


@pytest.mark.parametrize("head", ["model", "mean_pool"])
@pytest.mark.parametrize("config", [TINY_VIT, TINY_CONVNEXT], ids=lambda config: str(config["model_type"]))
def test_peft_loads_the_saved_adapter_on_the_base(config: dict[str, Any], head: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    seed, auto = 3, AutoModelForImageClassification if head == "model" else AutoModel
    torch.manual_seed(seed)
    labels = {"num_labels": 6} if head == "model" else {}
    base = auto.from_config(AutoConfig.for_model(**config, **labels))
    base.save_pretrained(tmp_path / "base")
    default_processor(base.config).save_pretrained(tmp_path / "base")
    backbone = {"kind": "image", "name": str(tmp_path / "base"), "head": head}
    run = simulate(check(make_shapes("fedavg", backbone=backbone, rounds=1), "test"), tmp_path / "run")
    ours = fibec_ray.load(run.folder)
    whole = auto.from_pretrained(tmp_path / "base", **labels)
    plain = PeftModel.from_pretrained(whole, tmp_path / "run" / "adapter").eval()
    image = Pil.fromarray(ROWS.sources[0])
    values = ours.about.backbone.preprocessor()([image], return_tensors="pt")
    with torch.no_grad():
        out = plain(**values)
    if head == "model":
        torch.testing.assert_close(out.logits, ours.scores([image]))
    else:
        states = out.last_hidden_state
        places = states.flatten(2).mT if states.dim() == 4 else states
        torch.testing.assert_close(ours.head.cpu()(places.mean(1)), ours.scores([image]))
