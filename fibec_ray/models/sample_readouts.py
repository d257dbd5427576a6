"""Readouts with one vector of scores for each sample.

Shapes: B samples, S positions, H hidden size, V vocabulary, C scores of a sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fibec_ray.answers import Answers
from fibec_ray.model_types import Batch
from fibec_ray.models.lm_head import known_lm_head
from fibec_ray.models.readout import Read, Readout, Run


class MeanPool(Readout):
    """Our own linear head on the mean of the last states of real tokens. base: a model without a head."""

    def __init__(self, base: Any, answers: Answers, head: nn.Module):
        super().__init__(base, answers)
        self.head = head

    def read(self, run: Run, batch: Batch) -> Read:
        states = run.body(self._base)
        real = batch.real(states)
        assert self.head is not None
        return self._scored(self.head((states.float() * real).sum(1) / real.sum(1)), batch)


class OwnHead(Readout):
    """The architecture's own classification head."""

    def read(self, run: Run, batch: Batch) -> Read:
        return self._scored(run.whole().logits.float(), batch)


class LastToken(Readout):
    """A decoder's own classification head on the last real token.

    transformers would find this token by a pad id that may not be ours.
    """

    def read(self, run: Run, batch: Batch) -> Read:
        states = run.body(self._body)
        last = batch.real(states).sum(1).squeeze(1) - 1
        return self._scored(self._base.score(_at(states, last)).float(), batch)


class Words(Readout):
    """A verbaliser: the logits of the classes' words where the answer is predicted. The loss is over all words.

    The language-model head runs only there: (B, H) -> (B, V).
    """

    def __init__(self, base: Any, answers: Answers):
        super().__init__(base, answers)
        self._words, self._ids = answers.label_words, torch.empty(0)

    def read(self, run: Run, batch: Batch) -> Read:
        logits = self._logits(run, batch).float()
        ids = self._ids_on(logits.device)
        likelihood = self._distribution()
        losses = likelihood.losses(logits, ids[batch.labels.to(logits.device)])
        return Read(losses, logits[:, ids], likelihood)

    def _logits(self, run: Run, batch: Batch) -> Tensor:
        """(B, V) where the answers are predicted."""
        states = _at(run.body(self._body), batch.inputs["answer_at"])
        logits: Tensor = known_lm_head(self._base)(states.unsqueeze(1)).squeeze(1)
        return logits

    def _ids_on(self, device: torch.device) -> Tensor:
        """(C,) token ids of the words. Kept, because copying them to a GPU waits for it."""
        if not len(self._ids):
            self._ids = torch.tensor(self._words, device=device)
        return self._ids


class WordsOfWhole(Words):
    """A verbaliser for models whose language-model head is not one known module: they compute all logits."""

    def _logits(self, run: Run, batch: Batch) -> Tensor:
        return _at(run.own(run.whole().logits), batch.inputs["answer_at"])


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """(B, S, ...) at one position of each sample (B,) -> (B, ...)"""
    return values[torch.arange(len(values), device=values.device), positions.to(values.device)]
