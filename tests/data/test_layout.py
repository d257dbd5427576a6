"""Encodings, delimiters and compression of text files, set or found."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fibec_ray.data.layout import Layout, delimiter_of, encoding_of
from fibec_ray.data.readers import read_table
from fibec_ray.errors import DataError

ROWS = [("said “no”, twice; café", "0"), ("a | b\tc", "1"), ("plain", "0")]


def text(delimiter: str) -> str:
    quoted = ['"{}"{}{}'.format(body.replace('"', '""'), delimiter, label) for body, label in ROWS]
    return "\n".join([f"body{delimiter}y", *quoted, ""])


def rows(path: Path, **layout: object) -> list[tuple[str, str]]:
    table = read_table(path, Layout(**layout), ("body", "y"))  # type: ignore[arg-type]
    return [(row["body"], str(row["y"])) for row in table.to_pylist()]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".csv.gz"])
def test_files_of_every_program_are_read_alike(codec: str, delimiter: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = text(delimiter).encode(codec)
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert rows(path) == ROWS


def test_settings_go_before_what_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("body;y\nпривет;0\n".encode("cp1251"))
    assert rows(path, encoding="cp1251") == [("привет", "0")]
    assert encoding_of(path, "auto") == "cp1252"
    path.write_text("body,y;z\none,0;1\n")
    with pytest.raises(DataError, match="no column 'y'"):
        rows(path)
    assert read_table(path, Layout(delimiter="semicolon"), ("z",)).to_pylist() == [{"z": "1"}]


def test_the_suffix_decides_between_delimiters_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b;c\n1,2;3\n")
    assert [delimiter_of(path, "utf-8", "auto", natural) for natural in (",", ";", "\t")] == [",", ";", ","]


def test_a_file_without_a_header_has_numbered_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("one,0\ntwo,1\n")
    assert read_table(path, Layout(header=False), ("f1", "f0")).to_pylist() == [
        {"f1": "0", "f0": "one"},
        {"f1": "1", "f0": "two"},
    ]


@pytest.mark.parametrize(
    "value",
    [
        [{"body": "one", "y": 0}, {"body": "two", "y": 1}],
        {"body": ["one", "two"], "y": [0, 1]},
        {"body": {"0": "one", "1": "two"}, "y": {"0": 0, "1": 1}},
        {"version": 2, "data": [{"body": "one", "y": 0}, {"body": "two", "y": 1}]},
        {"columns": ["y", "body"], "index": [0, 1], "data": [[0, "one"], [1, "two"]]},
    ],
    ids=["records", "columns", "pandas", "nested", "split"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_of_every_orientation_is_read(value: object, indent: int | None, tmp_path: Path) -> None:
    for codec in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_bytes(json.dumps(value, indent=indent).encode(codec))
        assert rows(tmp_path / "a.json") == [("one", "0"), ("two", "1")]
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(value).encode()))
    assert rows(tmp_path / "a.json.gz") == [("one", "0"), ("two", "1")]


def test_json_lines_are_read_from_every_suffix(tmp_path: Path) -> None:
    content = b'{"body": "one", "y": 0}\n\n{"body": "two", "y": 1}\n'
    for name in ("a.json", "a.jsonl", "a.ndjson", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        assert rows(tmp_path / name) == [("one", "0"), ("two", "1")]


def test_a_spreadsheet_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="spreadsheets are not read; save the table as a CSV file"):
        rows(tmp_path / "a.xlsx")


def test_several_tables_in_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"train": [{"body": "one", "y": 0}], "test": [{"body": "two", "y": 1}]})
    )
    with pytest.raises(DataError, match="it has several tables: train and test; save each as a file of its own"):
        rows(tmp_path / "a.json")
