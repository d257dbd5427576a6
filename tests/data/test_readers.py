"""Files as users have them: columns that occur twice, rows of any length, and what programs leave in text files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from fibec_ray.data import hub
from fibec_ray.data.layout import Layout
from fibec_ray.data.readers import read_table
from fibec_ray.errors import DataError
from fibec_ray.tasks import TextClassification

COLUMNS = ("body", "y")


def rows(path: Path, content: str | bytes) -> list[tuple[str, str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row["body"], str(row["y"])) for row in read_table(path, Layout(), COLUMNS).to_pylist()]


# --- columns that occur twice

TWICE = {
    "a.csv": b"body,y,body\none,0,two\n",
    "a.tsv": b"body\ty\tbody\none\t0\ttwo\n",
    "a.jsonl": b'{"body": "zero", "y": 0}\n{"body": "one", "y": 0, "body": "two"}\n',
    "a.json": b'[{"body": "zero", "y": 0}, {"body": "one", "y": 0, "body": "two"}]',
}


@pytest.mark.parametrize("name", TWICE)
def test_a_used_column_that_occurs_twice_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: column 'body' occurs twice.*; rename or remove all but one"):
        rows(tmp_path / name, TWICE[name])


def parquet_of(path: Path, *names: str) -> None:
    pyarrow.parquet.write_table(pa.table([pa.array(["x"])] * len(names), names=list(names)), path)


def test_a_used_column_that_occurs_three_times_in_parquet_is_refused(tmp_path: Path) -> None:
    parquet_of(tmp_path / "a.parquet", "y", "body", "y", "y")
    with pytest.raises(DataError, match=r"a.parquet: column 'y' occurs 3 times; rename"):
        read_table(tmp_path / "a.parquet", Layout(), COLUMNS)


def test_columns_that_are_not_used_may_occur_twice(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.csv", "n,body,y,n,,\n1,one,0,2,,\n") == [("one", "0")]
    assert rows(tmp_path / "b.jsonl", '{"n": 1, "n": 2, "body": "one", "y": 0}\n') == [("one", "0")]
    nested = '{"body": "one", "y": 0, "more": {"body": 1, "body": 2}}\n'
    assert rows(tmp_path / "c.jsonl", nested) == [("one", "0")]
    parquet_of(tmp_path / "d.parquet", "n", "body", "y", "n")
    assert read_table(tmp_path / "d.parquet", Layout(), COLUMNS).num_rows == 1


def test_a_column_of_the_hub_that_occurs_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class Repeating:
        """What a table with two columns of one name looks like through `datasets`."""

        column_names = ("body", "y", "body")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: Repeating())
    task = TextClassification(
        name="t", hub="some/set", text_columns=("body",), label_column="y", label_names=("a", "b"),
        template="{a} <mask>", causal_template="{a}", verbaliser=("x", "z"),
    )  # fmt: skip
    with pytest.raises(DataError, match="hub some/set, split 'train': column 'body' occurs twice"):
        hub.load_columns(task, "train", None, lambda there: ("body", "y"))


# --- rows of any length


@pytest.mark.parametrize("length", [1_100_000, 18_000_000])
def test_rows_longer_than_a_block_are_read(length: int, tmp_path: Path) -> None:
    text = "word " * (length // 5)
    assert rows(tmp_path / "a.csv", f"body,y\nshort,0\n{text},1\n") == [("short", "0"), (text, "1")]
    assert rows(tmp_path / "a.tsv", f"body\ty\n{text}\t1\nshort\t0\n") == [(text, "1"), ("short", "0")]
    lines = "line\n" * (length // 5)
    assert rows(tmp_path / "b.csv", f'body,y\n"{lines}",1\n') == [(lines, "1")]


def test_a_head_longer_than_a_block_is_read(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.csv", f"body,y,{'z' * 1_200_000}\none,0,\n") == [("one", "0")]


def test_a_quote_that_is_never_closed_is_refused_with_its_line(tmp_path: Path) -> None:
    content = 'body,y\none,0\n"two,1\n' + "three,0\n" * 200_000  # more than a block
    with pytest.raises(DataError, match=r"line 3 has 1 field where 2 are expected; is a quote not closed\?"):
        rows(tmp_path / "a.csv", content)


# --- what programs leave in text files


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_line_ends_marks_and_blank_lines_are_no_data(end: str, mark: bytes, tmp_path: Path) -> None:
    expected = [("one", "0"), ("two", "1")]
    for name, lines in (
        ("a.csv", ["body,y", "one,0", "two,1", ""]),
        ("a.tsv", ["body\ty", "one\t0", "two\t1", ""]),
        ("a.jsonl", ['{"body": "one", "y": 0}', "", '{"body": "two", "y": 1}', ""]),
    ):
        assert rows(tmp_path / name, mark + end.join([*lines, ""]).encode()) == expected


def test_a_json_file_with_an_object_per_line_may_begin_with_a_long_one(tmp_path: Path) -> None:
    text = "word " * 10_000
    lines = [json.dumps({"body": text, "y": 0}), json.dumps({"body": "two", "y": 1}), ""]
    for end in ("\n", "\r\n"):
        assert rows(tmp_path / "a.json", end.join(lines)) == [(text, "0"), ("two", "1")]
    with pytest.raises(DataError, match="line 2: Expecting"):
        rows(tmp_path / "a.json", '{"body": "one", "y": 0}\n{"body": }\n')


def test_quotes_are_characters_in_a_tsv_and_marks_in_a_csv(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.tsv", 'body\ty\n"so" he said "\t0\n') == [('"so" he said "', "0")]
    assert rows(tmp_path / "a.csv", 'body,y\n"one, ""two""\nthree",0\n') == [('one, "two"\nthree', "0")]


def test_nul_characters_stay_in_their_texts(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.csv", "body,y\none\0two,0\n") == [("one\0two", "0")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "body,y\none,0\ntwo,1,2\n", "line 3 has 3 fields where 2 are expected"),
        ("a.csv", 'body,y\n"o\nn\ne",0\ntwo\n', "line 5 has 1 field where 2 are expected"),
        ("a.csv", "body,y\n" + "one,0\n" * 300_000 + "two\n" + "three,1\n" * 300_000, "line 300002 has 1 field"),
        ("a.tsv", "body\ty\none\t0\n \ntwo\t1\n", "line 3 has 1 field where 2 are expected"),
        ("a.csv", "", "Empty CSV file"),
        ("a.csv", "body,y", "it has no rows"),
        ("a.tsv", "\n\n", "it has no rows"),
        ("a.csv", b"body,y\n\x81\xff,0\n", "it is not UTF-8; set data.encoding"),
        ("a.jsonl", '{"body": "café", "y": 0}\n'.encode("latin-1"), "it is not UTF-8; set data.encoding"),
        ("a.csv", b"PK\x03\x04 and more", "it is an Excel workbook"),
        ("a.csv.gz", gzip.compress(b"body,y\none,0\n")[:-9], "the compressed file is damaged"),
        ("a.csv.gz", b"body,y\none,0\n", "Not a gzipped file"),
        ("a.json", '{"body": ["one"], "y": [0, 1]}', "columns have different lengths"),
        ("a.json", '{\n "body": "one",\n', "line 3.*or in a .json file one array of objects"),
    ],
)
def test_files_that_cannot_be_read_say_why(name: str, content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: cannot be read as .*{says}") as caught:
        rows(tmp_path / name, content)
    assert "\n" not in str(caught.value)
