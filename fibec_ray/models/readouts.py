"""How scores are read off a transformer's states: one class per way, chosen by `readout_of`.

Shapes: B samples, S positions, m virtual tokens before them, R tokens of all responses, H hidden size, V vocabulary, C
scores of a sample. With several rows per sample (`inputs.by_row`), B counts rows in states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional as F

from fibec_ray.answers import Answers
from fibec_ray.blocks import has_decoder
from fibec_ray.likelihoods import Likelihood, Preferences, Tags, Tokens
from fibec_ray.model_types import NO_LABEL, Batch
from fibec_ray.models.blocks import BlockOutputs, Hidden
from fibec_ray.models.inputs import Arguments, by_row
from fibec_ray.models.lm_head import known_lm_head, lm_head
from fibec_ray.models.settings import Head
from fibec_ray.responses import ResponseTokens, at_labels, locate


class Run:
    """A forward pass that a readout makes, through the whole model or its body.

    base: the transformers model. arguments: of the model, with virtual tokens. length: S. hidden: keep all states.
    reference: opens a pass over the same batch without the PEFT kind and without a graph.
    """

    def __init__(
        self,
        base: Any,
        blocks: BlockOutputs,
        arguments: Arguments,
        length: int,
        hidden: bool,
        reference: Callable[[], AbstractContextManager[Run]] | None = None,
    ):
        self._base, self._blocks, self._length, self._hidden = base, blocks, length, hidden
        self._reference = reference
        self._arguments = arguments
        self.states = Hidden()
        """outputs of the blocks, if they are wanted"""

    def reference(self) -> AbstractContextManager[Run]:
        """A pass of the frozen base alone."""
        assert self._reference is not None, "a reference has none of its own"
        return self._reference()

    @property
    def device(self) -> torch.device:
        """Where the model gets its arguments."""
        found: torch.device = self._arguments["attention_mask"].device
        return found

    def whole(self) -> Any:
        """The output of the model with its head."""
        out, self.states = self._blocks.run(self._base, self._arguments, self._length, self._hidden)
        return out

    def body(self, module: nn.Module) -> Tensor:
        """(B, S, H) last states of the model without its head."""
        arguments = self._arguments | no_cache(self._base)
        out, self.states = self._blocks.run(module, arguments, self._length, self._hidden)
        return self.own(out.last_hidden_state)

    def own(self, states: Tensor) -> Tensor:
        """(B, m + S, ...) -> (B, S, ...): without the virtual tokens in front."""
        return own(states, self._length)


class Read(NamedTuple):
    """What a readout finds: losses (B,), scores, and the distribution that they are parameters of."""

    losses: Tensor
    scores: Tensor
    likelihood: Likelihood


class Readout(ABC):
    """A way from a transformer's states to scores and losses. base: the transformers model."""

    head: nn.Module | None = None
    """our own trained module; None: the architecture has all that is needed"""
    predicts_tokens: ClassVar[bool] = False
    """True if the language-model head runs for each token of a response"""
    num_forwards: ClassVar[int] = 1
    """forward passes for a batch; at most one of them has a graph"""

    def __init__(self, base: Any, answers: Answers):
        self._base, self._distribution = base, answers.distribution

    @abstractmethod
    def read(self, run: Run, batch: Batch) -> Read:
        """Run the model and score the batch."""

    def num_predicted(self, batch: Batch) -> int:
        """Tokens whose predictions cost a pass of the language-model head. One per sample costs next to nothing."""
        return 0

    @property
    def _body(self) -> nn.Module:
        """The model without its head."""
        body: nn.Module = getattr(self._base, self._base.base_model_prefix)
        return body

    def _scored(self, scores: Tensor, batch: Batch) -> Read:
        likelihood = self._distribution()
        return Read(likelihood.losses(scores, batch.labels.to(scores.device)), scores, likelihood)


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


class TokenHead(Readout):
    """Our own linear head on the last state of each token with a label. base: a model without a head.

    The head runs on all positions, so that per-sample gradients see one row of tokens for each sample.
    """

    def __init__(self, base: Any, answers: Answers, head: nn.Module):
        super().__init__(base, answers)
        self.head = head

    def read(self, run: Run, batch: Batch) -> Read:
        states = run.body(self._base)
        with unset_fake_temporarily():  # as in responses_of
            tokens = at_labels(batch.labels, NO_LABEL)
        tokens = tokens.to(states.device)
        assert self.head is not None
        scores = self.head(states.float())[tokens.sample, tokens.column]
        likelihood = Tags(tokens)
        return Read(likelihood.losses(scores, tokens.targets), scores, likelihood)


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


