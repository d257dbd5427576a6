"""The commands to begin with: init, completion."""

from __future__ import annotations

import argparse
from pathlib import Path

from fibec_ray.cli.argument_types import path
from fibec_ray.cli.parsing import Parsers

TITLE = "begin"
COMPLETION = (
    'For this shell: eval "$(fibec-ray completion bash)". For every shell: put that line into ~/.bashrc, or with zsh '
    "into ~/.zshrc. It completes commands, options, configs, methods, tasks and backbones."
)


def add(parsers: Parsers) -> None:
    """Add these commands to the parser."""
    init = parsers.add_parser("init", help="make a folder with an experiment, a method and a part of your own")
    init.add_argument("folder", nargs="?", type=path, metavar="DIR", default=Path(), help="default: the current folder")
    init.set_defaults(command=_init)

    completion = parsers.add_parser("completion", help="print a script for TAB completion in your shell")
    completion.epilog = COMPLETION
    completion.add_argument("shell", choices=("bash", "zsh"), help="your shell")
    completion.set_defaults(command=_completion, prints=True)


def _init(arguments: argparse.Namespace) -> None:
    import shlex

    from fibec_ray.cli.template import write

    folder: Path = arguments.folder
    for name in write(folder):
        print(f"wrote {folder / name}")
    enter = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(f"next: {enter}fibec-ray run")


def _completion(arguments: argparse.Namespace) -> None:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["fibec-ray"], shell=arguments.shell))
