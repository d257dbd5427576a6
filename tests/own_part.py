"""A user-defined part in its own folder, and a YAML file that uses it; for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from conftest import make_digits

RULES = """\
from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.tensors import Tensors
from fibec_ray.types import DeviceUpdate


class ClippedMean(Aggregator):
    \"\"\"The mean of updates that are scaled down to a largest norm. Counts those that were.\"\"\"

    most: float = Field(0.5, gt=0, description="largest norm of an update")

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        return {"clipped": torch.zeros(1)}

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        total, count = {}, 0
        for update in updates:
            norm = float(sum(value.square().sum() for value in update.delta.values())) ** 0.5
            scale = min(1.0, self.most / norm)
            state = {"clipped": state["clipped"] + (scale < 1)}
            count += 1
            total = {name: total.get(name, 0) + scale * value for name, value in update.delta.items()}
        return {name: value / count for name, value in total.items()}, state
"""
KIND = "my_rules.py:ClippedMean"


def write_own_part(folder: Path, text: str = RULES, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """The YAML, and its settings with the file's whole path in them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_rules.py").write_text(text)
    settings = make_digits(**{"name": "own", "rounds": 2, "method": {"name": "clipped", "aggregator": KIND}, **changes})
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(settings))
    method = settings["method"] | {"aggregator": f"{folder}/{KIND}"}
    return path, settings | {"method": method}
