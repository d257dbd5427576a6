"""What a model gives for a sample: how many scores, and the distribution that they are parameters of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, model_validator

from fibec_ray.errors import ModelError
from fibec_ray.likelihoods import LIKELIHOODS, TOO_MANY_LABELS, Label, Likelihood

Readout = Literal["sample", "token", "response", "pair", "operator"]
"""Where scores are read off a model; see `Answers`."""


class Answers(BaseModel, frozen=True, extra="forbid"):
    """A task's answers, the same for all its samples. Part of a job, so it travels to actors as JSON."""

    likelihood: str
    """a name in `likelihoods.LIKELIHOODS`"""
    num_scores: int
    """C: scores of a sample, or of a token; 0 with readout response, whose scores are those of the vocabulary"""
    readout: Readout = "sample"
    """sample: one vector of scores per sample; token: one per token; response: the language-model head's at each token
    of the response; pair: of two responses to one prompt; operator: a differential operator of a network's output
    """
    label_words: tuple[int, ...] | None = None
    """token ids (C,) of the verbaliser's words; None without one"""
    beta: float | None = None
    """with readout pair: the factor on log-probabilities relative to the base's; None with other readouts"""

    @model_validator(mode="after")
    def _consistent(self) -> Answers:
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood {self.likelihood!r} is unknown; choose one of: {', '.join(LIKELIHOODS)}")
        if (self.num_scores == 0) != (self.readout == "response") or self.num_scores < 0:
            raise ValueError(f"num_scores is {self.num_scores}; set 0 with readout response, and 1 or more otherwise")
        most = self.distribution.most_scores
        if most is not None and self.num_scores > most:
            raise ValueError(f"num_scores is {self.num_scores}; likelihood {self.likelihood} takes {most}; set {most}")
        if (self.beta is None) == (self.readout == "pair"):
            raise ValueError(
                f"beta is {self.beta}; set a positive number with readout pair, and leave it out otherwise"
            )
        if self.readout == "pair" and (self.likelihood, self.num_scores) != ("bernoulli", 1):
            raise ValueError("readout pair has likelihood bernoulli and num_scores 1; set both")
        if self.label_words is not None and len(self.label_words) != self.num_scores:
            raise ValueError(f"{len(self.label_words)} label_words for {self.num_scores} scores; give one for each")
        return self

    @property
    def distribution(self) -> type[Likelihood]:
        """The class of the likelihood."""
        return LIKELIHOODS[self.likelihood]

    @property
    def num_columns(self) -> int:
        """Columns of the Gauss-Newton factor per sample. Each column costs a backward pass."""
        return self.distribution.num_columns(self.num_scores)

    def backwards(self, label: Label) -> int:
        """Backward passes after a forward pass, for Fisher information with these labels.

        Raises ModelError for label expected if there are too many labels.
        """
        if label != "expected":
            return 1
        found = self.distribution.num_labels(self.num_scores)
        if found is None:
            raise ModelError(TOO_MANY_LABELS)
        return found
