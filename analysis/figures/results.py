"""Draws the results figure of the front page: score against simulated time, one panel per task, one line per method.

    python analysis/figures/results.py runs/accuracy-trec runs/accuracy-sst2
    python analysis/figures/results.py runs/paper/accuracy --only fedavg,adapter,voc-authors

RUNS are sweeps. Each has a reference, which is drawn as a thick line. Writes results.svg, results-dark.svg and
results.png into docs/images (--out names another file). `fibec-ray paper-table` prints the numbers of the same runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fibec_ray.analysis.panels import DARK, LIGHT, draw_panels
from fibec_ray.analysis.paper_style import Style
from fibec_ray.analysis.paper_table import paper_curves
from fibec_ray.analysis.settings import Choices, settings_of
from fibec_ray.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--only", default="", help="variants beside the reference, separated by commas (default: all)")
    parser.add_argument("--reference", help="variant to draw as a thick line (default: the sweep's own)")
    parser.add_argument("--model", choices=("personal", "global"), help="which score (default: personal if logged)")
    parser.add_argument("--with-setup", action="store_true", help="include the time of the initialisation phase")
    parser.add_argument("--out", type=Path, default=Path("docs/images/results.svg"), help="file that ends in .svg")
    args = parser.parse_args(arguments)
    only = tuple(name.strip() for name in args.only.split(",") if name.strip())
    choices = Choices(args.reference, only, model=args.model, with_setup=args.with_setup)
    try:
        curves = paper_curves(settings_of(args.runs, choices), choices)
    except UserError as error:
        parser.error(str(error))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for theme, ending, name in ((LIGHT, "svg", ""), (DARK, "svg", "-dark"), (LIGHT, "png", "")):
        path = args.out.with_name(f"{args.out.stem}{name}.{ending}")
        drawn = draw_panels(curves, "Score against time", Style(font_size=10, formats=(ending,), dpi=160), theme)
        path.write_bytes(drawn[ending])
        print(path)


if __name__ == "__main__":
    main()
