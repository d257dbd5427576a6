"""The page of methods, docs/methods.md, made from the parts themselves and from `configs/methods/`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fibec_ray.cli.catalogue import OWN, Entry, entries
from fibec_ray.config.load import load_method
from fibec_ray.config.names import method_files
from fibec_ray.method import AXES, Method
from fibec_ray.parts.part import Part

_INTRODUCTION = """# Methods

<!-- Generated: python -m fibec_ray.cli.reference -->

Each method is one YAML file in `configs/methods/`. It names the parts in which the method differs from FedAvg on LoRA.
`method=NAME` selects a method, and `method.AXIS.FIELD=VALUE` changes it. Parts combine freely; a combination that
cannot work is rejected with the reason. [Your own method](adding-a-method.md) takes about ten lines.

First come the methods [by what they are for](#which-method), then their [parts, traffic and
memory](#parts-traffic-and-memory), then every part with its fields."""

_WHICH = """## Which method?

Costs are compared with FedAvg on LoRA. When to use a method is our summary of its paper, not a result of ours;
[comparing methods](compare-methods.md) shows how to find out on your own data."""

_PARTS = """## Parts, traffic and memory

*All that is trainable* means the adapter, and a head if there is one."""


def page() -> str:
    """The page docs/methods.md."""
    methods = [(path.stem, load_method(path)) for path in method_files()]
    ours = [entry for entry in entries("methods") if entry.family != OWN]
    groups = [_family(family, list(members)) for family, members in groupby(ours, key=lambda entry: entry.family)]
    return "\n\n".join([_INTRODUCTION, _WHICH, *groups, _PARTS, _method_table(methods), *map(_axis, AXES)]) + "\n"


def _family(family: str, members: Sequence[Entry]) -> str:
    """One table of a family's methods, and one for each fold."""
    folds = [list(under) for _, under in groupby(members, key=lambda entry: entry.fold)]
    return "\n\n".join([f"### {family}", *map(_fold, folds)])


def _fold(members: Sequence[Entry]) -> str:
    if members[0].fold:
        rows = [f"| `{entry.name}` | {_escaped(entry.summary)} |" for entry in members]
        return "\n".join(
            [
                f"{members[0].fold[:1].upper()}{members[0].fold[1:]}:",
                "",
                "| method | what it does |",
                "|---|---|",
                *rows,
            ]
        )
    rows = ["| method | what it does | when to use it | what it costs |", "|---|---|---|---|"]
    for entry in members:
        cells = (f"`{entry.name}`", *map(_escaped, (entry.summary, entry.use, entry.cost)))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _method_table(methods: Sequence[tuple[str, Method]]) -> str:
    rows = ["| method | parts | devices send | kept between rounds | reference |", "|---|---|---|---|---|"]
    for name, method in methods:
        cells = (f"`{name}`", _differences(method), method.sends, method.keeps, method.reference)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _differences(method: Method) -> str:
    """'curriculum `fisher`, mask `none`': the parts that are not neutral."""
    neutral = Method().parts
    found = [f"{axis} `{part.kind}`" for axis, part in method.parts.items() if part != neutral[axis]]
    found += ["pooled data"] if method.pooled else []
    return ", ".join(found) or "all neutral"


def _axis(axis: str) -> str:
    return "\n\n".join([f"## `{axis}`", *(_part(cls) for cls in AXES[axis].values())])


def _part(cls: type[Part]) -> str:
    kind = cls.model_fields["kind"].default
    lines = [f"### `{kind}`", inspect.cleandoc(cls.__doc__ or "")]
    fields = [name for name in cls.model_fields if name != "kind"]
    if fields:
        rows = [_field(cls, name) for name in fields]
        lines.append("\n".join(["| field | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(lines)


def _field(cls: type[Part], name: str) -> str:
    field = cls.model_fields[name]
    default = field.get_default(call_default_factory=True)
    return f"| `{name}` | {_shown(default)} | {_escaped(field.description or '')} |"


def _shown(value: Any) -> str:
    return f"`{value.kind}`" if isinstance(value, Part) else f"`{_escaped(str(value))}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
