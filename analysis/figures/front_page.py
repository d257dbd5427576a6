"""Draws the figure of the front page from a finished quickstart run: accuracy by round, and the layers it shares.

    make quickstart
    python analysis/figures/front_page.py runs/quickstart

Writes quickstart.svg, quickstart-dark.svg and quickstart.png into docs/images (--out names another folder).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fibec_ray.analysis.log import RunLog, open_run
from fibec_ray.analysis.palette import PALETTE
from fibec_ray.analysis.tables import RunTables, latest_layers
from fibec_ray.errors import RunDirError, UserError


@dataclass(frozen=True)
class Theme:
    ink: str
    quiet: str
    line: str
    series: tuple[str, ...]


LIGHT = Theme("#1c1f23", "#5b6470", "#dde1e6", tuple(entry.light for entry in PALETTE))
DARK = Theme("#e6e9ec", "#aab3bd", "#3a4149", tuple(entry.dark for entry in PALETTE))
SETTINGS = {"font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "front page", "axes.titlesize": 11}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="a folder (default: docs/images)")
    args = parser.parse_args(arguments)
    try:
        log = open_run(args.run)
        tables = RunTables.read(log)
        if not tables.points("round", "global_accuracy"):
            raise RunDirError(
                f"{args.run}: has no global accuracy; run configs/quickstart.yaml and give its run directory"
            )
    except UserError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    files = {"quickstart.svg": LIGHT, "quickstart-dark.svg": DARK, "quickstart.png": LIGHT}
    with matplotlib.rc_context(SETTINGS):
        for name, theme in files.items():
            png = name.endswith(".png")
            metadata = {"Software": None} if png else {"Date": None, "Creator": None}
            figure = drawn(log, tables, theme)
            figure.savefig(args.out / name, transparent=not png, dpi=160, metadata=metadata)
            print(args.out / name)


def drawn(log: RunLog, tables: RunTables, theme: Theme) -> Figure:
    figure = Figure(figsize=(8.4, 3.1), layout="constrained", facecolor="white")
    accuracy, layers = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _accuracy(accuracy, tables, log.anchors(), theme)
    _layers(layers, tables, theme)
    for axes in (accuracy, layers):
        _dress(axes, theme)
    return figure


def _accuracy(axes: Axes, tables: RunTables, anchors: dict[str, float], theme: Theme) -> None:
    for at, (column, label) in enumerate(
        (("personal_accuracy", "personal models"), ("global_accuracy", "global model"))
    ):
        points = tables.points("round", column)
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color=theme.series[at], label=label, linewidth=2,
            marker=PALETTE[at].marker, markersize=6, markeredgewidth=0,
        )  # fmt: skip
    if "own_majority" in anchors:
        label = "each device's majority class"
        axes.axhline(anchors["own_majority"], color=theme.quiet, linestyle="--", linewidth=1.2, label=label)
    axes.set(xlabel="round (0: before training)", ylim=(0, 1.02))
    axes.set_title("Accuracy", loc="left", color=theme.ink, fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, labelcolor=theme.ink, loc="lower right")


def _layers(axes: Axes, tables: RunTables, theme: Theme) -> None:
    """How sensitive each layer is, and which ones are sent to the server."""
    found = [layer for layer in latest_layers(tables) if layer.sensitivity is not None]
    for at, (shared, label) in enumerate(((True, "shared with the server"), (False, "stays on the device"))):
        chosen = [layer for layer in found if layer.shared == shared]
        colour = theme.series[(0, 4)[at]]
        axes.bar(
            [layer.layer for layer in chosen], [layer.sensitivity or 0.0 for layer in chosen], color=colour, label=label
        )
    axes.set(xlabel="layer", yticks=[])
    axes.set_title("Sensitivity of each layer", loc="left", color=theme.ink, fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, labelcolor=theme.ink, loc="upper left")


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.grid(visible=True, axis="y", color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.quiet, length=0)
    axes.xaxis.label.set_color(theme.quiet)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.quiet)


if __name__ == "__main__":
    main()
