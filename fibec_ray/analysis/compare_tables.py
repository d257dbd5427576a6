"""The tables of `fibec-ray compare`: scores, costs to a target, spread over devices, speed classes, total costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fibec_ray.analysis.comparison import Comparison, Line
from fibec_ray.analysis.formats import NONE, Column, Row, Table
from fibec_ray.analysis.numbers import Model, Pick
from fibec_ray.analysis.statistics import CONFIDENCE, Mean, holm
from fibec_ray.analysis.targets import Reached

_VARIANT = Column("variant", lambda row: str(row["variant"]))
_SEEDS = Column("seeds", lambda row: str(row["seeds"]))
_KIND: dict[Pick, str] = {"last": "final", "best": "best"}
_ENERGY = "kJ: simulated energy of all devices for compute and transfer, setup included."
_DROPPED = (
    "Dropped: predicted costs of devices that dropped out or whose update came too late. MB sent and kJ leave them out."
)
_AFTER_SETUP = "After setup: simulated time without the initialisation phase. All other costs include this phase."


def scores(comparison: Comparison, model: Model) -> Table:
    """Final and best scores of personal and global models, and their paired difference to the reference."""
    judged = _adjusted([_score_row(comparison, line, model) for line in comparison.lines])
    picked = ", best" if comparison.pick == "best" else ""
    difference = f"{model}{picked} − {comparison.reference}"
    columns = [_VARIANT, _SEEDS]
    for kind in ("personal", "global"):
        columns += [_score(f"{kind}, final", f"{kind}_final", True), _score(f"{kind}, best", f"{kind}_best", True)]
    columns += [Column(difference, _difference), Column("p", _p("p")), Column("p, Holm", _p("p_holm"))]
    return Table("scores", f"Scores ({comparison.score})", tuple(columns), tuple(judged), tuple(_notes(comparison)))


def targets(comparison: Comparison, model: Model, target: float, reached: Sequence[Reached]) -> Table:
    """Costs up to the first evaluation that reaches the target, and how they compare with the reference's."""
    title, reference = f"Costs to {model} {comparison.score} ≥ {target:g}", comparison.reference
    setup, energy = _has_setup(comparison), _knows_energy(comparison)
    columns = (
        _VARIANT,
        Column("reached", lambda row: f"{row['reached']}/{row['seeds']}"),
        _cost("rounds", "rounds", best=True),
        _cost("simulated s", "sim_time_s", best=True),
        *([_cost("s after setup", "training_time_s", best=True)] if setup else ()),
        _cost("MB", "num_bytes", 1e6, best=True),
        _cost("samples", "num_samples", best=True),
        *([_cost("kJ", "energy_j", 1e3, best=True)] if energy else ()),
        _ratio("time", "sim_time_s", reference, "faster", "slower"),
        *([_ratio("time after setup", "training_time_s", reference, "faster", "slower")] if setup else ()),
        _ratio("bytes", "num_bytes", reference, "fewer", "more"),
        _ratio("samples, ratio", "num_samples", reference, "fewer", "more"),
        *([_ratio("energy", "energy_j", reference, "less", "more")] if energy else ()),
    )
    notes = (
        "Costs up to the first evaluation that reaches the target; means over the seeds that reach it.",
        f"1.4x faster: {reference} needs 1.4 times as long (geometric mean over the seeds in which both reach the "
        "target). Fewer and more are meant in the same way.",
        *([_AFTER_SETUP] if setup else ()),
        *([_ENERGY] if energy else ()),
    )
    stem = f"target-{target:g}".replace(".", "_")
    return Table(stem, title, columns, tuple(_target_row(entry) for entry in reached), notes)


def devices(comparison: Comparison) -> Table:
    """How personal accuracy spreads over devices; without rows where no log has it."""
    names = ("worst_decile", "median", "best_decile", "mean", "deviation")
    rows = [_device_row(line, names) for line in comparison.lines if any(run.spread for run in line.runs.values())]
    columns = (_VARIANT, _SEEDS, *(_score(name.replace("_", " "), name, True, name != "deviation") for name in names))
    notes = (
        "Accuracy of each device's own model on its own test shard at the last evaluation; each device counts once.",
        "Worst decile: mean of the tenth of the devices that score lowest. Deviation: standard deviation over devices. "
        "All are means over seeds.",
    )
    return Table("devices", "Accuracy over devices", columns, tuple(rows), notes)


