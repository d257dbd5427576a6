"""Whatever stands in the files of a round log, it is read or refused in one line; property-based."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fibec_ray.errors import RunDirError
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.reader import log_digest, read_table
from fibec_ray.roundlog.schema import TABLES
from fibec_ray.roundlog.versions import SCHEMA_VERSION
from fibec_ray.roundlog.writer import RoundLog

QUIETLY = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
METADATA = {"run_id": "r1", "seed": "7", "git_commit": "abc", "config": "name: small\n"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    row: dict[str, Any] = {column.name: None if column.nullable else 0 for column in TABLES["rounds"]}
    RoundLog(folder, METADATA).append(row, [DeviceReport(0, 4, num_samples=10)], [])
    return folder


def read_or_refused(folder: Path) -> bool:
    """Whether it was read."""
    try:
        for table in TABLES:
            read_table(folder, table)
        log_digest(folder)
    except RunDirError as error:
        assert len(str(error).splitlines()) >= 1
        return False
    return True


@QUIETLY
@given(table=st.sampled_from(sorted(TABLES)), content=st.binary(max_size=300))
def test_bytes_in_place_of_a_part(table: str, content: bytes, log: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(log, tmp_path / "log", dirs_exist_ok=True))
    (folder / table / "part-000000.parquet").write_bytes(content)
    assert not read_or_refused(folder)


@QUIETLY
@given(table=st.sampled_from(sorted(TABLES)), data=st.data())
def test_a_part_with_other_bytes_in_it(table: str, data: st.DataObject, log: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(log, tmp_path / "log", dirs_exist_ok=True))
    path = folder / table / "part-000000.parquet"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    read_or_refused(folder)


VALUES = st.one_of(st.none(), st.integers(-(2**31), 2**31), st.floats(), st.text(max_size=5), st.booleans())
COLUMNS = st.dictionaries(
    st.one_of(st.sampled_from(TABLES["rounds"].names), st.text(max_size=5)), st.one_of(VALUES), max_size=6
)
VERSIONS = st.one_of(st.integers(-1, 2 * SCHEMA_VERSION).map(str), st.text(max_size=4))


@QUIETLY
@given(columns=COLUMNS, version=st.none() | VERSIONS)
def test_tables_of_other_columns(columns: dict[str, Any], version: str | None, log: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(log, tmp_path / "log", dirs_exist_ok=True))
    table = pa.table({name: [value] for name, value in columns.items()})
    metadata = None if version is None else {"schema_version": version.encode("utf-8", "replace")}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "rounds" / "part-000000.parquet")
    assert not read_or_refused(folder)
