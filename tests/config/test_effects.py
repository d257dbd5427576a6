"""Every setting of a run's sections is read in a run, or marked as one that another setting switches off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import make_digits

from fibec_ray.config.load import check
from fibec_ray.effects import rules
from fibec_ray.runs.simulation import simulate

SECTIONS = ("local", "server", "evaluation", "system", "fleet", "checkpoint")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[tuple[type, str]]:
    """(class, field) of every attribute of a section that is looked at."""
    found: set[tuple[type, str]] = set()

    def get(self: Any, name: str) -> Any:
        found.add((type(self), name))
        return object.__getattribute__(self, name)

    for section in SECTIONS:
        monkeypatch.setattr(type(getattr(check(make_digits(), "test"), section)), "__getattribute__", get)
    return found


def test_a_setting_that_a_local_run_never_reads_is_marked(read: set[tuple[type, str]], tmp_path: Path) -> None:
    """So that a new setting which only the Ray fleet reads is refused with the local one."""
    experiment = check(make_digits(rounds=2), "test")
    read.clear()
    simulate(experiment, tmp_path / "run")
    assert (type(experiment.local), "learning_rate") in read
    for section in SECTIONS:
        cls = type(getattr(experiment, section))
        unread = {name for name in cls.model_fields if (cls, name) not in read}
        assert unread - {"kind"} <= rules(cls).keys(), section  # `kind` chooses the class
