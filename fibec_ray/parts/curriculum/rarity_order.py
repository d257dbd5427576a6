"""Vocabulary rarity: texts of common words come first."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.curriculum.paced import Pacing
from fibec_ray.parts.curriculum.scored import Scored
from fibec_ray.parts.part import Need


class RarityOrder(Scored):
    """Voc (Platanios et al., NAACL 2019): d(s) = -sum_{w in s} log p(w), p the unigram frequency of tokens.

    p is counted on the device's own training texts, with one added to each count, so that nothing is sent. The model
    is not run. Their pacing is the competence from 1 %; they count words of the corpus, we the tokens of the device.
    """

    kind: Literal["rarity"] = "rarity"
    score_at: Literal["init", "first_participation"] = "first_participation"
    pacing: Pacing = "competence"
    initial_fraction: float = Field(0.01, ge=0, le=1, description="beta: fraction visible in round 0")
    per_token: bool = Field(False, description="divide by the length, which the sum otherwise follows")
    needs: ClassVar[tuple[Need, ...]] = ("text",)

    def difficulty(self, scan: FisherScan) -> Tensor:
        texts = [scan.shard.batch(torch.tensor([row])).input_ids[0] for row in range(scan.shard.num_samples)]
        _, tokens, counts = torch.cat(texts).unique(return_inverse=True, return_counts=True)
        surprise = -((counts + 1) / (counts + 1).sum()).log()
        rarity = torch.stack([values.sum() for values in surprise[tokens].split([len(text) for text in texts])])
        return rarity / scan.shard.lengths if self.per_token else rarity
