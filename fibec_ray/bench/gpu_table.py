"""The tables of `fibec_ray.bench.gpu`: all rows, and the targets beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fibec_ray.bench.gpu_cases import STEPS, Case

LABELS = {"bare": "plain PyTorch + PEFT loop", "kernels": "kernels (bench.lanes)", "engine": "fibec-ray run"}
LABELS |= {"graph": "kernels, as a CUDA graph", "flower": "Flower's simulation, 2 clients at a time"}


@dataclass(frozen=True)
class Measured:
    """rate: device-rounds per second. gb: peak memory in 1e9 bytes, of the GPU if there is one. first_s: from the start
    of the command to the end of its first round.
    """

    rate: float
    gb: float | None
    first_s: float | None = None


@dataclass(frozen=True)
class Row:
    """One row. outcome: figures, or a few words about why there are none."""

    case: Case
    kind: str
    lanes: int
    outcome: Measured | str

    @property
    def rate(self) -> float | None:
        """Device-rounds per second; None if it failed."""
        return self.outcome.rate if isinstance(self.outcome, Measured) else None

    @property
    def tflops(self) -> float | None:
        """1e12 operations per second."""
        return None if self.rate is None else self.rate * STEPS * self.case.flops / 1e12


def table(rows: Sequence[Row], peak: float | None) -> str:
    """peak: of the hardware, TFLOP/s; None: unknown."""
    head = [
        "model",
        "what",
        "lanes",
        "device-rounds/s",
        "tokens/s",
        f"of the peak ({peak:g} TFLOP/s)" if peak else "peak",
    ]
    head += ["GB per lane", "first round after, s", "speed / plain loop"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        start = [row.case.name, LABELS[row.kind], str(row.lanes)]
        if isinstance(row.outcome, str):
            lines.append(_line([*start, row.outcome, "", "", "", "", ""]))
            continue
        found = row.outcome
        lines.append(
            _line(
                [
                    *start,
                    f"{found.rate:.2f}",
                    f"{found.rate * row.case.tokens_per_round:,.0f}",
                    f"{100 * (row.tflops or 0) / peak:.1f} %" if peak else "unknown",
                    "" if found.gb is None else f"{found.gb / row.lanes:.3f}",
                    "" if found.first_s is None else f"{found.first_s:.1f}",
                    _over(row, _find(rows, row.case.name, "bare", 1)),
                ]
            )
        )
    return "\n".join(lines)


def targets(rows: Sequence[Row], peak: float | None) -> str:
    """The project's targets, with what this run measured. Rows that were not measured are left out."""
    large, small = "RoBERTa-large", "MiniLM"
    ratios = [
        ("RoBERTa-large, engine with 1 lane / plain loop", 1.0, (large, "engine", 1), (large, "bare", 1)),
        ("RoBERTa-large, kernels as a CUDA graph / plain loop", 2.5, (large, "graph", 1), (large, "bare", 1)),
        ("RoBERTa-large, kernels with 32 lanes / plain loop", 13.0, (large, "kernels", 32), (large, "bare", 1)),
        ("RoBERTa-large, engine / kernels, 1 lane", 0.85, (large, "engine", 1), (large, "kernels", 1)),
        ("RoBERTa-large, engine / kernels, 32 lanes", 0.85, (large, "engine", 32), (large, "kernels", 32)),
        ("MiniLM, engine with 20 lanes / with 1", 10.0, (small, "engine", 20), (small, "engine", 1)),
    ]
    lines = [_line(["target", "at least", "measured", ""]), _line(["---"] * 4)]
    for text, least, above, below in ratios:
        top, bottom = _find(rows, *above), _find(rows, *below)
        if top and bottom and top.rate and bottom.rate:
            lines.append(_target(text, least, top.rate / bottom.rate))
    best = _find(rows, large, "kernels", 32)
    if best and best.tflops and peak:
        lines.append(_target("RoBERTa-large, kernels with 32 lanes, share of the peak", 0.4, best.tflops / peak))
    return "\n".join(lines) if len(lines) > 2 else ""


def _target(text: str, least: float, found: float) -> str:
    return _line([text, f"{least:g}", f"{found:.2f}", "met" if found >= least else "missed"])


def _find(rows: Sequence[Row], case: str, kind: str, lanes: int) -> Row | None:
    return next((row for row in rows if (row.case.name, row.kind, row.lanes) == (case, kind, lanes)), None)


def _over(row: Row, base: Row | None) -> str:
    return f"{row.rate / base.rate:.2f}" if base and base.rate and row.rate else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
