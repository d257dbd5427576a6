"""python -m fibec_ray.testing my_rules.py: runs every check over each part in a file, and prints a line for each."""

from __future__ import annotations

import argparse
import inspect
import os
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fibec_ray.cli import entry
from fibec_ray.errors import ConfigError, RunError

if TYPE_CHECKING:
    from fibec_ray.parts.part import Part


class ChecksFailed(RunError):
    """A part does not do what the engine relies on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all is well, 1 a check failed, 2 bad input."""
    return entry.run(partial(_parse, argv))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fibec_ray.testing",
        description="Check the parts in a Python file: what their hooks give, what a run of them sends and computes "
        "against its plan, that it can be resumed, and that Ray gives the same bits. This runs the file.",
    )
    parser.add_argument("file", metavar="FILE.py", type=Path, help="the file with the parts")
    parser.add_argument(
        "beside",
        nargs="*",
        metavar="axis=value",
        help="other parts that these need, such as sharing=gal or objective=my_rules.py:Half",
    )
    parser.add_argument("--no-ray", action="store_true", help="leave out the check that starts Ray")
    parser.set_defaults(command=_check, prints=False)
    return parser.parse_args(argv)


def _check(arguments: argparse.Namespace) -> None:
    from fibec_ray.parts import own
    from fibec_ray.parts.part import Part

    beside = _beside(arguments.beside)
    try:
        module = own.load_file(arguments.file)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    found = [part for part in own.classes_in(module, Part).values() if not inspect.isabstract(part)]
    if not found:
        raise ConfigError(f"{arguments.file}: defines no part; derive a class from one in fibec_ray.parts.AXIS.base")
    with tempfile.TemporaryDirectory(prefix="fibec-ray-testing-") as folder:
        os.environ.setdefault("FIBEC_RAY_CACHE", str(Path(folder) / "cache"))
        failed = 0
        for part in found:
            print(f"{arguments.file.name}:{part.__name__}", flush=True)
            for name, verdict, text in verdicts(part, beside, Path(folder), not arguments.no_ray):
                failed += verdict == "FAILED"
                print(f"  {verdict:8}{name:11}{text}", flush=True)
    if failed:
        raise ChecksFailed(f"{failed} check{'s' * (failed > 1)} failed")


def _beside(texts: Sequence[str]) -> dict[str, Any]:
    from fibec_ray.config.load import parse_override
    from fibec_ray.method import AXES

    found = dict[str, Any]()
    for text in texts:
        keys, value = parse_override(text)
        if len(keys) != 1 or keys[0] not in AXES:
            raise ConfigError(f"'{text}': expected axis=value; the axes are {', '.join(AXES)}")
        found[keys[0]] = value
    return found


def verdicts(part: type[Part], beside: dict[str, Any], folder: Path, ray: bool) -> Iterator[tuple[str, str, str]]:
    """Of each check: its name, `ok`, `FAILED` or `skipped`, and what was found."""
    from fibec_ray.testing import checks, tiny

    trial = checks.Trial(part, beside, folder / part.__name__)
    all_checks = {"fields": partial(checks.fields, trial)}
    all_checks |= {where: partial(checks.works, trial, where) for where in tiny.PLACES}
    all_checks |= {"plan": partial(checks.planned, trial), "resume": partial(checks.resumed, trial)}
    all_checks |= {"ray": partial(checks.on_ray, trial)} if ray else {}
    for name, check in all_checks.items():
        try:
            yield name, "ok", check()
        except checks.Skipped as reason:
            yield name, "skipped", str(reason)
        except Exception as error:
            yield name, "FAILED", _reason(error, inspect.getfile(part))


def _reason(error: Exception, file: str) -> str:
    """What went wrong, and the last line of the user's file that ran."""
    from fibec_ray.testing.checks import Broken

    lines = list[str]()
    cause: BaseException | None = error
    while cause is not None:
        lines += [
            f"line {f.lineno}, in {f.name}" for f in traceback.extract_tb(cause.__traceback__) if f.filename == file
        ]
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    told = text if isinstance(error, Broken | RunError) else f"{type(error).__name__}: {text}"
    return f"{told} ({lines[-1]})" if lines else told


if __name__ == "__main__":
    raise SystemExit(main())
