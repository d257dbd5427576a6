"""Pieces of work wait at a question until all others have reached one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fibec_ray.learning.batching_scheduler import BatchingScheduler


def test_questions_are_answered_together_and_in_order() -> None:
    """Piece 0 asks twice, piece 1 once, piece 2 never; the second scheduler is of piece 0 alone."""
    seen: list[dict[int, Any]] = []

    def answer(questions: dict[int, Any]) -> dict[int, Any]:
        seen.append(questions)
        return {i: 10 * question for i, question in questions.items()}

    scheduler = BatchingScheduler(answer)
    pieces: list[Callable[[], int]] = [lambda: scheduler.ask(1) + scheduler.ask(2), lambda: scheduler.ask(3), lambda: 4]
    assert scheduler.run(pieces) == [30, 30, 4]
    assert seen == [{0: 1, 1: 3}, {0: 2}]


def test_recording_of_gradients_is_each_pieces_own() -> None:
    scheduler = BatchingScheduler(lambda questions: dict.fromkeys(questions))

    def without() -> list[bool]:
        with torch.no_grad():
            scheduler.ask(None)
            inside = torch.is_grad_enabled()
            scheduler.ask(None)
        return [inside, torch.is_grad_enabled()]

    def recording() -> list[bool]:
        scheduler.ask(None)
        found = [torch.is_grad_enabled()]
        scheduler.ask(None)
        return [*found, torch.is_grad_enabled()]

    with torch.no_grad():
        assert scheduler.run([without, recording]) == [[False, True], [True, True]]
        assert not torch.is_grad_enabled()


def test_an_error_of_one_piece_ends_all_and_cleans_up() -> None:
    scheduler = BatchingScheduler(lambda questions: dict.fromkeys(questions))
    ended = []

    def waits() -> None:
        try:
            scheduler.ask(None)
            scheduler.ask(None)
        finally:
            ended.append("waits")

    def fails() -> None:
        scheduler.ask(None)
        raise ValueError("no such luck")

    with pytest.raises(ValueError, match="no such luck"):
        scheduler.run([waits, fails])
    assert ended == ["waits"]
    assert scheduler.run([lambda: 1]) == [1]


def test_an_error_for_an_answer_is_raised_where_it_was_asked() -> None:
    scheduler = BatchingScheduler(lambda questions: {0: KeyError("gone")})

    def asks() -> str:
        try:
            return str(scheduler.ask(None))
        except KeyError as error:
            return f"caught {error}"

    assert scheduler.run([asks]) == ["caught 'gone'"]
