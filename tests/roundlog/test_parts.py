"""The log's files have exactly one form of name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fibec_ray.roundlog.parts import is_part, part_name, parts, round_of


@pytest.mark.parametrize("round_", [-1, 0, 7, 999_999, 1_000_000, 10_000_000])
def test_names_and_rounds_belong_together(round_: int) -> None:
    assert is_part(part_name(round_)) and round_of(Path(part_name(round_))) == round_


@pytest.mark.parametrize(
    "name",
    [
        "part-000000 (copy).parquet", "part-abc.parquet", "part-1.parquet", "part-0000001.parquet", ".init.parquet",
        "._part-000000.parquet", "init.parquet~", "init.parquet.bak", "Init.parquet", "part-00000\u0661.parquet",
        "part--00001.parquet", ".part-000000.parquet.tmp", "part-000000.parquet\n", "part-000000",
    ],
)  # fmt: skip
def test_other_names_are_none_of_the_log_s(name: str, tmp_path: Path) -> None:
    assert not is_part(name)
    (tmp_path / name).touch()
    assert parts(tmp_path) == []


def test_parts_are_in_the_order_of_rounds(tmp_path: Path) -> None:
    for round_ in (1_000_000, 999_999, -1, 2):
        (tmp_path / part_name(round_)).touch()
    assert [round_of(path) for path in parts(tmp_path)] == [-1, 2, 999_999, 1_000_000]
    assert parts(tmp_path / "none") == []
