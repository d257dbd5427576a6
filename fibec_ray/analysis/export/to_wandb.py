"""Writes a run for Weights & Biases, kept offline until `wandb sync`."""

from __future__ import annotations

from pathlib import Path

from fibec_ray.analysis.export.scalars import Curves
from fibec_ray.environment import read


def write(curves: Curves, dest: str | None) -> str:
    """Write offline files unless WANDB_MODE=online; nothing leaves this machine by default."""
    import wandb

    folder = Path(dest) if dest else curves.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    mode = "online" if read("WANDB_MODE") == "online" else "offline"
    settings = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True)
    run = wandb.init(
        project="fibec_ray", name=curves.name, config=curves.settings, dir=str(folder), mode=mode, settings=settings
    )
    run.define_metric("round")
    run.define_metric("*", step_metric="round")  # not the number of calls
    for step in curves.steps:
        run.log({"round": step.round, **step.values})
    where = Path(run.dir).parent
    run.finish()
    return f"{where}" + ("" if mode == "online" else f"; next: wandb sync {where}")
