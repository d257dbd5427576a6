"""Reading logs that are whole, growing, broken, or of another time; and comparing two of them."""

import shutil

import pyarrow.parquet as pq
import pytest

from fibec_ray.errors import RunDirError
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.parts import check_parts
from fibec_ray.roundlog.reader import differences, log_digest, read_devices, read_rounds, read_table
from fibec_ray.roundlog.schema import DEVICES, EVALUATIONS, LAYERS, ROUNDS
from fibec_ray.roundlog.versions import ADDED, RENAMED, SCHEMA_VERSION, tables_of
from fibec_ray.roundlog.writer import RoundLog

METADATA = {"run_id": "r1", "seed": "7", "git_commit": "abc", "config": "name: small\n"}


def rounds_row(round_, **values):
    row = {column.name: None if column.nullable else 0 for column in ROUNDS}
    return row | {"round": round_} | values


def write(run_dir, rounds=(-1, 0, 1), round_values=None, device_values=None, devices=(4, 2), metadata=METADATA):
    log = RoundLog(run_dir, metadata)
    for round_ in rounds:
        reports = [DeviceReport(round_, device, num_samples=10, **(device_values or {})) for device in devices]
        log.append(rounds_row(round_, **(round_values or {})), reports, [])
    return run_dir


def test_rows_come_in_round_and_device_order(tmp_path):
    write(tmp_path, rounds=(1, 0, -1))
    assert read_rounds(tmp_path).column("round").to_pylist() == [-1, 0, 1]
    assert read_devices(tmp_path).column("device").to_pylist() == [2, 4] * 3


def test_tables_have_the_published_schema_even_without_rows(tmp_path):
    write(tmp_path, devices=())
    assert read_rounds(tmp_path).schema.equals(ROUNDS)
    assert read_devices(tmp_path).schema.equals(DEVICES) and read_devices(tmp_path).num_rows == 0
    assert read_table(tmp_path, "layers").schema.equals(LAYERS) and read_table(tmp_path, "layers").num_rows == 0


def test_folders_named_like_partitions_are_not_columns(tmp_path):
    assert read_rounds(write(tmp_path / "seed=3")).schema.equals(ROUNDS)


def test_half_written_parts_are_not_seen(tmp_path):
    write(tmp_path, rounds=(0,))
    (tmp_path / "rounds" / ".part-000001.parquet.tmp").write_bytes(b"PAR1")
    assert read_rounds(tmp_path).num_rows == 1


def test_a_log_without_parts_is_named(tmp_path):
    with pytest.raises(RunDirError, match="rounds: no round log here"):
        read_rounds(tmp_path)
    RoundLog(tmp_path, METADATA)
    with pytest.raises(RunDirError, match="devices: no round log here"):
        read_devices(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 200])
def test_a_truncated_part_is_named(tmp_path, kept):
    part = write(tmp_path) / "rounds" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:kept])
    with pytest.raises(RunDirError, match=r"part-000001\.parquet: not a readable part"):
        read_rounds(tmp_path)


def test_a_log_of_another_version_is_refused(tmp_path):
    part = write(tmp_path) / "rounds" / "part-000001.parquet"
    table = pq.ParquetFile(part).read()
    pq.write_table(table.replace_schema_metadata({"schema_version": "99"}), part)
    with pytest.raises(RunDirError, match=r"part-000001\.parquet: schema version 99, .* reads versions 2 to 11"):
        read_rounds(tmp_path)


@pytest.mark.parametrize("version", range(min(ADDED) - 1, SCHEMA_VERSION))
def test_an_older_log_is_read_with_nulls_where_it_had_no_column(tmp_path, version):
    write(tmp_path)
    later = [added for number, added in ADDED.items() if number > version]
    for name in ("rounds", "devices"):
        for part in (tmp_path / name).iterdir():
            table = pq.ParquetFile(part).read().drop_columns([column for added in later for column in added[name]])
            metadata = table.schema.metadata | {b"schema_version": str(version).encode()}
            pq.write_table(table.replace_schema_metadata(metadata), part)
    assert read_rounds(tmp_path).schema.equals(ROUNDS) and read_devices(tmp_path).schema.equals(DEVICES)
    for added in later:
        assert all(read_rounds(tmp_path).column(column).to_pylist() == [None] * 3 for column in added["rounds"])
        assert all(read_devices(tmp_path).column(column).to_pylist() == [None] * 6 for column in added["devices"])


