"""The round log, written for other tools and read back with their own readers."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_digits

from fibec_ray.analysis.export import export
from fibec_ray.config.load import check
from fibec_ray.errors import RunDirError, UserError
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.simulation import simulate


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    simulate(check(make_digits(name="told", rounds=3), "test"), folder)
    return folder


def logged(run_dir: Path, column: str) -> dict[int, float]:
    rows: list[dict[str, Any]] = read_rounds(run_dir).to_pylist()
    return {row["round"] + 1: pytest.approx(row[column], rel=1e-6) for row in rows if row[column] is not None}


def test_tensorboard_reads_what_was_logged(run_dir: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second export takes the place of the first
        assert "tensorboard --logdir" in export(run_dir, "tensorboard", None)
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    for tag, column in (("accuracy/global_accuracy", "global_accuracy"), ("bytes/bytes_up", "bytes_up")):
        assert {event.step: event.value for event in events.Scalars(tag)} == logged(run_dir, column)
    assert "round/num_lost" in events.Tags()["scalars"] and "settings/text_summary" in events.Tags()["tensors"]


def test_weights_and_biases_keeps_a_run_offline(run_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    from wandb.proto import wandb_internal_pb2

    where = Path(export(run_dir, "wandb", str(tmp_path)).partition(";")[0])
    assert where.name.startswith("offline-run-")
    (path,) = where.glob("*.wandb")
    found = {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "round" in values and "loss/train_loss" in values:
            found[int(values["round"])] = float(values["loss/train_loss"])
    assert found == logged(run_dir, "train_loss")


def records(file: bytes) -> Iterator[bytes]:
    """Of LevelDB's log format: a header of 7 bytes, then blocks of 32 kB with pieces (checksum, length, kind, data)."""
    at, whole = 7, b""
    while at + 7 <= len(file):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", file, at)
        whole += file[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""


def test_mlflow_reads_what_was_logged(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    told = export(run_dir, "mlflow", uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("fibec_ray").experiment_id])
    assert run.info.run_id in told and run.info.run_name == "told" and run.data.params["local.batch_size"] == "8"
    found = client.get_metric_history(run.info.run_id, "loss/train_loss")
    assert {metric.step: metric.value for metric in found} == logged(run_dir, "train_loss")


def test_a_tool_that_is_not_installed(run_dir: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"--to wandb: is not installed here .*pip install 'fibec_ray\[wandb\]'"):
        export(run_dir, "wandb", None)


def test_a_folder_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no round log here"):
        export(tmp_path, "tensorboard", None)
    assert os.listdir(tmp_path) == []
