"""The page of commands, docs/cli.md, made from the command's own parser."""

from __future__ import annotations

import argparse

from fibec_ray.cli.main import build_parser

_INTRODUCTION = """# Commands

<!-- Generated: python -m fibec_ray.cli.reference -->

`fibec-ray COMMAND --help` prints the same. Every command ends with exit code 0 if it did its work, 1 if a run or a
check failed, and 2 if the input is wrong. A wrong input gets one line that says where, what was found and what is
allowed.

Where a command takes `key=value`, `--key value` works too: `rounds=3`, `--rounds 3`. [Settings](settings.md) lists the
keys. `fibec-ray completion bash` prints a script that completes commands and names in your shell.

| command | what it does |
|---|---|"""


def commands_page() -> str:
    """The page docs/cli.md."""
    _, parsers = build_parser()
    rows = [
        f"| [`{name}`](#{name}) | {_cell(text)} |" for group in parsers.groups.values() for name, text in group.items()
    ]
    parts = ["\n".join([_INTRODUCTION, *rows])]
    for title, group in parsers.groups.items():
        parts.append(f"## {title[:1].upper()}{title[1:]}")
        parts += [_section(name, text, parsers.commands[name]) for name, text in group.items()]
    return "\n\n".join(parts) + "\n"


def _section(name: str, text: str, parser: argparse.ArgumentParser) -> str:
    arguments = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    parts = [f"### `{name}`", _sentence(text)]
    parts.append(f"```text\nfibec-ray {' '.join([name, *map(_usage, arguments)])}\n```")
    if arguments:
        rows = [f"| {_name(action)} | {_cell(_help(action))} |" for action in arguments]
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    if parser.epilog:
        parts.append(parser.epilog)
    return "\n\n".join(parts)


def _usage(action: argparse.Action) -> str:
    """`CONFIG`, `[--out DIR]`, `[key=value ...]`."""
    value = _value(action)
    if action.option_strings:
        text = " ".join(filter(None, [action.option_strings[-1], value]))
        return text if action.required else f"[{text}]"
    return {"*": f"[{value} ...]", "?": f"[{value}]", "+": f"{value} [{value} ...]"}.get(str(action.nargs), value)


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None and not action.metavar:
        return "{" + ",".join(map(str, action.choices)) + "}"
    shown = action.metavar or action.dest.upper()
    return shown if isinstance(shown, str) else " ".join(shown)


def _name(action: argparse.Action) -> str:
    names = [" ".join(filter(None, [option, _value(action)])) for option in action.option_strings]
    return ", ".join(f"`{_cell(name)}`" for name in names or [_value(action)])


def _help(action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default, "prog": "fibec-ray"} if action.help else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
