"""What a trained model predicts for one input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DIGITS = 6
"""of probabilities in files"""


@dataclass(frozen=True)
class Prediction:
    """The answer to one input: a class, several labels, a text or a number. A kind of task sets the fields it uses."""

    label: str | None = None
    """the most likely class"""
    score: float | None = None
    """its probability"""
    scores: Mapping[str, float] = field(default_factory=dict)
    """the probability of each class"""
    text: str | None = None
    """the answer of a model that answers in text"""
    value: float | None = None
    """the number that a regression predicts"""
    labels: Sequence[str] = ()
    """all labels that are more likely than not, or one for each word"""

    def plain(self) -> dict[str, Any]:
        """The values that are set, as plain Python values."""
        values = {name: getattr(self, name) for name in ("label", "score", "scores", "text", "value", "labels")}
        values["score"] = None if self.score is None else round(self.score, DIGITS)
        values["scores"] = {name: round(score, DIGITS) for name, score in self.scores.items()}
        values["labels"] = list(self.labels)
        return {name: value for name, value in values.items() if value not in (None, {}, [])}

    def line(self) -> str:
        """A short line for the terminal; an answer in text as it is."""
        if self.text is not None:
            return self.text
        if self.value is not None:
            return f"{self.value:.4g}"
        if self.label is not None:
            return self.label if self.score is None else f"{self.label}  {self.score:.3f}"
        return " ".join(self.labels) or "none"


def most_likely(names: Sequence[str], probabilities: Sequence[float]) -> Prediction:
    """The class with the highest probability, with those of all classes."""
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return Prediction(names[best], probabilities[best], dict(zip(names, probabilities, strict=True)))
