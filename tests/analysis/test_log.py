"""Setup logs: lazily, here or behind a URL, of this version, older ones and newer ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from round_logs import CONFIG, big_run, rounds_row, small_run

from fibec_ray.analysis.log import open_run
from fibec_ray.analysis.tables import RunTables
from fibec_ray.errors import RunDirError
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.schema import TABLES
from fibec_ray.roundlog.versions import SCHEMA_MAJOR
from fibec_ray.roundlog.writer import RoundLog

METADATA = {"run_id": "r1", "seed": "7", "git_commit": "", "config": "name: small\n"}


def rewrite(run: Path, table: str, change) -> None:
    """Applies a function from Arrow table to Arrow table to each part."""
    for part in (run / table).iterdir():
        pq.write_table(change(pq.ParquetFile(part).read()), part)


def as_version(run: Path, **keys: str) -> Path:
    """Rewrites what the parts say of their version."""

    def other(table: pa.Table) -> pa.Table:
        kept = {key: value for key, value in table.schema.metadata.items() if not key.startswith(b"schema_")}
        return table.replace_schema_metadata(kept | {key.encode(): value.encode() for key, value in keys.items()})

    for table in TABLES:
        if (run / table).exists():
            rewrite(run, table, other)
    return run


def test_tables_have_the_published_columns_and_a_query_reads_what_it_needs(tmp_path: Path) -> None:
    log = open_run(big_run(tmp_path, 3, 4))
    for name, schema in TABLES.items():
        assert log.frame(name).columns == schema.names
    late = log.devices.filter(pl.col("round") == 2).select("device", "sim_time_s").collect()
    assert late.columns == ["device", "sim_time_s"] and len(late) == 4
    assert log.batches.collect().height == 16 and log.layers.select(pl.len()).collect().item() == 48


def test_pandas_on_request(tmp_path: Path) -> None:
    frame = open_run(small_run(tmp_path, {0: 0.5})).pandas("rounds")
    assert list(frame["round"]) == [-1, 0, 1, 2, 3, 4, 5] and frame["personal_accuracy"].notna().sum() == 1


def test_the_config_is_the_log_s_own_where_there_is_no_file(tmp_path: Path) -> None:
    run = small_run(tmp_path, {})
    assert open_run(run).config == CONFIG and open_run(run).fact("method") == "fibecfed"
    (run / "config.yaml").write_text("name: other\n")
    assert open_run(run).config == {"name": "other"}


def test_a_run_behind_a_url_is_read_like_one_that_is_here(tmp_path: Path) -> None:
    """fsspec's memory file system stands for s3:// and its like: no path of it exists on this machine."""
    run, memory = small_run(tmp_path, {0: 0.5, 2: 0.75}), fsspec.filesystem("memory")
    memory.put(str(run), "/bucket/run", recursive=True)
    here, there = open_run(run), open_run("memory://bucket/run")
    assert there.frame("rounds").equals(here.frame("rounds"))
    assert there.summary == here.summary and there.frame("devices").is_empty()
    late = there.rounds.filter(pl.col("round") > 4).select("round").collect()
    assert late.get_column("round").to_list() == [5]
    assert RunTables.read(open_run(f"file://{run}")).points("round", "personal_accuracy") == [(1, 0.5), (3, 0.75)]


def test_a_url_that_nothing_knows_is_refused() -> None:
    with pytest.raises(RunDirError, match="nowhere://x: no file system for this URL"):
        open_run("nowhere://x")


def test_what_a_newer_version_added_is_left_out(tmp_path: Path) -> None:
    run = small_run(tmp_path, {0: 0.5})
    rewrite(run, "rounds", lambda table: table.append_column("phase_of_the_moon", pa.array([1.0] * len(table))))
    as_version(run, schema_version="99", schema_major=str(SCHEMA_MAJOR))
    frame = open_run(run).frame("rounds")
    assert frame.columns == TABLES["rounds"].names and frame.get_column("personal_accuracy").max() == 0.5


def test_what_an_older_version_did_not_have_is_null(tmp_path: Path) -> None:
    """Version 2 had no evaluations; and, say, no overlap of masks."""
    run = small_run(tmp_path, {0: 0.5})
    rewrite(run, "rounds", lambda table: table.drop_columns(["mask_overlap"]))
    for part in (run / "evaluations").iterdir():
        part.unlink()
    (run / "evaluations").rmdir()
    as_version(run, schema_version="2")
    log = open_run(run)
    assert log.frame("rounds").get_column("mask_overlap").to_list() == [None] * 7
    assert log.frame("evaluations").is_empty() and log.frame("evaluations").columns == TABLES["evaluations"].names


