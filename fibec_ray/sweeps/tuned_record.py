"""OUT/tuned.yaml: which values tuning chose, and all scores. Written and read by tune.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import write_yaml
from fibec_ray.sweeps.choice import Choice
from fibec_ray.sweeps.plan import Candidate, Tuning
from fibec_ray.sweeps.tuned_file import RECORD, entries_of


def write_tuned(out: Path, tuning: Tuning, choices: Mapping[str, Choice]) -> None:
    """Write the choices; variants that were tuned before and are not part of this sweep now stay in the file."""
    new = {name: _entry(choice) for name, choice in choices.items()}
    for name, other in tuning.source.items():
        if name != other:
            new[name] = {"takes_choice_of": other, "chosen": _chosen(choices[other])}
    write_yaml(out / RECORD, {"seed": tuning.runs.seeds[0], "variants": _variants(out) | new})


def _entry(choice: Choice) -> dict[str, Any]:
    tried = [{"values": dict(candidate.values), "score": score} for candidate, score in choice.tried]
    return {
        "score": choice.what,
        "tried": tried,
        "chosen": _chosen(choice),
        "at_edge": list(choice.at_edge),
    }


def _chosen(choice: Choice) -> dict[str, str] | None:
    return dict(choice.chosen.values) if choice.chosen else None


def failed_before(out: Path, tuning: Tuning) -> set[str]:
    """Names of tuning runs that failed, of variants whose value has been chosen; they are not tried again.

    A variant with other values to try, or without a choice, is not among them. Raises RunDirError.
    """
    found: set[str] = set()
    entries = _variants(out)
    for name, candidates in tuning.candidates.items():
        entry = entries.get(name, {})
        tried = entry.get("tried", [])
        if entry.get("chosen") and [each["values"] for each in tried] == [dict(c.values) for c in candidates]:
            found |= _failed(tried, candidates)
    return found


def _failed(tried: Sequence[Mapping[str, Any]], candidates: Sequence[Candidate]) -> set[str]:
    return {one.variant.name for one, each in zip(candidates, tried, strict=True) if each["score"] is None}


def _variants(out: Path) -> dict[str, dict[str, Any]]:
    """The entries of the file, by variant; {} without a file. Raises RunDirError if it is something else."""
    path = out / RECORD
    if not path.exists():
        return {}
    found = entries_of(read_yaml(path))
    if found is None:
        raise RunDirError(f"{path}: is not a record of tuned values; move it away, and run the sweep again")
    return found
