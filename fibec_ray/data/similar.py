"""Generates the embedded pairs of messages with a similarity from 0 to 5, from the grammar of the embedded task.

    3 * (same topic)  +  1 * (same sentence of the topic)  +  1 * (same time)

Pairs of one sentence differ in places, names and things. True difficulty, in [0, 1]: 1 where only the time or the
topic agrees, which a bag of words cannot tell.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, Field

from fibec_ray.data.examples import Examples
from fibec_ray.data.grammar import TOPICS
from fibec_ray.data.sentences import TIMES_OF, filled
from fibec_ray.seeds import numpy_generator

HIGHEST = 5.0
POSSIBLE = (0.0, 1.0, 3.0, 4.0, 5.0)
"""similarities without noise; partitions by label deal by them"""


class SimilarSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Number of pairs, and the noise of their scores."""

    num_train: int = Field(1200, ge=2, le=50_000, description="training rows to generate")
    num_test: int = Field(300, ge=2, le=10_000, description="test rows to generate")
    noise: float = Field(0.2, ge=0, le=2, description="standard deviation of the noise on training scores")


def generate(num_samples: int, seed: int, split: str, settings: SimilarSettings) -> Examples:
    """Generate pairs; a third has the same topic only, a third the same sentence, a third different topics.

    Training and test messages use different times, so no message is in both.
    """
    assert split in ("train", "test"), split
    rng = numpy_generator(seed, "similar", split)
    topics, when = list(TOPICS.values()), TIMES_OF[split]
    first, second, scores, difficulties = [], [], [], []
    for kind in rng.permutation(np.arange(num_samples) % 3):
        mine, other = (topics[i] for i in rng.choice(len(topics), 2, replace=False))
        ask = int(rng.integers(len(mine.asks)))
        same_time = bool(rng.integers(2))
        times = rng.choice(len(when), 2, replace=False)
        theirs = mine if kind else other
        asked = ask if kind == 2 else int((ask + 1 + rng.integers(len(theirs.asks) - 1)) % len(theirs.asks))
        first.append(filled(mine.asks[ask], mine, rng, (when[times[0]],)))
        second.append(filled(theirs.asks[asked], theirs, rng, (when[times[0 if same_time else 1]],)))
        scores.append(3.0 * (kind > 0) + 1.0 * (kind == 2) + 1.0 * same_time)
        difficulties.append(float((kind == 1) or (kind == 0 and same_time)))
    values = np.array(scores)
    if split == "train":
        values = np.clip(values + settings.noise * rng.standard_normal(num_samples), 0.0, HIGHEST)
    groups = np.searchsorted(POSSIBLE, scores).astype(np.int64)
    return Examples(first, second, groups, np.array(difficulties, dtype=np.float32), targets=values.astype(np.float32))
