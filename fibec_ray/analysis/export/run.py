"""`fibec-ray export`: finds the writer, and says what to install when it is missing."""

from __future__ import annotations

from pathlib import Path

from fibec_ray.analysis.export import to_mlflow, to_tensorboard, to_wandb
from fibec_ray.analysis.export.scalars import curves_of
from fibec_ray.analysis.places import local_path
from fibec_ray.errors import UserError

WRITERS = {"tensorboard": to_tensorboard.write, "wandb": to_wandb.write, "mlflow": to_mlflow.write}
"""(curves, destination) -> where the result is. Each imports its tool when called."""


def export(run_dir: Path, tool: str, dest: str | None) -> str:
    """Write the run for the tool and return what to do next. Raises RunDirError, or UserError where the tool fails."""
    local_path(run_dir)  # raises unless it is a usable path
    curves = curves_of(run_dir)
    try:
        return WRITERS[tool](curves, dest)
    except ImportError as error:
        raise UserError(
            f"--to {tool}: is not installed here ({error}); `pip install 'fibec_ray[{tool}]'`, in an environment of "
            "its own if it wants other versions of libraries"
        ) from error
