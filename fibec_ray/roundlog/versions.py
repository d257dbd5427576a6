"""The versions of the round log: which columns and tables each added or renamed. The writer and the readers use it."""

from __future__ import annotations

from fibec_ray.roundlog.schema import TABLES

SCHEMA_VERSION = 11
"""Increases with every change of the columns, including a new nullable one."""

SCHEMA_MAJOR = 7
"""The version in which a column was last renamed, removed or given another meaning. A program that
reads this major also reads its newer versions: it ignores unknown columns, and fills missing ones with nulls."""

SCHEMA_OLDEST = 2
"""The oldest version that this program reads."""

RENAMED = {
    "bytes_up_evidence": "bytes_up_extras",
    "grade_seen": "true_difficulty_seen",
    "difficulty_grade_rank_corr": "difficulty_true_rank_corr",
    "grade": "true_difficulty",
}
"""Columns that had another name before version 7. Older logs are read as if they had the new names."""

ADDED: dict[int, dict[str, tuple[str, ...]]] = {
    3: {"rounds": ("adapter_digest",), "devices": ("update_digest",)},
    5: {"rounds": ("num_quarantined",), "devices": ("quarantined",)},
    6: {"rounds": ("global_perplexity", "personal_perplexity"), "devices": ()},
    8: {"rounds": ("global_metrics", "personal_metrics"), "devices": ()},
    9: {"rounds": (), "devices": ("peak_gpu_memory_bytes",)},
    10: {
        "rounds": ("energy_j", "energy_total_j", "num_dropped", "mean_staleness", "num_late", "epsilon"),
        "devices": ("energy_j", "staleness"),
        "evaluations": ("speed_class",),
    },
    11: {"rounds": ("dropped_bytes", "dropped_flops", "dropped_energy_j"), "devices": ()},
}
"""By version: nullable columns that it added, by table. Older logs are read as if they had them, with nulls."""

ADDED_TABLES = {4: ("evaluations",)}
"""By version: tables that it added. Older logs are read as if they had them, without rows."""


def tables_of(version: int) -> list[str]:
    """The tables that a log of this version has."""
    later = {name for added, names in ADDED_TABLES.items() if added > version for name in names}
    return [name for name in TABLES if name not in later]
