"""How a text file is written: its encoding, compression and delimiter, set by the user or found in its first bytes."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa

Format = Literal["auto", "parquet", "csv", "tsv", "jsonl"]
Delimiter = Literal["auto", "comma", "semicolon", "tab", "pipe"]

DELIMITERS: dict[str, str] = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
MOST_BYTES = 4_000_000_000
"""of a file that must be decompressed or decoded in memory"""
_SAMPLE = 1 << 16
_BLOCK = 1 << 20
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


@dataclass(frozen=True)
class Layout:
    """How the files of a data set are written. `auto` is found file by file."""

    format: Format = "auto"
    delimiter: Delimiter = "auto"
    encoding: str = "auto"
    header: bool = True


def is_compressed(path: Path) -> bool:
    """True for a gzip file."""
    return path.suffix.lower() == ".gz"


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed if its name ends in .gz."""
    return gzip.open(path, "rb") if is_compressed(path) else path.open("rb")  # type: ignore[return-value]


def encoding_of(path: Path, encoding: str, guesses: bool = True) -> str:
    """The codec to read a text file with.

    encoding: a codec's name, or auto: the byte order mark decides, then UTF-8 if all bytes fit, then cp1252.
    guesses: False leaves out cp1252. Raises ValueError if nothing fits, and for Excel workbooks.
    """
    with _plainly(), open_bytes(path) as file:
        head = file.read(4096)
        if head.startswith(_WORKBOOKS):
            raise ValueError("it is an Excel workbook or a zip archive; save the table as a CSV file (UTF-8)")
        if encoding != "auto":
            return encoding
        for mark, name in _MARKS:
            if head.startswith(mark):
                return name
        if (wide := _wide(head)) is not None:
            return wide
        for name in ("utf-8", *(("cp1252",) if guesses else ())):
            file.seek(0)
            if _fits(file, name):
                return name
    raise ValueError("it is not UTF-8; set data.encoding, for example to cp1252, or save it as UTF-8")


def text_source(path: Path, codec: str) -> tuple[Callable[[], Any], int]:
    """(opens the file as UTF-8 bytes for pyarrow, as often as it is called; its size in bytes).

    Plain UTF-8 files are streamed from the disk. Others are held in memory: raises ValueError over MOST_BYTES.
    """
    if not is_compressed(path) and codec in ("utf-8", "utf-8-sig"):
        return lambda: str(path), path.stat().st_size
    with _plainly(), open_bytes(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES // 10**9} GB to decode in memory; save it as uncompressed UTF-8")
    utf8 = content if codec in ("utf-8", "utf-8-sig") else decoded(content, codec).encode()
    # Not io.BytesIO: pyarrow reads ahead in a thread, which must not need Python when the program ends.
    return lambda: pa.BufferReader(utf8), len(utf8)


def decoded(content: bytes, codec: str) -> str:
    """Decode bytes. Raises ValueError that names the first byte that does not fit."""
    try:
        return content.decode(codec)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not {codec} ({error.reason}); set data.encoding") from error


def delimiter_of(path: Path, codec: str, delimiter: Delimiter, natural: str) -> str:
    """The character between columns.

    auto: the natural one for the file's suffix if it cuts the first lines into equally many fields; else the first of
    `, ; tab |` that does.
    """
    if delimiter != "auto":
        return DELIMITERS[delimiter]
    with _plainly(), open_bytes(path) as file:
        content = file.read(_SAMPLE)
    text = codecs.getincrementaldecoder(codec)(errors="replace").decode(content).removeprefix("\ufeff")
    whole = len(content) < _SAMPLE
    candidates = [natural, *(each for each in DELIMITERS.values() if each != natural)]
    widths = {each: _widths(text, each, whole) for each in candidates}
    for each in candidates:
        if widths[each] and widths[each][0] > 1 and len(set(widths[each])) == 1:
            return each
    heads = {each: found[0] for each, found in widths.items() if found and found[0] > 1}
    return natural if natural in heads or not heads else max(heads, key=lambda each: heads[each])


def _widths(text: str, delimiter: str, whole: bool) -> Sequence[int]:
    """Fields of each of the first records."""
    try:
        records = [len(record) for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if record]
    except csv.Error:
        return ()
    return records if whole or len(records) == 1 else records[:-1]


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark: Latin text has a zero in every other byte."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if min(even, odd) * 10 > max(even, odd) or max(even, odd) * 4 < len(head):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _fits(file: IO[bytes], codec: str) -> bool:
    decoder = codecs.getincrementaldecoder(codec)()
    try:
        while block := file.read(_BLOCK):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _plainly() -> Iterator[None]:
    """Raise ValueError for damaged compressed files."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise ValueError(f"the compressed file is damaged ({error})") from error
