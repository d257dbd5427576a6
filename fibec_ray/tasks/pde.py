"""A boundary value problem for physics-informed networks (`pde`)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fibec_ray.answers import Readout
from fibec_ray.data import pde
from fibec_ray.data.dealing import Split
from fibec_ray.data.examples import Points
from fibec_ray.data.heterogeneity import mean_r2, own_mean_r2
from fibec_ray.data.settings import DataConfig
from fibec_ray.models.base import AnyBackbone
from fibec_ray.tasks.points import Numbers, Values
from fibec_ray.tasks.scores import Figures
from fibec_ray.types import Predictions


class Pde(Values, Numbers):
    """The stationary Fisher-KPP equation on an interval, generated (`data.pde`).

    Training losses are half the squared residuals, of the equation or of a boundary value. Test losses and scores
    compare the network with the exact solution. Partitions by label deal by region of the interval.
    """

    kind: Literal["pde"] = "pde"

    readout: ClassVar[Readout] = "operator"
    embedded: ClassVar[str | None] = "pde"

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Points, Points]:
        return pde.generate_train(seed, config.pde), pde.generate_test(config.pde)

    def num_groups(self, train: Points) -> int | None:
        return train.num_groups

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Points:
        """inputs: coordinates (N, 1)."""
        x = super().rows_to_predict(inputs, (shape[0] - len(pde.VALUE),)).features
        return pde.asking_for_values(x)

    def unfit_for(self, backbone: AnyBackbone) -> str | None:
        if backbone.has_laplacian:
            return None
        return (
            f"task {self.name} needs second derivatives of the network, which {backbone.title} does not have; set "
            "backbone to {kind: mlp, activation: tanh}"
        )

    def figures(self, predictions: Predictions) -> Figures:
        """R2 and the relative L2 error of the network against the exact solution."""
        error = relative_l2(predictions.labels.numpy(), predictions.predicted.numpy())
        return Figures(super().figures(predictions).metric, {} if error is None else {"relative_l2": error})

    def anchors(self, train: Points, test: Points, split: Split) -> dict[str, float]:
        """R2 of the solution's mean over the test rows, and of its mean over each device's own."""
        assert test.values is not None
        shards = Split(split.test, split.test)
        found = {
            "mean": mean_r2(test.values, test.values),
            "own_mean": own_mean_r2(test.values, test.values, shards),
        }
        return {name: value for name, value in found.items() if value is not None}


def relative_l2(values: NDArray[np.floating[Any]], predicted: NDArray[np.floating[Any]]) -> float | None:
    """|predicted - values| / |values| in the Euclidean norm; None if all values are 0."""
    size = np.linalg.norm(values.astype(np.float64))
    return float(np.linalg.norm(predicted.astype(np.float64) - values) / size) if size > 0 else None
