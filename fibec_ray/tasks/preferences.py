"""Preferences between two responses, trained with DPO: from tables (`preferences`), or embedded exercises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fibec_ray.answers import Answers, Readout
from fibec_ray.data import preference_exercises
from fibec_ray.data.conversations import asked
from fibec_ray.data.dealing import Split
from fibec_ray.data.encode_pairs import encode_pairs
from fibec_ray.data.examples import Pairs
from fibec_ray.data.preferences import PairColumns, chosen_columns, pairs_of
from fibec_ray.data.sets import SampleSet
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.source import Table
from fibec_ray.encoder import Encoder
from fibec_ray.errors import DataError
from fibec_ray.models.base import AnyBackbone
from fibec_ray.tasks.base import Task, generated
from fibec_ray.tasks.generation import ANY_RESPONSE
from fibec_ray.tasks.scores import Figures
from fibec_ray.tasks.tables import FromTables
from fibec_ray.tasks.texts import ask_for_columns
from fibec_ray.types import Predictions

CHANCE = 0.5
"""Accuracy of a guess between two responses."""


class Preference(Task):
    """Direct preference optimisation (Rafailov et al., NeurIPS 2023).

    The loss is -log sigmoid(r_w - r_l) with the rewards r = beta (log pi(y | x) - log ref(y | x)) of the chosen
    response y_w and the rejected one y_l; log-probabilities are sums over the tokens of a response. ref is the frozen
    base with the adapter switched off. accuracy is the share of positive margins r_w - r_l. A margin of exactly 0, as
    before training, is not positive.
    """

    beta: float = Field(0.1, gt=0, description="how closely the model stays to its base: higher is closer")
    metric: Literal["accuracy"] = Field("accuracy", description="share of pairs whose chosen response is preferred")

    pipeline: ClassVar[str | None] = "text-generation"
    likelihood: ClassVar[str] = "bernoulli"
    readout: ClassVar[Readout] = "pair"
    needs_base: ClassVar[bool] = True
    has_texts: ClassVar[bool] = True

    @property
    def num_scores(self) -> int:
        return 1

    def num_groups(self, train: Pairs) -> int | None:
        return len(train.categories) if train.has_categories else None

    def unfit_for(self, backbone: AnyBackbone) -> str | None:
        if backbone.writes_text:
            return None
        return (
            f"task {self.name} compares responses in text; {backbone.scores_by} cannot do that; set "
            "backbone.head=causal_lm, with a decoder, or backbone=tiny-llama"
        )

    def answers(self, num_scores: int, label_words: tuple[int, ...] | None) -> Answers:
        return Answers(likelihood=self.likelihood, num_scores=num_scores, readout=self.readout, beta=self.beta)

    def encode(self, rows: Pairs, encoder: Encoder) -> SampleSet:
        return encode_pairs(rows, encoder.tokenizer, encoder.max_length)

    def about_cuts(self, sets: Sequence[Any], max_length: int) -> str:
        prompts, responses = sum(part.num_cut for part in sets), sum(part.num_cut_responses for part in sets)
        if not prompts + responses:
            return ""
        num_samples = sum(part.num_samples for part in sets)
        return (
            f"the prompts of {prompts} and the responses of {responses} of {num_samples} pairs were truncated to "
            f"data.max_length={max_length}"
        )

    def anchors(self, train: Pairs, test: Pairs, split: Split) -> dict[str, float]:
        return {"chance": CHANCE}

    def accuracy(self, predictions: Predictions) -> float | None:
        """Share of pairs with a positive margin."""
        return _share(predictions.predicted[:, 0] > predictions.predicted[:, 1])

    def figures(self, predictions: Predictions) -> Figures:
        """Mean margin and rewards, and how often the model, or its base, finds the chosen response more likely."""
        values = predictions.predicted.double()
        rewards, reference = values[:, :2], values[:, 2:]
        log_probs = rewards / self.beta + reference
        chosen, rejected = rewards.mean(0).tolist()
        more = {
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "likelihood_accuracy": _share(log_probs[:, 0] > log_probs[:, 1]),
            "base_likelihood_accuracy": _share(reference[:, 0] > reference[:, 1]),
        }
        return Figures(self.accuracy(predictions), more)

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Pairs:
        """inputs: questions, each one turn of a human."""
        for at, text in enumerate(inputs):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"input {at}: give a prompt as text; this is {text!r:.60}")
        count = len(inputs)
        responses = [ANY_RESPONSE] * count
        return Pairs([asked(text) for text in inputs], responses, responses, np.zeros(count, np.int64), ("",))

    def input_columns(self, there: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
        wanted = tuple(chosen) or ("prompt",)
        if len(wanted) != 1 or not set(wanted) <= set(there):
            raise DataError(ask_for_columns(there, 1))
        return wanted

    @property
    def typed_columns(self) -> tuple[str, ...]:
        return ("prompt",)


def _share(right: Any) -> float:
    return float(right.double().mean())


class FromPreferences(Preference, FromTables):
    """Prompts with a chosen and a rejected response (data/preferences.py has the layouts)."""

    kind: Literal["preferences"] = "preferences"
    pairs: PairColumns = Field(PairColumns(), description="names of the columns")
    drop_unusable: bool = Field(
        False, description="leave out rows with an empty text or two equal responses; false: they are an error"
    )

    def no_groups(self) -> str:
        return f"the rows of task {self.name} have none; set task.pairs.category to their column"

    def columns(self, there: list[str], where: str) -> tuple[str, ...]:
        return tuple(chosen_columns(self.pairs, there, where).values())

    def rows_of(self, tables: Sequence[Table], config: DataConfig) -> list[Pairs]:
        parts = []
        for content, where in tables:
            chosen = chosen_columns(self.pairs, content.column_names, where)
            parts.append(pairs_of(content, chosen, where, self.drop_unusable))
        return Pairs.alike(parts)

    def _why_idle(self, name: str) -> str:
        if name in ("text_columns", "label_column", "labels", "drop_missing", "columns"):
            return f"task {self.name} has pairs of responses (their columns: task.pairs); remove it"
        return super()._why_idle(name)


class PreferenceExercises(Preference):
    """The embedded exercises, each with its right answer and a plausible wrong one (`data.preferences`)."""

    kind: Literal["preference_exercises"] = "preference_exercises"

    uses: ClassVar[tuple[str, ...]] = ("max_length",)
    embedded: ClassVar[str | None] = "preferences"

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Pairs, Pairs]:
        return generated(preference_exercises.generate, seed, config.preferences)
