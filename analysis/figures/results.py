"""Draws the results figure of the front page: score against simulated time, one panel per task, one line per method.

    python analysis/figures/results.py runs/accuracy-trec runs/accuracy-sst2
    python analysis/figures/results.py runs/paper/accuracy --only fedavg,adapter,voc-authors

RUNS are sweeps. Each has a reference, which is drawn as a thick line. Writes results.svg, results-dark.svg and
results.png into docs/images (--out names another file), and the points of the lines into results.csv. With --add the
panels that this file has of other tasks are kept, so that the tasks need not be on one machine.
`fibec-ray paper-table` prints the numbers of the same runs.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fibec_ray.analysis.figure import Curve, Series
from fibec_ray.analysis.files import replace_file
from fibec_ray.analysis.panels import DARK, LIGHT, draw_panels
from fibec_ray.analysis.paper_style import Style
from fibec_ray.analysis.paper_table import paper_curves
from fibec_ray.analysis.settings import Choices, settings_of
from fibec_ray.errors import UserError

COLUMNS = ("task", "title", "score", "variant", "seconds", "value")


def points_csv(curves: Sequence[Curve]) -> str:
    """The points of all lines as CSV: simulated seconds and the mean score over seeds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for curve in curves:
        for line in curve.series:
            row = (curve.stem, curve.title, curve.y_label, line.label)
            writer.writerows([*row, f"{seconds:.6g}", f"{value:.6g}"] for seconds, value in line.points)
    return out.getvalue()


def read_points(path: Path) -> list[Curve]:
    """Read the curves of `points_csv` from a file. Raises UserError if it is missing or is not such a file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise UserError(f"{path}: its columns must be {', '.join(COLUMNS)}; leave out --add to make it anew")
            lines: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = {}
            for row in rows:
                panel = lines.setdefault((row["task"], row["title"], row["score"]), {})
                panel.setdefault(row["variant"], []).append((float(row["seconds"]), float(row["value"])))
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); leave out --add to make it anew") from error
    return [
        Curve(task, title, "", "simulated s", score, tuple(Series(label, tuple(at)) for label, at in panel.items()))
        for (task, title, score), panel in lines.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--only", default="", help="variants beside the reference, separated by commas (default: all)")
    parser.add_argument("--reference", help="variant to draw as a thick line (default: the sweep's own)")
    parser.add_argument("--model", choices=("personal", "global"), help="which score (default: personal if logged)")
    parser.add_argument("--with-setup", action="store_true", help="include the time of the initialisation phase")
    parser.add_argument("--add", action="store_true", help="keep the panels of other tasks, from the CSV file")
    parser.add_argument("--out", type=Path, default=Path("docs/images/results.svg"), help="file that ends in .svg")
    args = parser.parse_args(arguments)
    only = tuple(name.strip() for name in args.only.split(",") if name.strip())
    choices = Choices(args.reference, only, model=args.model, with_setup=args.with_setup)
    try:
        curves = paper_curves(settings_of(args.runs, choices), choices)
        points = args.out.with_suffix(".csv")
        if args.add:
            new = {curve.stem: curve for curve in curves}
            curves = [new.pop(curve.stem, curve) for curve in read_points(points)] + list(new.values())
    except UserError as error:
        parser.error(str(error))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for theme, ending, name in ((LIGHT, "svg", ""), (DARK, "svg", "-dark"), (LIGHT, "png", "")):
        path = args.out.with_name(f"{args.out.stem}{name}.{ending}")
        drawn = draw_panels(curves, "Score against time", Style(font_size=10, formats=(ending,), dpi=160), theme)
        path.write_bytes(drawn[ending])
        print(path)
    replace_file(points, points_csv(curves).encode())  # at once, because --add may have no other copy of its panels
    print(points)


if __name__ == "__main__":
    main()
