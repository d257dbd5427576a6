"""Rounds and device-rounds that are run again give what the log says, bit by bit; a touched log is found out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from runs.interrupted import interrupted

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError, RunDirError
from fibec_ray.roundlog.reader import read_devices
from fibec_ray.runs.callbacks import read_summary
from fibec_ray.runs.records import read_record, staged
from fibec_ray.runs.replay import replay
from fibec_ray.runs.simulation import simulate, worker_spec_of
from fibec_ray.runs.verify import verify

ROUNDS = 4


@pytest.fixture(scope="module")
def kept_all(tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = tiny_settings("fibecfed", rounds=ROUNDS, checkpoint={"keep": "all"})
    return simulate(check(settings, "test"), tmp_path_factory.mktemp("all") / "run").folder


@pytest.fixture(scope="module")
def kept_two(tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After a failure in round 3: the checkpoints before rounds 2 and 3."""
    return interrupted(tiny_settings("fibecfed", rounds=ROUNDS), tmp_path_factory.mktemp("two") / "run", 3 * 3 + 1)


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def rewrite(part: Path, column: str, change: Any) -> None:
    """Changes the first value of a column, and nothing else."""
    table = pq.ParquetFile(part).read()
    values = table.column(column).to_pylist()
    values[0] = change(values[0])
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), part)


@pytest.mark.parametrize(
    ("num_rounds", "from_start", "span"),
    [(1, False, (3, 3)), (3, False, (1, 3)), (99, False, (0, 3)), (2, True, (-1, 1)), (99, True, (-1, 3))],
)
def test_rounds_run_again_are_equal(num_rounds: int, from_start: bool, span: tuple[int, int], kept_all: Path) -> None:
    before = snapshot(kept_all)
    found = verify(kept_all, num_rounds, from_start)
    assert (found.first, found.last) == span and found.differences == []
    assert found.compared["rows of rounds"] == span[1] - span[0] + 1
    assert found.compared["checkpoints"] == 1
    assert found.compared.get("final adapters", 0) == (span[1] == ROUNDS - 1)
    assert snapshot(kept_all) == before


