"""Malformed experiments, by class; test_malformed.py feeds each to the command line.

A case is a name, and either the bytes of the YAML file or overrides of a small experiment that is in order.
"""

from __future__ import annotations

from collections.abc import Iterator

Case = tuple[str, bytes | list[str]]

NO_COUNT = ["text", "[]", "{}", "-1", "1.5", ".nan", ".inf", "1e400", str(10**30), "true", "2026-01-01", "null"]
NO_RATE = ["text", "[]", "{}", "-1", ".nan", ".inf", "-.inf", "1e400", "null"]
NO_NAME = ["[]", "{}", "1.5", "'no such thing'", "../../etc/passwd", "''", "null"]

COUNTS = ["rounds", "num_devices", "cohort_size", "local.batch_size", "local.epochs", "evaluation.every"]
COUNTS += ["fleet.threads", "checkpoint.every", "data.max_length", "data.synthetic.num_train"]
RATES = ["local.learning_rate", "local.weight_decay", "fleet.quorum", "system.gflops"]
NAMES = ["method", "task", "fleet.kind", "method.aggregator.kind", "backbone.init", "fleet.on_lost"]


def wrong_values() -> Iterator[Case]:
    """Every kind of number where a count, a rate or a name is wanted."""
    for keys, values in ((COUNTS, NO_COUNT), (RATES, NO_RATE), (NAMES, NO_NAME)):
        for key in keys:
            for value in values:
                if (key, value) != ("method", "{}"):  # that is FedAvg
                    yield f"{key}={value[:20]}", [f"{key}={value}"]


def unknown_keys() -> Iterator[Case]:
    for key in [
        "round",
        "locl.epochs",
        "local.epoch",
        "method.agregator",
        "fleet.quorom",
        "data.x.y",
        "seed.x",
        "a.b.c",
    ]:
        yield f"{key}=1", [f"{key}=1"]


def bad_overrides() -> Iterator[Case]:
    for text in ["=1", "rounds", "rounds=", ".rounds=1", "rounds.=1", "rounds=[", "rounds=!!python/name:os.system x"]:
        yield text, [text]
    yield "name with a slash", ["name=a/b"]
    yield "name that climbs", ["name=.."]
    yield "name with an escape", ['name="\\e[31mred"']
    yield "name with half a character", ['name="\\ud800"']
    yield "name with a zero", ['name="a\\0b"']
    yield "a seed of many bits", [f"seed={10**40}"]
    yield "a quorum of nothing", ["fleet.quorum=0"]
    yield "lanes with one device each", ["fleet.placement=per_device", "fleet.lanes=4"]
    yield "momentum without sgd", ["local.momentum=0.5"]
    yield "a cohort that is too large", ["cohort_size=7"]


def tags() -> Iterator[Case]:
    for tag in [
        "python/object/apply:os.system ['true']",
        "python/object/new:os.system ['true']",
        "python/name:os.system x",
    ]:
        yield f"tag {tag[:16]}", f"name: !!python/{tag}\n".encode()
    yield "tag python/module", b"name: !!python/module:os x\n"
    yield "tag of our own", b"name: !secret x\n"
    yield "tag binary", b"name: !!binary aGVsbG8=\n"
    yield "tag set", b"name: !!set {a, b}\n"
    yield "tag of a date", b"name: !!timestamp 9999-99-99\n"
    yield "tag of an integer", b"rounds: !!int many\n"


def bombs() -> Iterator[Case]:
    levels = [b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]".encode() for i in range(1, 12)]
    yield "billion laughs", b"\n".join(levels)
    yield "billion laughs for a number", b"\n".join([*levels, b"rounds: *a11"])
    yield "mapping in itself", b"name: &a {b: *a}\n"
    yield "sequence in itself", b"rounds: &a [*a]\n"
    yield "deep sequences", b"rounds: " + b"[" * 5000 + b"]" * 5000
    yield "deep mappings", b"local: " + b"{a: " * 400 + b"1" + b"}" * 400
    yield "nested a hundred deep", b"local: " + b"{a: " * 100 + b"1" + b"}" * 100
    yield "a long number", b"rounds: " + b"9" * 5000
    yield "a long word", b"rounds: " + b"x" * 1_000_000
    yield "many values", b"rounds: [" + b"1," * 101_000 + b"]"
    yield "merge key bomb", b"a: &a {x: 1}\nb:\n  <<: [*a, *a, 3]\n"


def no_yaml() -> Iterator[Case]:
    texts = {
        "empty": b"",
        "blank": b"\n\n  \n",
        "a comment": b"# nothing\n",
        "null": b"null\n",
        "a number": b"3\n",
        "a list": b"- a\n- b\n",
        "a word": b"hello\n",
        "two documents": b"a: 1\n---\nb: 2\n",
        "a tab": b"a:\n\t- b\n",
        "an open quote": b'name: "never ends\n',
        "an open brace": b"local: {epochs: 1\n",
        "unknown alias": b"a: *b\n",
        "an anchor of nothing": b"a: &x\n b",
        "latin-1": "name: zo\u00eb\n".encode("latin-1"),
        "utf-16": "name: x\n".encode("utf-16"),
        "a null byte": b"name: a\0b\n",
        "half a character": b"name: \xe2\x82\n",
        "random bytes": bytes(range(256)),
        "a pickle": b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00.",
        "json cut short": b'{"a": ',
        "parquet": b"PAR1" + bytes(64) + b"PAR1",
        "numbers for keys": b"1: 2\n",
        "numbers for inner keys": b"local: {1: 2}\n",
        "nothing for a key": b"local: {null: 2}\n",
        "lists for keys": b"? [a]\n: 1\n",
        "a date for a key": b"2026-01-01: 1\n",
        "only a name": b"name: x\n",
        "colons": b"a: b: c\n",
    }
    yield from texts.items()


ALL = {
    "wrong values": wrong_values,
    "unknown keys": unknown_keys,
    "bad overrides": bad_overrides,
    "tags": tags,
    "bombs": bombs,
    "no YAML": no_yaml,
}
