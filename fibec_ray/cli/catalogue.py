"""Short lists of methods, tasks, backbones and configs: one line each, by family, as `catalogue.yaml` has them."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fibec_ray.config.names import own, packaged
from fibec_ray.errors import UserError

OWN = "Your own"
NAME_WIDTH = 25
"""Characters, the indent included."""


class Entry(NamedTuple):
    """One line of a list: a config, method, task or backbone."""

    name: str
    family: str
    summary: str
    file: Path


def entries(group: str, folder: Path = Path()) -> list[Entry]:
    """List methods, tasks, backbones or configs (experiments and sweeps), the user's own last.

    folder: holds the user's own, in a folder with the group's name.
    """
    families: dict[str, dict[str, str]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))[group]
    files = packaged("experiments") | packaged("sweeps") if group == "configs" else packaged(group)
    found = [
        Entry(name, family, summary, files.pop(name))
        for family, names in families.items()
        for name, summary in names.items()
    ]
    found += [Entry(name, "Others", "", file) for name, file in files.items()]
    known = {entry.file.resolve() for entry in found}
    mine = own(group, folder) if group != "configs" else {}
    return found + [Entry(name, OWN, str(file), file) for name, file in mine.items() if file.resolve() not in known]


def print_list(found: list[Entry], more: str) -> None:
    """Print each family with one line per entry, as wide as the terminal. more: the line below the list."""
    width = shutil.get_terminal_size().columns
    family = ""
    for entry in found:
        if entry.family != family:
            family = entry.family
            print(family)
        name = f"  {entry.name}"
        lines = textwrap.wrap(entry.summary, max(width - NAME_WIDTH, 20), break_long_words=False) or [""]
        print(f"{name:{NAME_WIDTH - 1}} {lines[0]}")
        for line in lines[1:]:
            print(f"{'':{NAME_WIDTH}}{line}")
    print(more)


def plain(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain values, with the settings in its file."""
    from fibec_ray.config.load import read_yaml

    values = {**entry._asdict(), "file": str(entry.file)}
    try:
        return values | {"settings": read_yaml(entry.file)}
    except UserError as error:  # one broken file must not hide the others
        return values | {"error": str(error)}


_FILE = Path(__file__).with_name("catalogue.yaml")
