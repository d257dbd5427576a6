"""Writes event files for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from fibec_ray.analysis.export.scalars import Curves


def write(curves: Curves, dest: str | None) -> str:
    """Replace earlier exports: TensorBoard would join two exports of one run into one zigzag curve."""
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(dest) if dest else curves.run_dir / "tensorboard"
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("settings", "".join(f"    {key}: {value}\n" for key, value in curves.settings.items()))
        for step in curves.steps:
            for name, value in step.values.items():
                writer.add_scalar(name, value, step.round)
    return f"{folder}; next: tensorboard --logdir {folder}"