def test_rounds_are_repeated_on_the_device_type_of_the_run(
    kept_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a CPU is verified on the CPU, even beside a GPU. A run on a GPU is not verified without one."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        record = read_record(kept_two)
        assert worker_spec_of(record.experiment, kept_two, record.identity).device == "cuda:0"
        with staged(record, 1, {}) as worker_spec:
            assert worker_spec.device == "cpu"
    folder = Path(shutil.copytree(kept_two, tmp_path / "run"))
    summary = read_summary(folder)
    (folder / "summary.json").write_text(json.dumps(summary | {"device": "cuda"}))
    for repeat in (lambda: verify(folder), lambda: replay(folder, 2, 0)):
        with pytest.raises(RunDirError, match="this run computed on a GPU, .* on a machine where torch sees a GPU"):
            repeat()


def test_a_run_that_failed_is_verified_as_far_as_it_got(kept_two: Path) -> None:
    found = verify(kept_two, 2)
    assert (found.first, found.last, found.differences) == (2, 2, [])
    assert found.compared["checkpoints"] == 1 and "final adapters" not in found.compared


@pytest.mark.parametrize(
    ("table", "column", "change"),
    [
        ("rounds", "train_loss", lambda value: value + 1e-12),
        ("rounds", "adapter_digest", lambda value: value[::-1]),
        ("devices", "update_digest", lambda value: value[::-1]),
        ("layers", "shared", lambda value: not value),
    ],
)
def test_a_value_that_was_changed_is_found(
    table: str, column: str, change: Any, kept_all: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = Path(shutil.copytree(kept_all, tmp_path / "run"))
    rewrite(folder / table / "part-000003.parquet", column, change)
    assert main(["verify", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "round 4 run again" in out and "1 differences" in out
    assert f"{table}, round 4" in err and column in err and "logged" in err


@pytest.mark.parametrize("table", ["rounds", "layers"])
def test_a_damaged_part_of_an_earlier_round_is_found(table: str, kept_two: Path, tmp_path: Path, capsys: Any) -> None:
    folder = Path(shutil.copytree(kept_two, tmp_path / "run"))
    part = folder / table / "part-000000.parquet"
    rewrite(part, "round", lambda value: value)
    assert main(["verify", str(folder)]) == 1
    assert f"{part}: is damaged, or not the part that this run wrote" in capsys.readouterr().err


def test_times_and_places_may_differ(kept_all: Path, tmp_path: Path, capsys: Any) -> None:
    folder = Path(shutil.copytree(kept_all, tmp_path / "run"))
    rewrite(folder / "rounds" / "part-000003.parquet", "wall_time_s", lambda value: value + 1)
    rewrite(folder / "devices" / "part-000003.parquet", "actor", lambda value: "another")
    assert main(["verify", str(folder)]) == 0
    assert "all equal, bit by bit" in capsys.readouterr().out


def test_nothing_to_compare_with_is_an_error(kept_all: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kept_all, tmp_path / "run"))
    for path in folder.glob("checkpoints/rounds/00000[0-3]"):
        shutil.rmtree(path)
    with pytest.raises(RunDirError, match="no checkpoint is kept from before a logged round.*--from-start"):
        verify(folder)
    shutil.rmtree(folder / "rounds")
    with pytest.raises(RunDirError, match="no round has been logged yet"):
        verify(folder, from_start=True)


# --- one device-round


@pytest.mark.parametrize("round_", range(-1, ROUNDS))
def test_a_device_round_alone_gives_what_it_gave_in_the_run(round_: int, kept_all: Path) -> None:
    before = snapshot(kept_all)
    rows = [row for row in read_devices(kept_all).to_pylist() if row["round"] == round_]
    for row in rows[:2]:
        found = replay(kept_all, round_, row["device"])
        assert found.differences == [] and found.row["update_digest"] == row["update_digest"]
    assert snapshot(kept_all) == before


def test_devices_that_computed_side_by_side_do_so_again(tiny_settings: Any, tmp_path: Path) -> None:
    fleet = {"kind": "local", "lanes": 2}
    settings = tiny_settings("fibecfed", rounds=2, checkpoint={"keep": "all"}, fleet=fleet)
    folder = simulate(check(settings, "test"), tmp_path / "run").folder
    assert verify(folder, 1).differences == []
    for row in read_devices(folder).to_pylist():
        if row["round"] == 1 or row["device"] == 0:
            assert replay(folder, row["round"], row["device"]).differences == []


def test_a_device_round_that_was_changed_is_found(kept_all: Path, tmp_path: Path, capsys: Any) -> None:
    folder = Path(shutil.copytree(kept_all, tmp_path / "run"))
    part = folder / "devices" / "part-000002.parquet"
    device = pq.ParquetFile(part).read().column("device").to_pylist()[0]
    rewrite(part, "train_loss", lambda value: value * 2)
    assert main(["replay", str(folder), "--round", "3", "--device", str(device)]) == 1
    assert f"devices, round 3, device {device}: train_loss" in capsys.readouterr().err


def test_the_error_says_which_rounds_can_be_replayed(kept_two: Path) -> None:
    device = read_devices(kept_two).filter(pa.compute.field("round") == 1).column("device").to_pylist()[0]
    with pytest.raises(RunDirError, match=r"before round 2 is not kept; rounds that can be replayed: 3 \(.*keep=all"):
        replay(kept_two, 1, device)


def test_a_device_round_that_there_was_not(kept_all: Path) -> None:
    here = set(read_devices(kept_all).filter(pa.compute.field("round") == 1).column("device").to_pylist())
    absent = next(device for device in range(6) if device not in here)
    allowed = ", ".join(map(str, sorted(here)))
    with pytest.raises(ConfigError, match=f"--device {absent}: had no part in round 2; devices that had: {allowed}"):
        replay(kept_all, 1, absent)
    for round_ in (-2, ROUNDS, 99):
        with pytest.raises(ConfigError, match=f"--round {round_ + 1}: the log of .* has rounds 0 to 4"):
            replay(kept_all, round_, 0)


def test_a_method_without_an_setup_has_none_to_replay(tiny_settings: Any, tmp_path: Path) -> None:
    run = simulate(check(tiny_settings("fedavg", rounds=1), "test"), tmp_path / "run")
    assert verify(run.folder, from_start=True).differences == []
    with pytest.raises(ConfigError, match="none, as this method has no initialisation phase"):
        replay(run.folder, -1, 0)
