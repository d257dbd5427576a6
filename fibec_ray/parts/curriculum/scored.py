"""Curricula ordered by a score of each sample, computed at the start or repeatedly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan, Scope
from fibec_ray.likelihoods import Label
from fibec_ray.parts.curriculum.pacing import Paced, Pacing
from fibec_ray.parts.part import Need, Setting, of_label
from fibec_ray.tensors import Tensors
from fibec_ray.word_counts import tokens_of


class Scored(Paced):
    """Base of curricula that order units by the `difficulty` of samples, easiest first.

    Before its first scoring a device sees the same number of units in the order of the seeded split.
    """

    reduce: Literal["mean", "sum"] = Field(
        "mean", description="over a batch's samples; sum (as in FibecFed's description) ranks short batches as easy"
    )
    hardest_first: bool = Field(False, description="true is the anti-curriculum, a control (Wu et al., ICLR 2021)")

    score_at: Literal["init", "first_participation"] = Field(
        "init",
        description="when samples are scored: init, on all devices before round 1 (as described); first_participation, "
        "with the model received then, which spreads the cost and skips devices that are never drawn",
    )
    score_from_round: int = Field(
        0, ge=0, description="with first_participation: the earliest round, so that the model has been trained"
    )
    rescore_every: int | None = Field(
        None, ge=1, description="rounds after which a participating device scores again; null: never"
    )

    @model_validator(mode="after")
    def _waiting_needs_participation(self) -> Scored:
        if self.score_at == "init" and self.score_from_round:
            raise ValueError("score_from_round has an effect only with score_at: first_participation; set that too")
        return self

    @property
    def needs_setup(self) -> bool:
        return self.score_at == "init"

    keeps: ClassVar[str] = "order of its data (device)"

    def due(self, memory: Tensors, round_: int) -> bool:
        if "order" not in memory:
            return round_ >= self.score_from_round
        return self.rescore_every is not None and round_ - int(memory["scored_round"]) >= self.rescore_every

    @abstractmethod
    def difficulty(self, scan: FisherScan) -> Tensor:
        """(n,) float32 for the shard's samples, at the model's current parameters."""

    def prepare(self, scan: FisherScan, rng: torch.Generator, round_: int) -> Tensors:
        difficulty = self.difficulty(scan)
        of_batches = batch_difficulties(difficulty, scan.batches, self.reduce)
        units = of_batches if self.unit == "batch" else difficulty
        return {
            "order": torch.argsort(units, stable=True, descending=self.hardest_first),
            "scored_round": torch.tensor(max(round_, 0)),
            "sample_difficulty": difficulty,
            "batch_difficulty": of_batches,
        }


def batch_difficulties(difficulty: Tensor, batches: Sequence[Tensor], reduce: str) -> Tensor:
    """f_j of each batch, (num_batches,), from the difficulty (n,) of the shard's samples."""
    return torch.stack([difficulty[rows].sum() if reduce == "sum" else difficulty[rows].mean() for rows in batches])


class FisherOrder(Scored):
    """FibecFed (Liu et al., EMNLP 2024): difficulty of batch B_j is f_j = sum_{i in B_j} Tr(diag F_i), easiest first.

    Tr(diag F_i) = ||grad_P log p(y_i | s_i)||^2 over the LoRA parameters P with the observed label (empirical Fisher),
    at the initial model (or see `score_at`). We take the mean over a batch where the paper takes the sum. Batches of
    equal size rank the same under both, and a short last batch does not rank as easy because of its size.

    A co-author's code takes the mean too, scores with dropout on, and its trace includes all parameters but the base
    weights of the query and value projections (our reading). Ours is over the trainable tensors alone.
    """

    kind: Literal["fisher"] = "fisher"
    label: Label = Field(
        "observed",
        description="labels in the gradients: observed (the data's), expected (all), or sampled (the model's)",
    )
    scope: Scope = Field("adapter", description="tensors in the trace; all includes the head")
    length_power: float = Field(
        0.0,
        ge=-4,
        le=4,
        description="the trace is multiplied by length^this; 1 undoes the effect of mean pooling on long texts, 0: "
        "no change",
    )
    dropout: bool = Field(
        False, description="score with dropout on, as in training; a co-author's code of FibecFed does"
    )

    def unfit_for(self, setting: Setting) -> str | None:
        if self.dropout and not setting.dropout:
            return (
                "fisher is set to score with dropout on, but nothing has dropout; set method.peft.dropout or "
                "backbone.dropout, or method.curriculum.dropout=false"
            )
        return None

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*of_label(self.label), *(("text",) if self.length_power else ()))

    def difficulty(self, scan: FisherScan) -> Tensor:
        return scan.read(self.label, self.scope, self.dropout).traces * scan.shard.lengths.float() ** self.length_power