@pytest.mark.parametrize("behind_a_url", [False, True])
def test_a_run_that_began_in_an_older_version_has_the_names_of_today(tmp_path: Path, behind_a_url: bool) -> None:
    """Its first part has the old name of a column, its second the new one."""
    log = RoundLog(tmp_path / "run", METADATA)
    for round_ in (0, 1):
        log.append(rounds_row(round_), [DeviceReport(round_, 3, num_samples=10, bytes_up_extras=5)], [])
    for name in ("rounds", "devices"):
        part = tmp_path / "run" / name / "part-000000.parquet"
        table = pq.ParquetFile(part).read()
        table = table.rename_columns([n.replace("up_extras", "up_evidence") for n in table.column_names])
        pq.write_table(table.replace_schema_metadata({"schema_version": "6", "schema_major": "2"}), part)
    where: Any = tmp_path / "run"
    if behind_a_url:
        fsspec.filesystem("memory").put(str(where), "/old/run", recursive=True)
        where = "memory://old/run"
    frame = open_run(where).frame("devices")
    assert frame.columns == TABLES["devices"].names
    assert frame.get_column("bytes_up_extras").to_list() == [5, 5]


@pytest.mark.parametrize("keys", [{"schema_version": "9", "schema_major": "9"}, {"schema_version": "1"}, {}])
def test_another_major_is_refused_in_one_sentence(tmp_path: Path, keys: dict[str, str]) -> None:
    run = as_version(small_run(tmp_path, {}), **keys)
    with pytest.raises(RunDirError, match=rf"schema version .* this program reads versions of major {SCHEMA_MAJOR}"):
        open_run(run)


def test_a_run_that_a_newer_program_went_on_with_is_refused_too(tmp_path: Path) -> None:
    run = small_run(tmp_path, {})
    part = run / "rounds" / "part-000005.parquet"
    table = pq.ParquetFile(part).read()
    pq.write_table(table.replace_schema_metadata({"schema_version": "9", "schema_major": "9"}), part)
    with pytest.raises(RunDirError, match="schema version 9"):
        open_run(run)


def test_a_round_that_is_being_written_is_not_seen(tmp_path: Path) -> None:
    """Its devices are there already, its part of `rounds`, which is written last, is not."""
    log = RoundLog(tmp_path, METADATA)
    for round_ in (0, 1):
        log.append(rounds_row(round_), [DeviceReport(round_, 3, num_samples=10)], [])
    (tmp_path / "rounds" / "part-000001.parquet").rename(tmp_path / "rounds" / ".part-000001.parquet.tmp")
    assert open_run(tmp_path).frame("devices").get_column("round").to_list() == [0]


def test_a_part_that_was_cut_short_is_named(tmp_path: Path) -> None:
    part = small_run(tmp_path, {}) / "rounds" / "part-000003.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(RunDirError, match="rounds: not a readable round log"):
        open_run(tmp_path).frame("rounds")


def test_folders_named_like_partitions_are_not_columns(tmp_path: Path) -> None:
    assert open_run(small_run(tmp_path / "seed=3", {})).frame("rounds").columns == TABLES["rounds"].names
    assert open_run(small_run(tmp_path / "a[1]*", {})).frame("rounds").height == 7


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("rounds/part-000002.parquet", "rounds/part-000001.parquet", "rounds: has rows of round 2 twice"),
        ("devices/part-000002.parquet", "devices/part-000000.parquet", "devices: has rows of round 1 twice"),
        ("layers/part-000001.parquet", None, r"layers/part-000001\.parquet: is missing; put the file back"),
        (
            "rounds/part-000002.parquet",
            "rounds/part-000003.parquet",
            r"rounds/part-000002\.parquet: is missing or holds another round;",
        ),
    ],
)
def test_a_log_whose_files_are_mixed_up_is_refused(
    target: str, source: str | None, message: str, tmp_path: Path
) -> None:
    run = big_run(tmp_path, 4, 2)
    content = (run / source).read_bytes() if source else b""
    (run / target).unlink()
    if source:
        (run / target).write_bytes(content)
    if source == "rounds/part-000003.parquet":
        (run / source).unlink()
    with pytest.raises(RunDirError, match=message):
        RunTables.read(run)
