"""The pages of the documentation, and the commands and code in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
GENERATED = {"cli.md", "settings.md", "methods.md", "round-log.md"}
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "cluster").rglob("README.md")),
        ROOT / "analysis" / "README.md",
    ]
}
WRITTEN = {name: path for name, path in PAGES.items() if path.name not in GENERATED}
"""Pages that a person writes."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)
_NAMED = re.compile(r"^`(?P<name>[\w./-]+)`\n\n```\w+\n(?P<code>.*?)^```$", re.M | re.S)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages, without their indentation."""
    found = [match for match in _FENCE.finditer(text) if match["language"] in languages]
    return [re.sub(rf"^{match['indent']}", "", match["code"], flags=re.M) for match in found]


def prose(text: str) -> str:
    """The page without fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def files(text: str) -> dict[str, str]:
    """The files that the page shows under a line with their name."""
    return {match["name"]: match["code"] for match in _NAMED.finditer(text)}


def lines(text: str) -> Iterator[str]:
    """Each command of the page's shell blocks, alone: continued lines are joined, `a && b` is two."""
    for block in blocks(text, "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (each.strip() for each in re.split(r"&&|;", line))


def commands(text: str) -> list[list[str]]:
    """The arguments of every `fibec-ray` command of the page, in blocks and inline, without those that have `...`."""
    inline = re.findall(r"`(fibec-ray [^`]+)`", prose_with_code(text))
    alone = [re.split(r" [|>] ", line)[0] for line in [*lines(text), *inline] if "..." not in line]
    found = [shlex.split(line, comments=True) for line in alone]
    return [words[1:] for words in found if words[:1] == ["fibec-ray"] and len(words) > 2]


def prose_with_code(text: str) -> str:
    return _FENCE.sub("", text).replace("\n", " ")
