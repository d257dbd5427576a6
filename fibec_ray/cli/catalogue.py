"""Short lists of methods, tasks, backbones and configs: one line each, by family, as `catalogue.yaml` has them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fibec_ray.config.names import own, packaged
from fibec_ray.errors import UserError

OWN = "Your own"
NAME_WIDTH = 25
"""Characters, the indent included."""
FOLDED = "more"
"""Key in a family of the catalogue: below it are the entries that the short list only names."""
FOLDED_LINES = 2
"""Most lines of such names under one label."""


class Entry(NamedTuple):
    """One line of a list: a config, method, task or backbone."""

    name: str
    family: str
    summary: str
    file: Path
    fold: str = ""
    """the label under which the short list only names it; '': it has a line of its own"""
    use: str = ""
    """when to use a method"""
    cost: str = ""
    """what a method costs, compared with FedAvg on LoRA"""


def entries(group: str, folder: Path = Path()) -> list[Entry]:
    """List methods, tasks, backbones or configs (experiments and sweeps), the user's own last.

    folder: holds the user's own, in a folder with the group's name.
    """
    families: dict[str, dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))[group]
    files = packaged("experiments") | packaged("sweeps") if group == "configs" else packaged(group)
    found = [entry for family, names in families.items() for entry in _family(family, names, files)]
    found += [Entry(name, "Others", "", file) for name, file in files.items()]
    known = {entry.file.resolve() for entry in found}
    mine = own(group, folder) if group != "configs" else {}
    return found + [Entry(name, OWN, str(file), file) for name, file in mine.items() if file.resolve() not in known]


def _family(family: str, names: Mapping[str, Any], files: dict[str, Path], fold: str = "") -> Iterator[Entry]:
    """The entries of a family, in order; takes their files out of `files`."""
    for name, says in names.items():
        if name == FOLDED:
            for label, below in says.items():
                yield from _family(family, below, files, label)
        else:
            words = {"what": says} if isinstance(says, str) else says
            file = files.pop(name)
            yield Entry(name, family, words["what"], file, fold, words.get("use", ""), words.get("cost", ""))


def print_list(found: list[Entry], more: str, folded: bool = False) -> None:
    """Print each family with one line per entry, as wide as the terminal.

    more: the line below the list. folded: only name the entries that have a fold.
    """
    width = shutil.get_terminal_size().columns
    for family, members in groupby(found, key=lambda entry: entry.family):
        print(family)
        for label, under in groupby(members, key=lambda entry: entry.fold if folded else ""):
            together = list(under)
            _print_names(label, together, width) if label else _print_lines(together, width)
    print(more)


def _print_lines(found: list[Entry], width: int) -> None:
    for entry in found:
        name = f"  {entry.name}"
        lines = textwrap.wrap(entry.summary, max(width - NAME_WIDTH, 20), break_long_words=False) or [""]
        print(f"{name:{NAME_WIDTH - 1}} {lines[0]}")
        for line in lines[1:]:
            print(f"{'':{NAME_WIDTH}}{line}")


def _print_names(label: str, found: list[Entry], width: int) -> None:
    """The label and as many names as fit in a few lines."""
    names = [entry.name for entry in found]
    for count in range(len(names), -1, -1):
        rest = [f"{len(names) - count} more"] if count < len(names) else []
        text = f"  {label}: {', '.join(names[:count] + rest)}"
        lines = textwrap.wrap(text, max(width, 40), subsequent_indent="    ", break_on_hyphens=False)
        if len(lines) <= FOLDED_LINES:
            break
    print("\n".join(lines))


def plain(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain values, with the settings in its file."""
    from fibec_ray.config.reading import read_yaml

    values = {"name": entry.name, "family": entry.family, "summary": entry.summary, "file": str(entry.file)}
    try:
        return values | {"settings": read_yaml(entry.file)}
    except UserError as error:  # one broken file must not hide the others
        return values | {"error": str(error)}


_FILE = Path(__file__).with_name("catalogue.yaml")