def test_columns_that_an_older_log_lacks_are_not_compared(tmp_path):
    """As verify does with a run of an earlier release: its log has no energy, and the rounds run again have."""
    write(tmp_path / "old", device_values={"num_steps": 3})
    write(tmp_path / "again", device_values={"num_steps": 3, "energy_j": 2.5})
    assert any("energy_j None logged, 2.5 now" in line for line in compared(tmp_path))
    for name in ("rounds", "devices"):
        for part in (tmp_path / "old" / name).iterdir():
            later = [column for version in ADDED if version > 9 for column in ADDED[version].get(name, ())]
            table = pq.ParquetFile(part).read().drop_columns(later)
            pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"schema_version": b"9"}), part)
    assert compared(tmp_path) == []
    write(tmp_path / "other", device_values={"num_steps": 4})
    assert any("num_steps 3 logged, 4 now" in line for line in differences(tmp_path / "old", tmp_path / "other", -1, 1))


def compared(tmp_path):
    return differences(tmp_path / "old", tmp_path / "again", -1, 1)


def test_an_older_log_is_read_as_if_its_later_tables_had_no_rows(tmp_path):
    write(tmp_path)
    for name in tables_of(3):
        for part in (tmp_path / name).iterdir():
            later = [column for number in ADDED if number > 3 for column in ADDED[number].get(name, ())]
            table = pq.ParquetFile(part).read().drop_columns(later)
            metadata = {key: value for key, value in table.schema.metadata.items() if key != b"previous"}
            pq.write_table(table.replace_schema_metadata(metadata | {b"schema_version": b"3"}), part)
    shutil.rmtree(tmp_path / "evaluations")
    assert (
        read_table(tmp_path, "evaluations").schema.equals(EVALUATIONS)
        and read_table(tmp_path, "evaluations").num_rows == 0
    )
    assert log_digest(tmp_path)
    check_parts(tmp_path, METADATA["run_id"], last=1, newest={})  # a run that an older program began can be resumed


def test_an_older_log_is_read_with_the_names_of_today(tmp_path):
    write(tmp_path, device_values={"bytes_up_extras": 5, "true_difficulty_seen": 0.25})
    as_version_6(tmp_path / "devices")
    devices = read_devices(tmp_path)
    assert devices.schema.equals(DEVICES)
    assert set(devices.column("bytes_up_extras").to_pylist()) == {5}
    assert set(devices.column("true_difficulty_seen").to_pylist()) == {0.25}


def as_version_6(table_dir):
    """Gives the parts of a table the columns that they had before version 7, with their names."""
    before = {now: was for was, now in RENAMED.items()}
    later = [name for version, tables in ADDED.items() if version > 6 for name in tables.get(table_dir.name, ())]
    for part in table_dir.iterdir():
        table = pq.ParquetFile(part).read()
        metadata = table.schema.metadata | {b"schema_version": b"6", b"schema_major": b"2"}
        table = table.drop_columns(later)
        table = table.rename_columns([before.get(name, name) for name in table.column_names])
        pq.write_table(table.replace_schema_metadata(metadata), part)


def test_a_part_with_other_columns_is_refused(tmp_path):
    part = write(tmp_path) / "rounds" / "part-000001.parquet"
    pq.write_table(pq.ParquetFile(part).read().drop_columns(["flops"]), part)
    with pytest.raises(RunDirError, match=r"part-000001\.parquet: its columns are not those"):
        read_rounds(tmp_path)


def test_equal_runs_have_equal_digests_whatever_the_machine(tmp_path):
    one = write(tmp_path / "one", round_values={"wall_time_s": 1.0}, device_values={"actor": "a", "compute_s": 1.0})
    two = write(
        tmp_path / "two",
        devices=(2, 4),
        round_values={"wall_time_s": 9.0},
        device_values={
            "actor": "b",
            "compute_s": 2.0,
            "attempt": 1,
            "peak_memory_bytes": 5,
            "peak_gpu_memory_bytes": 7,
        },
        metadata=METADATA | {"run_id": "r2"},
    )
    assert log_digest(one) == log_digest(two)


@pytest.mark.parametrize(
    "change",
    [
        {"round_values": {"train_loss": 0.0}},
        {"device_values": {"train_loss": 5e-324}},
        {"devices": (4, 3)},
        {"rounds": (-1, 0)},
    ],
)
def test_any_other_difference_changes_the_digest(tmp_path, change):
    assert log_digest(write(tmp_path / "one")) != log_digest(write(tmp_path / "two", **change))