class LossOrder(Scored):
    """Self-paced learning (Kumar, Packer, Koller, NeurIPS 2010) on devices: low loss first, scored again each time.

    The paper keeps samples with a loss below a growing threshold. We keep the share with the lowest loss that the
    pacing allows, to be comparable with the other curricula. Each scoring costs one forward pass over the device's
    data.
    """

    kind: Literal["loss"] = "loss"
    score_at: Literal["init", "first_participation"] = Field(
        "first_participation", description="when samples are scored: init, before round 1; or at first participation"
    )
    rescore_every: int | None = Field(1, ge=1, description="rounds after which a participating device scores again")

    def difficulty(self, scan: FisherScan) -> Tensor:
        return scan.losses


class LengthOrder(Scored):
    """Short samples first, by their number of tokens.

    A co-author's code of FibecFed runs its baselines SLW and Shortformer in this way. It truncates no text. Both papers
    do; see kinds `length_warmup` and `short_first`. The model does not run.
    """

    kind: Literal["length_order"] = "length_order"
    score_at: Literal["init", "first_participation"] = Field(
        "first_participation", description="when samples are scored: init, before round 1; or at first participation"
    )
    needs: ClassVar[tuple[Need, ...]] = ("text",)

    def difficulty(self, scan: FisherScan) -> Tensor:
        return scan.shard.lengths.float()


class RarityOrder(Scored):
    """Voc (Platanios et al., NAACL 2019): d(s) = -sum_{w in s} log p(w), p the unigram frequency of tokens.

    p is counted on the device's own training texts, with one added to each count, so nothing is sent and the model does
    not run. The paper counts words of the corpus; we count tokens of the device. As in the paper the pacing is
    competence from 1 %.

    With `counted_on: federation` p is counted on all devices' texts and nothing is added, as in a co-author's code of
    FibecFed. Each device sends its counts once, so the server learns which words it has. That code leaves out special
    tokens. We count them; most samples have the same number of them.
    """

    kind: Literal["rarity"] = "rarity"
    score_at: Literal["init", "first_participation"] = Field(
        "first_participation", description="when samples are scored: init, before round 1; or at first participation"
    )
    pacing: Pacing = Field("competence", description="how the visible fraction grows over the rounds")
    initial_fraction: float = Field(0.01, ge=0, le=1, description="beta: fraction visible in the first round")
    per_token: bool = Field(False, description="divide by the length, so that long texts are not rare by length alone")
    counted_on: Literal["device", "federation"] = Field(
        "device", description="whose texts p is counted on; federation needs score_at: init"
    )
    needs: ClassVar[tuple[Need, ...]] = ("text",)

    @model_validator(mode="after")
    def _all_devices_count_at_the_start(self) -> RarityOrder:
        if self.counted_on == "federation" and self.score_at != "init":
            raise ValueError("counted_on: federation counts all devices' words before round 1; set score_at: init too")
        return self

    @property
    def pools_words(self) -> bool:
        return self.counted_on == "federation"

    @property
    def sends(self) -> str:
        return "word counts, once" if self.pools_words else ""

    def difficulty(self, scan: FisherScan) -> Tensor:
        texts = [tokens_of(scan.shard.batch(torch.tensor([row]))) for row in range(scan.shard.num_samples)]
        known, tokens, counts = torch.cat(texts).unique(return_inverse=True, return_counts=True)
        if self.pools_words:
            of_all = scan.words_of_all()
            surprise = -(of_all[known] / of_all.sum()).log()
        else:
            surprise = -((counts + 1) / (counts + 1).sum()).log()
        rarity = torch.stack([values.sum() for values in surprise[tokens].split([len(text) for text in texts])])
        return rarity / scan.shard.lengths if self.per_token else rarity
