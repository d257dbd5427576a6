"""The content of one run's report page, made from its log and run directory."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from fibec_ray.analysis.cards import cards_of
from fibec_ray.analysis.figure import Card
from fibec_ray.analysis.files import FINISHED
from fibec_ray.analysis.formats import Table
from fibec_ray.analysis.log import RunLog
from fibec_ray.analysis.run_facts import Headline, facts_of, headline_of
from fibec_ray.analysis.run_tables import tables_of
from fibec_ray.analysis.scores import scores_of
from fibec_ray.analysis.tables import RunTables

SECTIONS = ("Scores", "Cost", "Curriculum", "Layers and masks", "Devices")


@dataclass(frozen=True)
class Section:
    """A part of a page: tables, then cards with figures."""

    title: str
    tables: tuple[Table, ...]
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class RunPage:
    """Contents of one run's page."""

    title: str
    notices: tuple[str, ...]
    headline: Headline | None
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    config: str
    """YAML"""
    footer: str


def run_page(log: RunLog, tables: RunTables, title: str | None = None) -> RunPage:
    """title: by default the run's name, or else its folder's."""
    return RunPage(
        title=title or str(log.fact("name") or log.fact("run_id") or log.place.name),
        notices=tuple(_notices(log, tables)),
        headline=headline_of(scores_of(tables, log.anchors(), log.fact("metric"))),
        facts=tuple(facts_of(log, tables)),
        sections=tuple(_sections(log, tables)),
        config=yaml.safe_dump(log.config, sort_keys=False, allow_unicode=True) if log.config else "",
        footer=_footer(log),
    )


def _sections(log: RunLog, tables: RunTables) -> list[Section]:
    cards, found = cards_of(tables, log.anchors(), log.fact("metric")), tables_of(log, tables)
    sections = [
        Section(title, tuple(found.get(title, ())), tuple(card for card in cards if card.section == title))
        for title in SECTIONS
    ]
    return [section for section in sections if section.tables or section.cards]


def _notices(log: RunLog, tables: RunTables) -> list[str]:
    """Warnings above the page: the run is unfinished, or was never evaluated."""
    status, planned, done = log.summary.get("status"), log.fact("rounds"), tables.rounds_done()
    notices = []
    if status != FINISHED and (status is not None or planned != done):
        progress = f"{done} of {planned} rounds done" if planned else f"rounds done: {done}"
        state = "is still going or was stopped" if status in (None, "running") else f"has the status '{status}'"
        notices.append(f"This run {state}: {progress}.")
    if not any(tables.points("round", column) for column in ("global_loss", "personal_loss", "global_accuracy")):
        notices.append("No round of this run has been evaluated yet.")
    return notices


def _footer(log: RunLog) -> str:
    keys = (("run", "run_id"), ("commit", "git_commit"), ("adapter", "adapter_digest"))
    found = [f"{label} {log.fact(key)}" for label, key in keys if log.fact(key)]
    return " · ".join([*found, "columns of the log: docs/round-log.md"])
