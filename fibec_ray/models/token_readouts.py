"""Readouts with scores for tokens: tags of words, responses, pairs of responses, and targets of encoder-decoders.

Shapes: B samples, R tokens of all responses, H hidden size, V vocabulary. With several rows per sample
(`inputs.by_row`), B counts rows in states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fibec_ray.answers import Answers
from fibec_ray.likelihoods import Preferences, Tags, Tokens
from fibec_ray.model_types import Batch
from fibec_ray.models.lm_head import known_lm_head
from fibec_ray.models.readout import Read, Readout, Run
from fibec_ray.models.token_scores import fits, in_parts, token_losses, token_scores
from fibec_ray.responses import ResponseTokens


class TokenHead(Readout):
    """Our own linear head on the last state of each token with a label. base: a model without a head.

    The head runs on all positions, so that per-sample gradients see one row of tokens for each sample.
    """

    def __init__(self, base: Any, answers: Answers, head: nn.Module):
        super().__init__(base, answers)
        self.head = head

    def read(self, run: Run, batch: Batch) -> Read:
        states = run.body(self._base)
        tokens = answers_of(batch, states.device)
        assert self.head is not None
        scores = self.head(states.float())[tokens.sample, tokens.column]
        likelihood = Tags(tokens)
        return Read(likelihood.losses(scores, tokens.targets), scores, likelihood)


class Response(Readout):
    """Answers in text. The language-model head runs only where a response token is predicted: (R, H) -> (R, V)."""

    predicts_tokens = True

    def read(self, run: Run, batch: Batch) -> Read:
        states = run.body(self._body)
        response = answers_of(batch, states.device)
        scores = token_scores(known_lm_head(self._base), states[response.sample, response.column])
        return Read(response.means(token_losses(scores, response.targets)), scores, Tokens(response))

    def num_predicted(self, batch: Batch) -> int:
        return num_answers(batch)


class Pair(Response):
    """Two responses to each prompt, a chosen and a rejected one: the score is DPO's margin, the label is 1.

    A reward is beta (log pi(y | x) - log ref(y | x)), summed over the response's tokens; ref is the frozen base. The
    margin is the reward of the chosen response minus that of the rejected one (Rafailov et al. 2023, eq. 7). Rows 2i
    and 2i + 1 of the model's pass are the two responses of sample i.
    """

    num_forwards = 2

    def __init__(self, base: Any, answers: Answers):
        super().__init__(base, answers)
        assert answers.beta is not None
        self._beta = answers.beta

    def read(self, run: Run, batch: Batch) -> Read:
        with run.reference() as alone:  # first, so that the base is left in the state of the pass with a graph
            reference = self._log_probs(alone, batch)
        rewards = self._beta * (self._log_probs(run, batch) - reference)
        scores = rewards[:, :1] - rewards[:, 1:]
        likelihood = Preferences(rewards.detach(), reference)
        return Read(likelihood.losses(scores, batch.labels.to(scores.device)), scores, likelihood)

    def _log_probs(self, run: Run, batch: Batch) -> Tensor:
        """(B, 2) log-probabilities of the responses of each sample, summed over their tokens."""
        states = run.body(self._body)
        response = answers_of(batch, states.device)
        scores = token_scores(known_lm_head(self._base), states[response.sample, response.column])
        return -response.sums(token_losses(scores, response.targets)).view(-1, 2)


class Target(Readout):
    """Targets of an encoder-decoder. The language-model head runs only for real target tokens: (R, H) -> (R, V).

    The model's own forward computes the logits, because families scale states before the head (T5), or add a bias after
    it (BART). A decoder's input starts one step early, so the output at a token's own position predicts it.
    """

    predicts_tokens = True

    def read(self, run: Run, batch: Batch) -> Read:
        response, head = answers_of(batch, run.device), known_lm_head(self._base)
        few = fits(head, len(response.targets))
        found: list[Tensor] = []

        def chosen(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            found.append(args[0][response.sample, response.column])
            return (found[0].unsqueeze(0) if few else args[0][:1, :1],)

        handle = head.register_forward_pre_hook(chosen)
        try:
            logits = run.whole().logits
        finally:
            handle.remove()
        scores = logits.squeeze(0).float() if few else in_parts(head, found[0], self._bias)
        return Read(response.means(token_losses(scores, response.targets)), scores, Tokens(response))

    @property
    def _bias(self) -> Tensor | None:
        """Added to all logits."""
        bias: Tensor | None = getattr(self._base, "final_logits_bias", None)
        return bias

    def num_predicted(self, batch: Batch) -> int:
        return num_answers(batch)


def answers_of(batch: Batch, device: torch.device) -> ResponseTokens:
    """The answer tokens of a batch's rows: responses, targets or tags, as in `BatchFacts`."""
    assert batch.answers is not None, "a batch without answer tokens"
    return batch.answers.to(device)


def num_answers(batch: Batch) -> int:
    """R, the number of answer tokens."""
    return 0 if batch.answers is None else len(batch.answers.targets)
