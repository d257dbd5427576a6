"""What the writer accepts, where it puts it, and what it says when it cannot."""

import math
import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from fibec_ray.errors import RunDirError, RunError
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.parts import check_parts
from fibec_ray.roundlog.reader import read_devices, read_rounds, read_table
from fibec_ray.roundlog.schema import ROUNDS, TABLES
from fibec_ray.roundlog.versions import SCHEMA_VERSION
from fibec_ray.roundlog.writer import RoundLog

METADATA = {"run_id": "r1", "seed": "7", "git_commit": "abc", "config": "name: small\n"}


def rounds_row(round_, **values):
    row = {column.name: None if column.nullable else 0 for column in ROUNDS}
    return row | {"round": round_} | values


def report(round_, device, **values):
    return DeviceReport(round=round_, device=device, num_samples=10, **values)


def layer_row(round_, layer, **values):
    row = {"round": round_, "layer": layer, "sensitivity": None, "shared": True, "fisher_mass": None}
    return row | {"kept_neurons": None} | values


def parts(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_part_per_table_and_round_in_round_order(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    for round_ in (-1, 0, 1):
        log.append(rounds_row(round_), [report(round_, 3)], [layer_row(round_, 0)])
    for table in ("rounds", "devices", "layers"):
        assert parts(tmp_path / table) == ["init.parquet", "part-000000.parquet", "part-000001.parquet"]


def with_bundles(folder, rounds, flush_after=()):
    """A log with three rounds to a part."""
    log = RoundLog(folder, METADATA, rounds_per_part=3)
    for round_ in rounds:
        devices = [report(round_, device) for device in range(round_ % 2)]
        log.append(rounds_row(round_), devices, [layer_row(round_, 0)] if round_ == 4 else [])
        if round_ in flush_after:
            log.flush()
    return log


def test_rounds_are_collected_into_one_part_named_after_the_last(tmp_path):
    with_bundles(tmp_path, range(-1, 7))
    for table in TABLES:
        assert parts(tmp_path / table) == ["init.parquet", "part-000002.parquet", "part-000005.parquet"]
    assert read_rounds(tmp_path).column("round").to_pylist() == list(range(-1, 6))
    assert read_devices(tmp_path).column("round").to_pylist() == [-1, 1, 3, 5]
    assert read_table(tmp_path, "layers").column("round").to_pylist() == [4]


def test_flush_writes_what_is_collected(tmp_path):
    log = with_bundles(tmp_path, range(-1, 7), flush_after=(0, 6))
    names = ["init.parquet", "part-000000.parquet", "part-000003.parquet", "part-000006.parquet"]
    assert parts(tmp_path / "rounds") == parts(tmp_path / "devices") == names
    assert read_rounds(tmp_path).column("round").to_pylist() == list(range(-1, 7))
    newest = dict(log.newest)
    log.flush()
    assert log.newest == newest and parts(tmp_path / "rounds") == names


def test_the_parts_of_a_bundled_log_vouch_for_each_other(tmp_path):
    log = with_bundles(tmp_path, range(-1, 7), flush_after=(0, 6))
    check_parts(tmp_path, "r1", 6, log.newest)
    check_parts(tmp_path, "r1", 3, {})
    with pytest.raises(RunDirError, match=r"part-000005\.parquet"):  # no part ends there
        check_parts(tmp_path, "r1", 5, {})
    (tmp_path / "devices" / "part-000003.parquet").unlink()
    with pytest.raises(RunDirError, match=r"devices.part-000003\.parquet"):
        check_parts(tmp_path, "r1", 6, log.newest)


@pytest.mark.parametrize("found", ["", "-2", "7", "1.5", "\u0663", "4 "])
def test_a_part_whose_first_round_makes_no_sense_is_refused(tmp_path, found):
    with_bundles(tmp_path, range(-1, 7), flush_after=(0, 6))
    path = tmp_path / "rounds" / "part-000006.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"first_round": found.encode()}), path)
    with pytest.raises(RunDirError, match=r"part-000006\.parquet: not a readable part of a round log \(first round"):
        check_parts(tmp_path, "r1", 6, {})


def test_rows_that_do_not_fit_leave_the_collected_rounds_alone(tmp_path):
    log = with_bundles(tmp_path, [-1, 0])
    with pytest.raises(RunError, match="bytes_up"):
        log.append(rounds_row(1, bytes_up=None), [], [])
    log.flush()
    assert read_rounds(tmp_path).column("round").to_pylist() == [-1, 0]


def test_rewinding_a_bundled_log_removes_whole_parts(tmp_path):
    log = with_bundles(tmp_path, range(-1, 7), flush_after=(3, 6))
    log.rewind(4)
    assert parts(tmp_path / "layers") == ["init.parquet", "part-000002.parquet", "part-000003.parquet"]


def test_a_part_carries_the_metadata_and_is_zstd(tmp_path):
    RoundLog(tmp_path, METADATA).append(rounds_row(0), [], [])
    file = pq.ParquetFile(tmp_path / "rounds" / "part-000000.parquet")
    found = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    assert found == METADATA | {"schema_version": str(SCHEMA_VERSION), "schema_major": "7"}
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_values_come_back_as_given(tmp_path):
    device = report(0, 3, train_loss=0.1 + 0.2, bytes_up=2**40, actor="a1", kept_neurons=(1, 2), layer_fisher=(0.5,))
    row = rounds_row(0, sim_time_s=1 / 3, global_accuracy=0.75, num_devices_trained=2)
    RoundLog(tmp_path, METADATA).append(row, [device], [layer_row(0, 1, shared=False, kept_neurons=2.5)])
    assert read_rounds(tmp_path).to_pylist() == [row]
    assert read_devices(tmp_path).to_pylist()[0]["train_loss"] == 0.1 + 0.2
    assert read_devices(tmp_path).to_pylist()[0]["bytes_up"] == 2**40
    assert read_table(tmp_path, "layers").to_pylist() == [layer_row(0, 1, shared=False, kept_neurons=2.5)]


def test_nan_and_infinity_stay_what_they_are(tmp_path):
    row = rounds_row(0, train_loss=math.nan, global_loss=math.inf, personal_loss=None)
    RoundLog(tmp_path, METADATA).append(row, [], [])
    (found,) = read_rounds(tmp_path).to_pylist()
    assert math.isnan(found["train_loss"]) and found["global_loss"] == math.inf and found["personal_loss"] is None


def test_a_round_written_again_replaces_the_first(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    log.append(rounds_row(0, num_lost=1), [report(0, 1)], [])
    RoundLog(tmp_path, METADATA).append(rounds_row(0, num_lost=0), [report(0, 2)], [])
    assert read_rounds(tmp_path).column("num_lost").to_pylist() == [0]
    assert read_devices(tmp_path).column("device").to_pylist() == [2]


def test_rewind_forgets_later_rounds(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    for round_ in (-1, 0, 1, 2):
        log.append(rounds_row(round_), [report(round_, 3)], [])
    log.rewind(1)
    assert read_rounds(tmp_path).column("round").to_pylist() == [-1, 0]
    assert read_devices(tmp_path).column("round").to_pylist() == [-1, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (rounds_row(0, global_acuracy=0.5), "no column 'global_acuracy'; did you mean 'global_accuracy'"),
        ({key: value for key, value in rounds_row(0).items() if key != "flops"}, "no value for flops"),
        ({key: value for key, value in rounds_row(0).items() if key != "round"}, "no value for round"),
        (rounds_row(0, bytes_up=None), "bytes_up = None is not of type int64$"),
        (rounds_row(0, bytes_up=1.5), "bytes_up = 1.5 is not of type int64"),
        (rounds_row(0, train_loss="low"), "train_loss = 'low' is not of type double or None"),
        (rounds_row(0, num_lost=True), "num_lost = True is not of type int32"),
        (rounds_row(0, num_devices=2**40), "num_devices = 1099511627776 is not of type int32"),
        (rounds_row(0, num_devices=-(2**31) - 1), "num_devices = -2147483649 is not of type int32"),
        (rounds_row(0, adapter_digest="\ud800"), "adapter_digest = .* is not of type string"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path, row, message):
    log = RoundLog(tmp_path, METADATA)
    with pytest.raises(RunError, match=message):
        log.append(row, [report(0, 1)], [layer_row(0, 0)])
    assert [parts(tmp_path / table) for table in ("rounds", "devices", "layers")] == [[], [], []]


def test_rows_of_another_round_are_refused(tmp_path):
    with pytest.raises(RunError, match="devices, round 2: a row of round 1"):
        RoundLog(tmp_path, METADATA).append(rounds_row(2), [replace(report(2, 0), round=1)], [])


def test_metadata_must_be_complete(tmp_path):
    with pytest.raises(RunError, match="lacks git_commit, config"):
        RoundLog(tmp_path, {"run_id": "r1", "seed": "7"})


def test_a_run_folder_that_is_a_file_is_a_run_dir_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunDirError, match="run"):
        RoundLog(tmp_path / "run", METADATA)


def test_a_part_that_cannot_be_written_is_a_run_dir_error_with_its_path(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    os.rmdir(tmp_path / "layers")
    with pytest.raises(RunDirError, match=r"layers.part-000000\.parquet: cannot be written .*No such file"):
        log.append(rounds_row(0), [], [])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_a_run_dir_error(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    os.symlink("/dev/full", tmp_path / "layers" / f".part-000000.parquet.{os.getpid()}.part")
    with pytest.raises(RunDirError, match="No space left"):
        log.append(rounds_row(0), [], [])
    assert parts(tmp_path / "layers") == []


def test_rewinding_removes_what_a_killed_driver_was_writing(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    draft = tmp_path / "layers" / ".part-000000.parquet.17239.part"
    draft.parent.mkdir(exist_ok=True)
    draft.write_bytes(b"PAR1")
    log.rewind(0)
    assert not draft.exists()
