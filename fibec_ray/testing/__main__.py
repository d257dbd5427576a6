"""`python -m fibec_ray.testing my_rules.py`: runs every check on each part in a file, and prints one line per check."""

from __future__ import annotations

import argparse
import inspect
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fibec_ray.cli import entry
from fibec_ray.environment import set_default
from fibec_ray.errors import ConfigError, RunError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 no check failed, 1 a check failed, 2 bad input."""
    return entry.run(partial(_parse, argv))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fibec_ray.testing",
        description="Check the parts in a Python file with small runs: same bits when repeated, resumed and run on "
        "Ray, and the traffic and work that `fibec-ray plan` foresees. This runs the code in the file.",
    )
    parser.add_argument("file", metavar="FILE", help="a Python file with parts, or the name of a module")
    example = "other parts that these need, such as sharing=body or objective=my_rules.py:Half"
    parser.add_argument("beside", nargs="*", metavar="axis=value", help=example)
    parser.add_argument("--no-ray", action="store_true", help="leave out the check that starts Ray")
    parser.set_defaults(command=_check, prints=False)
    return parser.parse_args(argv)


def _check(arguments: argparse.Namespace) -> None:
    from fibec_ray.parts import own
    from fibec_ray.parts.part import Part
    from fibec_ray.testing.checks import verdicts

    beside = _beside(arguments.beside)
    try:
        parts = own.classes_in(own.load(arguments.file), Part)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not parts:
        raise ConfigError(f"{arguments.file}: defines no part; derive a class from one in fibec_ray.parts.AXIS.base")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fibec-ray-testing-") as folder:
        set_default("FIBEC_RAY_CACHE", str(Path(folder) / "cache"))
        for part in parts.values():
            if inspect.isabstract(part) and part.__subclasses__():
                continue  # a base class of others
            print(part.model_fields["kind"].default, flush=True)
            for name, verdict, text in verdicts(part, beside, Path(folder), not arguments.no_ray):
                failed += verdict == "FAILED"
                print(f"  {verdict:8}{name:11}{text}", flush=True)
    if failed:
        raise RunError(f"{failed} check{'s' * (failed > 1)} failed")


def _beside(texts: Sequence[str]) -> dict[str, Any]:
    from fibec_ray.config.reading import parse_override
    from fibec_ray.method import AXES

    found = dict[str, Any]()
    for text in texts:
        keys, value = parse_override(text)
        if len(keys) != 1 or keys[0] not in AXES:
            raise ConfigError(f"'{text}': expected axis=value; the axes are {', '.join(AXES)}")
        found[keys[0]] = value
    return found


if __name__ == "__main__":
    raise SystemExit(main())
