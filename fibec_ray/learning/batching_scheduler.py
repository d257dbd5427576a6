"""Runs the work of several devices in one thread, and batches the model passes that they request.

Each piece of work is plain code in its own greenlet. When it calls `BatchingScheduler.ask` it waits until every other
piece has asked a question or ended. All questions are then answered together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")

Answer = Callable[[dict[int, Any]], dict[int, Any]]
"""Maps {piece number: question} of all waiting pieces to {piece number: answer}. An exception as an answer is raised in
the piece. At least one piece gets an answer; the others go on waiting and are passed again with the next questions.
"""


class BatchingScheduler:
    """Runs pieces of work as greenlets. answer: answers the questions of all waiting pieces, in their order."""

    def __init__(self, answer: Answer):
        self._answer = answer
        self._hub: greenlet | None = None

    def ask(self, question: Any) -> Any:
        """Ask from within a piece of work. Returns the answer once every other piece waits or has ended."""
        assert self._hub is not None, "ask is called outside of run"
        # Gradient recording is a setting of the thread, and other pieces run in between.
        recording = torch.is_grad_enabled()
        answer = self._hub.switch(question)
        torch.set_grad_enabled(recording)
        return answer

    def run(self, pieces: Sequence[Callable[[], T]]) -> list[T]:
        """Run the pieces; return their results in order. The first error in a piece ends all of them."""
        recording = torch.is_grad_enabled()
        self._hub, lets = getcurrent(), [greenlet(piece) for piece in pieces]
        found: dict[int, T] = {}
        waiting: dict[int, Any] = {}
        try:
            for i, let in enumerate(lets):
                torch.set_grad_enabled(True)
                self._note(i, let, let.switch(), found, waiting)
            while waiting:
                answers = self._answer(dict(sorted(waiting.items())))
                waiting = {i: question for i, question in waiting.items() if i not in answers}
                for i, answer in answers.items():
                    resume = lets[i].throw if isinstance(answer, BaseException) else lets[i].switch
                    self._note(i, lets[i], resume(answer), found, waiting)
        finally:
            self._hub = None
            for let in lets:
                if not let.dead:
                    let.throw(GreenletExit)
            torch.set_grad_enabled(recording)
        return [found[i] for i in range(len(pieces))]

    def _note(self, i: int, let: greenlet, value: Any, found: dict[int, Any], waiting: dict[int, Any]) -> None:
        (found if let.dead else waiting)[i] = value
