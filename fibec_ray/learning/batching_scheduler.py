"""Runs several devices' work side by side in one thread, and batches the passes that they ask for.

Each piece of work is plain code that runs in its own greenlet. Where it calls `BatchingScheduler.ask` it waits until
every other piece has come as far as a question, or to its end. Questions are then answered together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")

Answer = Callable[[dict[int, Any]], dict[int, Any]]
"""{number of the piece: its question} of all that wait -> an answer, or an exception to raise there, for each"""


class BatchingScheduler:
    """answer: takes the questions of all pieces that are waiting, in the order of the pieces."""

    def __init__(self, answer: Answer):
        self._answer = answer
        self._hub: greenlet | None = None

    def ask(self, question: Any) -> Any:
        """Called by a piece of work. Returns the answer, once every other piece of work waits or has ended."""
        assert self._hub is not None, "nobody runs this piece"
        # Whether gradients are recorded belongs to the thread, and others run in between.
        recording = torch.is_grad_enabled()
        answer = self._hub.switch(question)
        torch.set_grad_enabled(recording)
        return answer

    def run(self, pieces: Sequence[Callable[[], T]]) -> list[T]:
        """What the pieces return, in their order. The first error of one of them ends all."""
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
                waiting = {}
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