def speed_classes(comparison: Comparison) -> Table:
    """Accuracy by the devices' speed class; no rows if no log has classes."""
    found = [name for line in comparison.lines for run in line.runs.values() for name in run.by_class]
    names = list(dict.fromkeys(found))
    rows = [_class_row(line, names) for line in comparison.lines if any(run.by_class for run in line.runs.values())]
    columns = (_VARIANT, _SEEDS, *(_score(name, f"class_{name}", True) for name in names))
    notes = (
        "Accuracy of the devices' own models on their own test shards at the last evaluation, pooled over the devices "
        "of a speed class. Means over seeds.",
    )
    return Table("speed_classes", "Accuracy by speed class", columns, tuple(rows), notes)


def costs(comparison: Comparison) -> Table:
    """Total costs of whole runs, means over seeds."""
    names = ["num_bytes", "num_samples", "flops", "sim_time_s", "training_time_s", "energy_j", "wall_time_s"]
    names += ["dropped_bytes", "dropped_energy_j"]
    setup, energy = _has_setup(comparison), _knows_energy(comparison)
    dropped = any(run.dropped_bytes for line in comparison.lines for run in line.runs.values())
    rows = [
        {"variant": line.variant, "seeds": line.num_seeds} | {name: line.number(name) for name in names}
        for line in comparison.lines
    ]
    columns = (
        _VARIANT,
        _SEEDS,
        _cost("MB sent", "num_bytes", 1e6),
        _cost("samples", "num_samples"),
        _cost("TFLOP", "flops", 1e12),
        _cost("simulated s", "sim_time_s"),
        *([_cost("s after setup", "training_time_s")] if setup else ()),
        *([_cost("kJ", "energy_j", 1e3)] if energy else ()),
        *((_cost("MB dropped", "dropped_bytes", 1e6), _cost("kJ dropped", "dropped_energy_j", 1e3)) if dropped else ()),
        _cost("real s", "wall_time_s"),
    )
    notes = (
        "Totals of a run, setup before training included; means over seeds.",
        *([_AFTER_SETUP] if setup else ()),
        *([_ENERGY] if energy else ()),
        *([_DROPPED] if dropped else ()),
    )
    return Table("costs", "Costs of whole runs", columns, tuple(rows), notes)


def _has_setup(comparison: Comparison) -> bool:
    """True if the initialisation phase took simulated time in any run."""
    return any(run.training_time_s < run.sim_time_s for line in comparison.lines for run in line.runs.values())


def _knows_energy(comparison: Comparison) -> bool:
    """True if some log has the devices' energy; earlier releases did not log it."""
    return any(run.energy_j is not None for line in comparison.lines for run in line.runs.values())


def _score_row(comparison: Comparison, line: Line, model: Model) -> dict[str, Any]:
    paired = comparison.difference(line, model)
    return {
        "variant": line.variant,
        "seeds": line.num_seeds,
        **_spelt("personal_final", line.over_seeds(lambda run: run.final("personal"))),
        **_spelt("personal_best", line.over_seeds(lambda run: run.best("personal"))),
        **_spelt("global_final", line.over_seeds(lambda run: run.final("global"))),
        **_spelt("global_best", line.over_seeds(lambda run: run.best("global"))),
        "is_reference": line.variant == comparison.reference,
        "difference": paired.mean if paired else None,
        "difference_half_width": paired.half_width if paired else None,
        "pairs": paired.num_pairs if paired else 0,
        "p": paired.p if paired else None,
    }


def _adjusted(rows: list[dict[str, Any]]) -> list[Row]:
    adjusted = holm({row["variant"]: row["p"] for row in rows if row["p"] is not None})
    return [row | {"p_holm": adjusted.get(row["variant"])} for row in rows]


