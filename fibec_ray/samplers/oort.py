"""Draw fast devices with high loss more often."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fibec_ray.samplers.base import Draw, Sampler, Seen

LEAST_RANGE = 1e-4
"""Smallest range of utilities to divide by, for devices that are all alike."""


class Oort(Sampler):
    """Prefer devices with high loss that finish in time, and try out some new ones (Oort: Lai et al., OSDI 2021).

    A device k that has reported before has, in round t (from 1),

        score_k = (min(u_k, clip) - least) / range + sqrt(0.1 ln t / t_k),  times (T / s_k)^penalty if s_k > T

    where u_k = |B_k| times the root mean square of its samples' losses, t_k is its last round, s_k its seconds and T
    the preferred time of a round. clip is the `clip` quantile of u. Of a cohort, a share `exploration` * `decay`^t, at
    least `least_exploration`, is drawn from devices that have never reported. The rest is drawn with probability
    proportional to score, among the devices with at least `cut_off` times the score of the last one that would fit.

    Defaults are those of the authors' code (SymbioticLab/Oort), except `preferred`: 1 there, 0.3 here. Ours: a report
    has only the mean loss over a device's steps, so u_k = samples * that mean. T is a fixed quantile of the known
    times, without the pacer that moves it. New devices are drawn uniformly, not by size and speed.
    """

    kind: Literal["oort"] = "oort"
    exploration: float = Field(0.9, ge=0, le=1, description="share of new devices in a cohort before any decay")
    decay: float = Field(0.98, gt=0, le=1, description="factor on that share in each round")
    least_exploration: float = Field(0.2, ge=0, le=1, description="smallest share of new devices, while there are any")
    penalty: float = Field(2.0, ge=0, le=10, description="exponent for devices that are slower than preferred; 0: none")
    preferred: float = Field(
        0.3, gt=0, le=1, description="quantile of the devices' times that is the preferred time of a round; 1: no limit"
    )
    clip: float = Field(0.95, gt=0, le=1, description="quantile at which utilities are cut")
    cut_off: float = Field(0.7, ge=0, le=1, description="smallest score, relative to the last device that would fit")
    uses_history: ClassVar[bool] = True

    def draw(self, draw: Draw) -> tuple[int, ...]:
        known = [device for device in draw.available if device in draw.history]
        new = [device for device in draw.available if device not in draw.history]
        count = min(draw.count, len(draw.available))
        share = max(self.least_exploration, self.exploration * self.decay ** (draw.round_ + 1))
        explored = min(len(new), max(count - int((1 - share) * count), count - len(known)))
        chosen = self._exploit(draw, known, count - explored)
        fresh = draw.rng.choice(len(new), size=explored, replace=False) if explored else ()
        return (*chosen, *(new[int(i)] for i in fresh))

    def _exploit(self, draw: Draw, known: Sequence[int], count: int) -> list[int]:
        """Devices that have reported before, drawn by their scores among the best."""
        if not count:
            return []
        scores = self.scores({device: draw.history[device] for device in known}, draw.round_)
        ordered = sorted(known, key=lambda device: (-scores[device], device))
        pool = [device for device in ordered if scores[device] >= self.cut_off * scores[ordered[count - 1]]]
        # Rounding may leave a score of 0, and a draw needs as many positive weights as devices.
        weights = np.array([max(scores[device], 1e-12) for device in pool])
        chosen = draw.rng.choice(len(pool), size=count, replace=False, p=weights / weights.sum())
        return [pool[int(i)] for i in chosen]

    def scores(self, history: Mapping[int, Seen], round_: int) -> dict[int, float]:
        """The score of each device. round_: from 0."""
        utility = {device: seen.num_samples * (seen.train_loss or 0.0) for device, seen in history.items()}
        clip, least = float(np.quantile(list(utility.values()), self.clip)), min(utility.values())
        width = max(clip - least, LEAST_RANGE)
        preferred = math.inf
        if self.preferred < 1:
            preferred = float(np.quantile([seen.seconds for seen in history.values()], self.preferred))
        found = {}
        for device, seen in history.items():
            score = (min(utility[device], clip) - least) / width
            score += math.sqrt(0.1 * math.log(round_ + 1) / (seen.round_ + 1))
            found[device] = score * (preferred / seen.seconds) ** self.penalty if seen.seconds > preferred else score
        return found
