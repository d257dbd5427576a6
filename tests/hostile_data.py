"""Malformed data sets, by name: what stands in train.* where a good set would; test_malformed.py runs each."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GOOD = {"sentence": ["a fine film", "a dull film"] * 20, "label": [1, 0] * 20}
HUGE = 10**30


def parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _flipped(content: bytes, seed: int) -> bytes:
    """With a quarter of its first half overwritten by chance."""
    rng, out = random.Random(seed), bytearray(content)
    for _ in range(len(out) // 8):
        out[rng.randrange(4, len(out) // 2)] = rng.randrange(256)
    return bytes(out)


def columns(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**GOOD, **changes}.items() if value is not None}


_WHOLE = parquet(GOOD)
NO_COLUMNS = {
    "no texts": columns(sentence=None),
    "no labels": columns(label=None),
    "other columns": {"x": [1], "y": [2]},
    "no rows": {"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())},
    "nulls in texts": columns(sentence=["a", None] * 20),
    "nulls in labels": columns(label=[1, None] * 20),
    "all texts null": columns(sentence=pa.nulls(40)),
    "all labels null": columns(label=pa.nulls(40)),
    "blank texts": columns(sentence=["", "  "] * 20),
    "numbers for texts": columns(sentence=list(range(40))),
    "bytes for texts": columns(sentence=[b"a", b"\xff"] * 20),
    "lists for texts": columns(sentence=[["a"], []] * 20),
    "records for texts": columns(sentence=[{"a": 1}] * 40),
    "unknown class": columns(label=["positive", "neutral"] * 20),
    "class out of range": columns(label=[0, 2] * 20),
    "negative class": columns(label=[0, -2] * 20),
    "unlabelled": columns(label=[-1] * 40),
    "halves for labels": columns(label=[0.5, 1.0] * 20),
    "nan for labels": columns(label=[0.0, float("nan")] * 20),
    "inf for labels": columns(label=[0.0, float("inf")] * 20),
    "large floats for labels": columns(label=[0.0, 1e300] * 20),
    "large integers for labels": columns(label=pa.array([0, 2**64 - 1] * 20, pa.uint64())),
    "digits without end for labels": columns(label=["0", "9" * 40] * 20),
    "more digits than python reads": columns(label=["0", "9" * 5000] * 20),
    "dates for labels": columns(label=pa.array([0, 1] * 20, pa.date32())),
    "lists for labels": columns(label=[[0], [1]] * 20),
    "fewer rows than devices": {"sentence": ["a"], "label": [0]},
}
PARQUETS = {
    "empty": b"",
    "magic only": b"PAR1PAR1",
    "cut short": _WHOLE[: len(_WHOLE) // 2],
    "cut by a byte": _WHOLE[:-1],
    "no head": _WHOLE[8:],
    "footer of zeros": _WHOLE[:-8] + bytes(8),
    "footer that is too long": _WHOLE[:-8] + b"\xff\xff\xff\x7fPAR1",
    "text": b"sentence,label\na,1\n",
    "a pickle": b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00.",
    **{f"flipped bytes {seed}": _flipped(_WHOLE, seed) for seed in range(4)},
}
CSVS = {
    "empty": b"",
    "a line end": b"\n",
    "head only": b"sentence,label\n",
    "no head": b"a fine film,1\n" * 40,
    "ragged": b"sentence,label\na,1\nb\nc,1,2\n",
    "open quote": b'sentence,label\n"a,1\n',
    "not UTF-8": b"sentence,label\n\xff\xfe,1\n",
    "zeros": bytes(500),
    "random": bytes(range(256)) * 4,
    "same column twice": b"sentence,sentence,label\na,b,1\n",
    "semicolons": b"sentence;label\na;1\n",
    "utf-16": "sentence,label\na,1\n".encode("utf-16"),
    "a long line": b"sentence,label\n" + b"x" * 2_000_000,
}
JSONLS = {
    "empty": b"",
    "blank": b"\n\n\n",
    "no object": b"[1, 2]\n",
    "a number": b"3\n",
    "cut short": b'{"sentence": "a", "label": 1}\n{"sentence": "b", "la',
    "not JSON": b"hello\n",
    "NaN": b'{"sentence": "a", "label": NaN}\n' * 40,
    "deep": b'{"sentence": ' + b"[" * 100_000 + b"\n",
    "a huge number": b'{"sentence": "a", "label": ' + b"9" * 60 + b"}\n",
    "a number of many digits": b'{"sentence": "a", "label": ' + b"9" * 6000 + b"}\n",
    "mixed types": b'{"sentence": "a", "label": 1}\n{"sentence": 3, "label": "x"}\n',
    "half a character": b'{"sentence": "\\ud800", "label": 1}\n' * 40,
    "not UTF-8": b'{"sentence": "\xff", "label": 1}\n',
    "some without labels": b'{"sentence": "a", "label": 1}\n{"sentence": "b"}\n' * 20,
    "objects for texts": b'{"sentence": {"a": 1}, "label": 1}\n' * 40,
    "an array of all": b'[{"sentence": "a", "label": 1}]',
}

ALL: dict[str, tuple[str, bytes]] = {
    **{f"columns, {name}": ("parquet", parquet(found)) for name, found in NO_COLUMNS.items()},
    **{f"Parquet, {name}": ("parquet", content) for name, content in PARQUETS.items()},
    **{f"CSV, {name}": ("csv", content) for name, content in CSVS.items()},
    **{f"JSON lines, {name}": ("jsonl", content) for name, content in JSONLS.items()},
}
"""Suffix and content by name."""

TOLD = {
    "instruction": [f"name it {i}" for i in range(20)],
    "response": ["moon", "lake"] * 10,
    "category": ["a", "b"] * 10,
}
"""Instructions in order."""


def told(**changes: Any) -> bytes:
    rows = {name: value for name, value in {**TOLD, **changes}.items() if value is not None}
    return "".join(json.dumps(row) + "\n" for row in pa.table(rows).to_pylist()).encode()


INSTRUCTIONS: dict[str, tuple[bytes, str]] = {
    "no responses": (told(response=None), "no column for the response"),
    "no instructions": (told(instruction=None), "no column for the instruction"),
    "an empty response": (told(response=["moon", " "] * 10), "the response is empty in row 1 and 9 more"),
    "a response that is missing": (
        told() + b'{"instruction": "x", "category": "a"}\n',
        "response is empty in row 20",
    ),
    "an empty instruction": (told(instruction=["x", ""] * 10), "the instruction is empty in row 1"),
    "no category": (told(category=None), "or partition to one of: dirichlet_quantity, iid"),
    "an empty category": (told(category=["a", None] * 10), "the category is empty in row 1"),
    "numbers for responses": (told(response=list(range(20))), "of type int64, not text"),
    "mixed types": (told() + b'{"instruction": "x", "response": 3, "category": "a"}\n', "cannot be read as jsonl"),
    "not UTF-8": (b'{"instruction": "\xff", "response": "x"}\n', "cannot be read as jsonl"),
    "half a character": (b'{"instruction": "\\ud800", "response": "x"}\n' * 9, "mine.jsonl"),
    "not JSON": (b"hello\n", "line 1"),
    "cut short": (told()[:-20], "line 20"),
    "a list": (b"[1]\n", "list where an object was expected"),
    "empty": (b"", "it has no rows"),
    "blank": (b"\n\n", "it has no rows"),
    "one row": (told()[: told().index(b"\n") + 1], "one row cannot be shared"),
    "fewer rows than devices": (b"".join(told().splitlines(True)[:3]), "only 2 training samples"),
    "responses without a token": (told(response=["\u200b"] * 20), "has no token for this tokenizer"),
}
"""Content of mine.jsonl, and the message about it."""