def _target_row(reached: Reached) -> Row:
    row: dict[str, Any] = {"variant": reached.variant, "seeds": reached.num_seeds, "reached": reached.num_reached}
    for name, mean in reached.costs.items():
        row |= _spelt(name, mean)
    row |= {f"{name}_speed_up": ratio for name, ratio in reached.speed_up.items()}
    return row | {"pairs": reached.num_pairs}


def _device_row(line: Line, names: Sequence[str]) -> Row:
    row: dict[str, Any] = {"variant": line.variant, "seeds": line.num_seeds}
    for name in names:
        row |= _spelt(name, line.over_seeds(lambda run, name=name: getattr(run.spread, name, None)))  # type: ignore[misc]
    return row


def _class_row(line: Line, names: Sequence[str]) -> Row:
    row: dict[str, Any] = {"variant": line.variant, "seeds": line.num_seeds}
    for name in names:
        row |= _spelt(f"class_{name}", line.over_seeds(lambda run, name=name: run.by_class.get(name)))  # type: ignore[misc]
    return row


def _spelt(name: str, mean: Mean | None) -> dict[str, float | None]:
    return {name: mean.value if mean else None, f"{name}_half_width": mean.half_width if mean else None}


def _score(title: str, name: str, best: bool = False, bigger_is_better: bool = True) -> Column:
    def text(row: Row) -> str:
        return NONE if row[name] is None else f"{row[name]:.4f}{_within(row[f'{name}_half_width'])}"

    return Column(title, text, name if best else None, bigger_is_better)


def _difference(row: Row) -> str:
    if row["is_reference"]:
        return "reference"
    if row["difference"] is None:
        return NONE
    return f"{row['difference']:+z.4f}{_within(row['difference_half_width'])}"


def _within(half_width: float | None) -> str:
    return "" if half_width is None else f" ± {half_width:.4f}"


def _p(name: str) -> Any:
    return lambda row: NONE if row[name] is None else "< 0.001" if row[name] < 0.001 else f"{row[name]:.3f}"


def _cost(title: str, name: str, unit: float = 1.0, best: bool = False) -> Column:
    return Column(title, lambda row: cost_text(row[name], unit), name if best else None, bigger_is_better=False)


def _ratio(title: str, name: str, reference: str, better: str, worse: str) -> Column:
    def text(row: Row) -> str:
        value = row[f"{name}_speed_up"]
        if row["variant"] == reference and value is not None:
            return "reference"
        return NONE if value is None else ratio_text(value, better, worse)

    return Column(title, text)


def ratio_text(ratio: float, better: str, worse: str) -> str:
    """Put a ratio of costs (reference / variant) into words: 1.4 -> '1.4x faster', 0.5 -> '2x slower'."""
    factor = max(ratio, 1 / ratio)
    shown = f"{factor:.1f}" if factor >= 1.95 else f"{factor:.2f}"
    if float(shown) == 1.0:
        return "the same"
    return f"{shown.rstrip('0').rstrip('.')}x {better if ratio > 1 else worse}"


def cost_text(value: float | None, unit: float = 1.0) -> str:
    """Three digits or more, never as 1e+04."""
    if value is None:
        return NONE
    return f"{value / unit:.0f}" if value >= 100 * unit else f"{value / unit:.3g}"


def _notes(comparison: Comparison) -> list[str]:
    anchors = {name: value for name, value in comparison.anchors.items() if value is not None}
    without = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in anchors.items())
    return [
        f"Final: mean of the last {comparison.recent} evaluations. Best: the highest evaluation, which favours runs "
        f"that were evaluated often. Means over seeds; ± is half the width of the {CONFIDENCE:.0%} confidence interval "
        "of the mean (Student's t over seeds).",
        f"The difference compares {_KIND[comparison.pick]} scores seed by seed: runs of one seed share partition, "
        "cohorts and initial weights. p: two-sided paired t test; Holm: adjusted for the number of variants in this "
        "table.",
        *([f"Without learning, on {comparison.reference}'s data: {without}."] if without else []),
    ]