class Response(Readout):
    """Answers in text. The language-model head runs only where a response token is predicted: (R, H) -> (R, V)."""

    predicts_tokens = True

    def read(self, run: Run, batch: Batch) -> Read:
        response = responses_of(batch)
        states = run.body(self._body)
        response = response.to(states.device)
        own = states[response.sample, response.column]
        scores = known_lm_head(self._base)(own.unsqueeze(0)).squeeze(0).float()
        likelihood = Tokens(response)
        return Read(likelihood.losses(scores, response.targets), scores, likelihood)

    def num_predicted(self, batch: Batch) -> int:
        with unset_fake_temporarily():
            rows = by_row(batch).inputs
            return int(rows["attention_mask"].sum() - (rows["answer_at"] + 1).sum())


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
        located = responses_of(batch)
        with run.reference() as alone:  # first, so that the base is left in the state of the pass with a graph
            reference = self._log_probs(alone, located)
        rewards = self._beta * (self._log_probs(run, located) - reference)
        scores = rewards[:, :1] - rewards[:, 1:]
        likelihood = Preferences(rewards.detach(), reference)
        return Read(likelihood.losses(scores, batch.labels.to(scores.device)), scores, likelihood)

    def _log_probs(self, run: Run, located: ResponseTokens) -> Tensor:
        """(B, 2) log-probabilities of the responses of each sample, summed over their tokens."""
        states = run.body(self._body)
        response = located.to(states.device)
        own = states[response.sample, response.column]
        scores = known_lm_head(self._base)(own.unsqueeze(0)).squeeze(0).float()
        return -response.sums(F.cross_entropy(scores, response.targets, reduction="none")).view(-1, 2)


class Target(Readout):
    """Targets of an encoder-decoder. The language-model head runs only for real target tokens: (R, H) -> (R, V).

    The model's own forward computes the logits, because families scale states before the head (T5), or add a bias after
    it (BART). A decoder's input starts one step early, so the output at a token's own position predicts it.
    """

    predicts_tokens = True

    def read(self, run: Run, batch: Batch) -> Read:
        with unset_fake_temporarily():  # as in `responses_of`
            ids, mask = batch.inputs["target_ids"], batch.inputs["target_mask"]
            response = at_labels(ids.masked_fill(mask == 0, NO_LABEL), NO_LABEL)
        response = response.to(run.device)

        def chosen(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (args[0][response.sample, response.column].unsqueeze(0),)

        handle = known_lm_head(self._base).register_forward_pre_hook(chosen)
        try:
            scores = run.whole().logits.squeeze(0).float()
        finally:
            handle.remove()
        likelihood = Tokens(response)
        return Read(likelihood.losses(scores, response.targets), scores, likelihood)

    def num_predicted(self, batch: Batch) -> int:
        with unset_fake_temporarily():
            return int(batch.inputs["target_mask"].sum())


def readout_of(base: Any, answers: Answers, own: nn.Module | None) -> Readout:
    """How scores are read off this transformers model. own: what `own_head` made."""
    if answers.readout == "response":
        return (Target if has_decoder(base.config) else Response)(base, answers)
    if answers.readout == "pair":
        return Pair(base, answers)
    if answers.label_words is not None:
        return (Words if lm_head(base) is not None else WordsOfWhole)(base, answers)
    if own is not None and answers.readout == "token":
        return TokenHead(base, answers, own)
    if own is not None:
        return MeanPool(base, answers, own)
    return (LastToken if hasattr(base, "score") else OwnHead)(base, answers)


def own_head(head: Head, answers: Answers, hidden_size: int) -> nn.Module | None:
    """A new head for mean_pool; None for other heads. Call it where torch's generator is seeded."""
    return nn.Linear(hidden_size, answers.num_scores) if head == "mean_pool" else None


def responses_of(batch: Batch) -> ResponseTokens:
    """The response tokens of a batch's rows, on the CPU."""
    with unset_fake_temporarily():  # the model of a plan has fake tensors, its batches have real ones
        rows = by_row(batch).inputs
        return locate(rows["input_ids"], rows["attention_mask"], rows["answer_at"])


def own(states: Tensor, length: int) -> Tensor:
    """(B, m + S, ...) -> (B, S, ...): without the virtual tokens in front."""
    return states[:, states.shape[1] - length :]


def no_cache(base: Any) -> dict[str, bool]:
    """Arguments with which a model keeps no keys and values for further tokens."""
    return {"use_cache": False} if hasattr(base.config, "use_cache") else {}


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """(B, S, ...) at one position of each sample (B,) -> (B, ...)"""
    return values[torch.arange(len(values), device=values.device), positions.to(values.device)]
