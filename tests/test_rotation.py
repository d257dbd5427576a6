"""The draw of the fast tests: it can be had again, and forgets nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rotation
from conftest import method_files

METHODS = [path.stem for path in method_files()]


@pytest.fixture(autouse=True)
def own_seed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FIBEC_RAY_SAMPLE", "one")
    rotation.seed.cache_clear()
    yield
    rotation.seed.cache_clear()


def drawn(sample: str, monkeypatch: pytest.MonkeyPatch, purpose: str = "lanes") -> list[str]:
    monkeypatch.setenv("FIBEC_RAY_SAMPLE", sample)
    rotation.seed.cache_clear()
    return rotation.chosen(METHODS, 4, purpose)


def test_the_same_sample_draws_the_same_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn("one", monkeypatch) == drawn("one", monkeypatch) != drawn("two", monkeypatch)


def test_each_check_draws_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn("one", monkeypatch, "lanes") != drawn("one", monkeypatch, "resume")


def test_no_method_is_forgotten_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of 72 at a time: 200 commits leave out one with probability 1e-5."""
    assert {name for commit in range(200) for name in drawn(str(commit), monkeypatch)} == set(METHODS)


def test_all_cases_are_in_the_slow_suite() -> None:
    cases = rotation.in_turn(METHODS, 4, "lanes")
    assert [case.values[0] for case in cases] == METHODS
    assert sum(not case.marks for case in cases) == 4


def test_without_a_sample_the_commit_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIBEC_RAY_SAMPLE")
    rotation.seed.cache_clear()
    assert rotation.seed()


def test_without_git_the_date_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIBEC_RAY_SAMPLE")
    monkeypatch.setenv("PATH", "")
    rotation.seed.cache_clear()
    assert len(rotation.seed().split("-")) == 3
