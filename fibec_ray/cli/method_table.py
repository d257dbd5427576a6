"""Wide tables of methods, of user-defined parts, and of tasks, backbones and configs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fibec_ray.cli.catalogue import Entry
from fibec_ray.cli.terminal import make_console, print_table
from fibec_ray.errors import ConfigError
from fibec_ray.method import AXES, Method
from fibec_ray.parts import own
from fibec_ray.parts.part import Part, contract_of
from fibec_ray.samplers import SAMPLERS
from fibec_ray.schedules import SCHEDULES

KINDS: dict[str, Mapping[str, type[Any]]] = {**AXES, "sampler": SAMPLERS, "schedule": SCHEDULES}
"""What a user's own part may be: a part of a method, or one of an experiment."""
Row = tuple[str, str, str, str]
"""kind, axis, summary, source"""


def method_table(methods: Sequence[tuple[str, Method]]) -> None:
    """One row per method: its part on each axis (blank: the neutral one), what devices send, what is kept."""
    table = Table()
    for column in ("method", *AXES, "sends", "keeps", "reference"):
        table.add_column(column, overflow="fold")
    neutral = Method()
    for name, method in methods:
        kinds = {axis: part.kind for axis, part in method.parts.items()}
        cells = [kinds[axis] if kinds[axis] != neutral.parts[axis].kind or axis == "peft" else "" for axis in AXES]
        table.add_row(name, *cells, method.sends, method.keeps, method.reference)
    print_table(make_console(), table, fold_in_pipes=False)


def as_json(entry: Entry, method: Method) -> dict[str, Any]:
    """A method as plain values: where it comes from, and the kind on each axis."""
    values = {**entry._asdict(), "file": str(entry.file), "reference": method.reference}
    values["parts"] = {axis: part.kind for axis, part in method.parts.items()}
    return values | {"pooled": method.pooled, "sends": method.sends, "keeps": method.keeps}


def entry_table(entries: Sequence[Entry]) -> None:
    """One row per task, backbone or config, with its file."""
    table = Table()
    for column in ("name", "family", "what", "file"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        table.add_row(entry.name, entry.family, entry.summary, str(entry.file))
    print_table(make_console(), table, fold_in_pipes=False)


def own_parts(files: Sequence[Path], methods: Sequence[Method]) -> list[Row]:
    """User-defined parts: in Python files, in methods and in installed packages. Runs the files. Raises ConfigError."""
    found: list[type[Part]] = []
    try:
        for file in files:
            found += own.classes_in(own.load_file(file), Part).values()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    found += [type(part) for method in methods for part in method.parts.values() if own.is_own(type(part))]
    return [*map(_row, dict.fromkeys(found)), *_offered()]


def _offered() -> Iterator[Row]:
    for name in own.offered_names():
        try:
            cls = own.find(name, Part)
        except ValueError as error:
            yield name, "", str(error), ""
            continue
        assert cls is not None, "it is offered"
        kind, axis, what, where = _row(cls)
        hidden = f"a built-in kind has this name; use {kind}" if name in KINDS[axis] else what
        yield name, axis, hidden, where


def _row(cls: type[Part]) -> Row:
    axis = next(axis for axis, registry in KINDS.items() if issubclass(cls, contract_of(registry)))
    source = own.source_of(cls)
    first = (inspect.getdoc(cls) or "").partition("\n")[0] if cls.__doc__ else ""
    return str(cls.model_fields["kind"].default), axis, first, f"{source.path}, digest {source.digest}"


def part_table(rows: Sequence[Row]) -> None:
    """Print a table of parts; nothing without rows."""
    if rows:
        table = Table("part", "axis", "summary", "source")
        for row in rows:
            table.add_row(*row)
        print_table(make_console(), table, fold_in_pipes=False)
