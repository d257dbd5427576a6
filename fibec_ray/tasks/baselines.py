"""Scores of answers that need no model, such as the majority class. `Task.anchors` of several kinds calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fibec_ray.data.dealing import Ints
from fibec_ray.data.heterogeneity import Column
from fibec_ray.tasks.scores import Figures
from fibec_ray.types import Predictions


def accuracies(right: Ints, said: Mapping[str, Ints]) -> dict[str, float]:
    """Shares of right answers, by name. right: (N,) true classes. said: (N,) answers by name, from `majorities`."""
    return {name: float((given == right).mean()) for name, given in said.items()}


def in_own_metric(
    figures: Callable[[Predictions], Figures], right: Column, said: Mapping[str, Column]
) -> dict[str, float]:
    """The task's own metric of the same answers, as NAME_metric. Those for which it is undefined are left out.

    figures: the task's. right: (N,) or (N, C), the true answers. said: the same shape, by name.
    """
    truth, losses = torch.from_numpy(right), torch.zeros(len(right))
    found = {name: figures(Predictions(truth, torch.from_numpy(given), losses)) for name, given in said.items()}
    return {f"{name}_metric": each.metric for name, each in found.items() if each.metric is not None}
