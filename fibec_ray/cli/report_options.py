"""`fibec-ray report`: its options, and the call."""

from __future__ import annotations

import argparse

from fibec_ray.analysis.paper_style import FORMATS, STYLES
from fibec_ray.cli.argument_types import path
from fibec_ray.errors import UserError


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fibec-ray report`."""
    parser.add_argument("--out", type=path, metavar="FILE", help="page (default: RUN/report.html, or report.html)")
    parser.add_argument("--figures", type=path, metavar="DIR", help="also write figures for a paper into this folder")
    parser.add_argument("--only", type=_names, metavar="NAMES", help="some figures, such as 'accuracy*,timeline'")
    parser.add_argument(
        "--format", type=_names, metavar="FORMATS", help=f"some of {','.join(FORMATS)} (default: all three)"
    )
    sizes = ", ".join(f"{name} ({width:g} x {height:g} in)" for name, (width, height) in STYLES.items())
    parser.add_argument("--style", metavar="NAME", help=f"{sizes}; default: {next(iter(STYLES))}")
    parser.add_argument("--size", metavar="WxH", help="size of the whole figure in inches, such as 3.4x2.3")
    parser.add_argument(
        "--font", metavar="NAME", help="serif, sans-serif or an installed font, such as 'Times New Roman'"
    )
    parser.add_argument("--font-size", type=float, metavar="PT", help="default: 8 points")
    parser.add_argument("--titles", action="store_true", help="write each figure's title above it")
    parser.add_argument("--each-run", action="store_true", help="with several runs: each run's own figures too")
    parser.set_defaults(command=_report)


def _names(text: str) -> tuple[str, ...]:
    """'a, b,a' -> ('a', 'b')"""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def _report(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.paper_style import style_of
    from fibec_ray.analysis.report import write_report

    _refuse_unused(arguments)
    style = style_of(
        arguments.style or next(iter(STYLES)),
        arguments.size,
        arguments.font,
        arguments.font_size,
        arguments.titles,
        arguments.format or FORMATS,
    )
    only = arguments.only or ()
    print(write_report(arguments.runs, arguments.out, arguments.figures, style, only, arguments.each_run))
    if arguments.figures:
        print(arguments.figures)


def _refuse_unused(arguments: argparse.Namespace) -> None:
    """Raise UserError for an option that changes figures where none are written."""
    names = ("only", "format", "style", "size", "font", "font_size", "titles", "each_run")
    given = [name for name in names if getattr(arguments, name)]
    if given and not arguments.figures:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option}: changes paper figures, and none are written; add --figures DIR")
