"""Results of the GPU check: one line per thing checked, one section per step, written as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fibec_ray.files.run_dir import write_json, write_text

Verdict = Literal["ok", "FAILED", "skipped"]


@dataclass(frozen=True)
class Line:
    """One thing that was checked."""

    what: str
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Section:
    """The results of one step. note: why it ended early; table: Markdown, if the step measures."""

    name: str
    seconds: float
    lines: Sequence[Line]
    note: str = ""
    table: str = ""

    @property
    def verdict(self) -> Verdict:
        """FAILED if anything failed, skipped if nothing was checked."""
        if self.note or any(line.verdict == "FAILED" for line in self.lines):
            return "FAILED"
        return "ok" if self.table or any(line.verdict == "ok" for line in self.lines) else "skipped"

    @property
    def summary(self) -> str:
        """One line for the terminal."""
        counts = {
            verdict: sum(line.verdict == verdict for line in self.lines) for verdict in ("ok", "FAILED", "skipped")
        }
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        return (
            f"{self.verdict:8}{self.name:10}{self.seconds:6.1f} s  {said}{'; ' * bool(said and self.note)}{self.note}"
        )


@dataclass
class Findings:
    """All results so far. about: date, machine and versions."""

    path: Path
    about: Mapping[str, Any]
    sections: list[Section] = field(default_factory=list)

    def add(self, section: Section) -> None:
        """Add a section and write both files."""
        self.sections.append(section)
        sections = [{"verdict": one.verdict, **asdict(one)} for one in self.sections]
        write_json(self.path, {"about": dict(self.about), "steps": sections})
        write_text(self.path.with_suffix(".md"), self.markdown())

    @property
    def failed(self) -> list[str]:
        """Names of the steps that failed."""
        return [section.name for section in self.sections if section.verdict == "FAILED"]

    def markdown(self) -> str:
        """The results as a page."""
        about = "; ".join(f"{name}: {value}" for name, value in self.about.items())
        return "\n\n".join([f"# GPU check\n\n{about}", *map(_section, self.sections)]) + "\n"


def _section(section: Section) -> str:
    rows = [f"| {line.what} | {line.verdict} | {line.text} |" for line in section.lines]
    table = "\n".join(["| what | | |", "|---|---|---|", *rows]) if rows else ""
    parts = [f"## {section.name}: {section.verdict}, {section.seconds:.1f} s", section.note, table, section.table]
    return "\n\n".join(part for part in parts if part)
