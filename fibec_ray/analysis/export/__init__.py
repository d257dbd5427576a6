"""Writes the round log for other tools: `fibec-ray export RUN --to tensorboard|wandb|mlflow`. Each is optional."""

from __future__ import annotations

from fibec_ray.analysis.export.run import export

__all__ = ["export"]
