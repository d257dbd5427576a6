"""The round log for other tools, each an optional dependency: `fibec-ray export RUN --to tensorboard|wandb|mlflow`."""

from __future__ import annotations

from fibec_ray.analysis.export.run import export

__all__ = ["export"]
