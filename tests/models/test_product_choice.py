"""A machine keeps its choice of products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fibec_ray.models import product_choice
from fibec_ray.models.product_choice import kept_choice
from fibec_ray.models.products import candidates
from fibec_ray.models.spec import Backbone

BASE = Backbone(dtype="bfloat16")


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Trials that choose the first candidate, then the second: two that are about as fast."""
    found: list[Any] = []

    def choose(spec: Any, rows: int, threads: int) -> str:
        found.append((rows, threads))
        return candidates(spec.dtype)[len(found) - 1]

    monkeypatch.setattr(product_choice, "choose", choose)
    return found


def test_a_second_run_keeps_the_choice_of_the_first(trials: list[Any], tmp_path: Path) -> None:
    first = kept_choice(BASE, 256, 1, tmp_path)
    assert kept_choice(BASE, 256, 1, tmp_path) == first == candidates("bfloat16")[0] and trials == [(256, 1)]


def test_other_threads_layers_and_processors_get_their_own_choice(
    trials: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_choice(BASE, 256, 1, tmp_path)
    kept_choice(BASE, 256, 2, tmp_path)
    monkeypatch.setattr(product_choice, "cpu_model", lambda: "another")
    kept_choice(BASE, 256, 1, tmp_path)
    assert trials == [(256, 1), (256, 2), (256, 1)] and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("content", ["", "[]", '{"products": "gone"}', '{"products": ["torch"]}', "{"])
def test_a_broken_note_causes_a_new_trial(trials: list[Any], tmp_path: Path, content: str) -> None:
    kept_choice(BASE, 256, 1, tmp_path)
    (note,) = tmp_path.iterdir()
    note.write_text(content)
    assert kept_choice(BASE, 256, 1, tmp_path) == candidates("bfloat16")[1] and len(trials) == 2
    assert kept_choice(BASE, 256, 1, tmp_path) == candidates("bfloat16")[1] and len(trials) == 2


def test_nothing_is_kept_without_a_cache_folder(trials: list[Any], tmp_path: Path) -> None:
    kept_choice(BASE, 256, 1, tmp_path / "none")
    assert not (tmp_path / "none").exists()
