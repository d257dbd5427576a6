"""How fast devices train, beside a bare loop, Flower and pfl: `python -m fibec_ray.bench.speed`, or `make bench`.

Prints Markdown tables. The first: all contenders on one workload (workload.py). They take turns, so that a change of
the machine's speed affects all alike. A contender whose final adapter differs from the bare loop's gets no figure. The
second: fibec_ray with more devices, larger rounds, and one actor.

`--isa avx2` restricts all contenders to AVX2, as on a processor that has no more. `--write` replaces the section of
docs/performance.md for these instructions, and keeps all other text.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from fibec_ray.bench.contenders import Contender, Ours, Rival, bare, ours
from fibec_ray.bench.environments import RIVALS, InstallError, python_of
from fibec_ray.bench.figures import UNMEASURED, Outcome, Refusal, Size, scale_table, speed_table
from fibec_ray.bench.instruction_set import add_option, described, here
from fibec_ray.bench.machine import busy_with_others, machine
from fibec_ray.bench.runs import Stand, compare, grow, say
from fibec_ray.bench.workload import Sizes
from fibec_ray.config.names import config_folder
from fibec_ray.files.run_dir import write_text

NUM_DEVICES, COHORT_SIZE = 100, 10
"""of the first table"""
SIZES = (Size(100, 10, 2), Size(100, 10, 1), Size(1_000, 100, 2), Size(10_000, 10, 2), Size(10_000, 10, 1))
"""of the second"""
NO_BFLOAT16 = "a round would take minutes: no bfloat16 instructions"
PAGE = config_folder().parent / "docs" / "performance.md"
SECTION = re.compile(r"<!-- ([\w-]+) -->\n(.*?)\n<!-- end -->", re.DOTALL)
"""A part of the page that a command writes: its name and its text."""


def lineup(others: Sequence[Rival]) -> list[Contender]:
    """Everybody, in the table's order."""
    return [bare("float32"), *others, *ours("float32"), bare("bfloat16"), *ours("bfloat16")]


def names() -> list[str]:
    """What --only knows, whether it is installed or not."""
    return [one.name for one in lineup([Rival(name, name, Path(), name) for name in RIVALS])]


def entrants(only: Sequence[str]) -> tuple[list[Contender], dict[str, Refusal]]:
    """Who takes part, and who cannot. only: names to keep; none: all."""
    others, missing = rivals([name for name in RIVALS if not only or name in only])
    return [one for one in lineup(others) if not only or one.name in only], missing


def rivals(names: Sequence[str]) -> tuple[list[Rival], dict[str, Refusal]]:
    """Those whose environments can be had, and why the others' cannot."""
    there: list[Rival] = []
    missing: dict[str, Refusal] = {}
    for name in names:
        try:
            there.append(Rival(name, name, python_of(name), name))
        except InstallError as error:
            say(f"{name} cannot be installed: {error}")
            missing[name] = Refusal("it could not be installed")
    return there, missing


def labelled(
    found: Mapping[str, Sequence[Outcome]],
    contenders: Sequence[Contender],
    versions: Mapping[str, str],
    products: Mapping[str, str],
) -> dict[str, Sequence[Outcome]]:
    """The same by the labels of the table; a rival's has its version, and ours what multiplied frozen layers."""
    labels = {one.name: f"{one.label}{_choice(one, products.get(one.name, ''))}" for one in contenders}
    labels |= {name: f"{name} {versions[name]}" for name in RIVALS if name in versions}
    return {labels.get(name, name): outcomes for name, outcomes in found.items()}


def _choice(one: Contender, products: str) -> str:
    """The library that multiplied frozen layers, and whether fibec_ray chose it."""
    chosen = isinstance(one, Ours) and "fleet.products=auto" in one.settings
    return f", {products}{' (chosen)' if chosen else ''}" if products else ""


def first_table(stand: Stand, only: Sequence[str], rounds: int, repeats: int) -> str:
    """The table of all contenders on one workload."""
    contenders, missing = entrants(only)
    natively = "without bfloat16" not in described(stand.isa)
    if not natively and (slow := bare("bfloat16")) in contenders:
        contenders.remove(slow)
        missing[slow.label] = Refusal(NO_BFLOAT16)
    found: dict[str, Sequence[Outcome]] = {name: [refusal] for name, refusal in missing.items()}
    sizes = Sizes(NUM_DEVICES, COHORT_SIZE, rounds + UNMEASURED)
    found = {**compare(stand, contenders, sizes, repeats, natively), **found}
    named = labelled(found, contenders, stand.versions, stand.products)
    return speed_table(named, bare("float32").label, described(stand.isa))


def conditions(isa: str | None = None) -> str:
    """Date, machine and instructions, and a warning if others are using it."""
    busy = busy_with_others()
    warning = f"\n\nOther work had {busy:.0%} of the cores at the start: no measurement." if busy > 0.1 else ""
    return f"{date.today()}; {machine()}; {described(isa)}.{warning}"


def replaced(text: str, name: str, tables: str) -> str:
    """The page with this section's tables. A new section goes to its end; all other text stays."""
    written, found = f"<!-- {name} -->\n{tables}\n<!-- end -->", list(SECTION.finditer(text))
    if old := next((one for one in found if one[1] == name), None):
        return text[: old.start()] + written + text[old.end() :]
    return text.rstrip("\n") + f"\n\n{written}\n"


def section_name(isa: str | None) -> str:
    """The name of a section, such as `avx2` for a processor that has no more, and `avx2-emulated` with --isa avx2."""
    if isa:
        return f"{isa}-emulated"
    words = here().lower().split()
    return words[0] + ("-bf16" if "with" in words else "")


def section(isa: str | None, parts: Sequence[str]) -> str:
    """One section: a heading that names the instructions, the command, and the tables."""
    option = f" --isa {isa}" if isa else ""
    return "\n\n".join([f"## {described(isa)}", f"`python -m fibec_ray.bench.speed{option}`", *parts])


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.speed", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="turns of all contenders")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each run")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"contenders to run, of {', '.join(names())}")
    parser.add_argument("--skip-scale", action="store_true", help="leave out the second table")
    add_option(parser)
    parser.add_argument("--write", action="store_true", help="write the tables to docs/performance.md too")
    given = parser.parse_args()
    given.only = given.only.split(",") if given.only else []
    if unknown := [name for name in given.only if name not in names()]:
        parser.error(f"--only: no contender is called {unknown[0]!r}; there are {', '.join(names())}")
    if min(given.repeats, given.rounds) < 1:
        parser.error("--repeats and --rounds: give 1 or more")
    if given.write and not PAGE.parent.is_dir():
        parser.error("--write: there is no docs folder here; run it in a checkout")
    return given


def main() -> None:
    """Run the benchmark from the command line."""
    given = arguments()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, to those who write libraries
    parts = [conditions(given.isa)]
    with tempfile.TemporaryDirectory(prefix="fibec-bench-") as folder:
        stand = Stand(Path(folder), isa=given.isa)
        parts.append(first_table(stand, given.only, given.rounds, given.repeats))
        print("\n\n".join(parts), flush=True)
        if not given.skip_scale:
            parts.append(scale_table(grow(stand, SIZES)))
            print(f"\n{parts[-1]}", flush=True)
    if given.write:
        before = PAGE.read_text(encoding="utf-8")
        write_text(PAGE, replaced(before, section_name(given.isa), section(given.isa, parts)))


if __name__ == "__main__":
    main()
