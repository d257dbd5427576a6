"""The code of docs/use-the-model.md and of model cards does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny

from fibec_ray.config.load import check
from fibec_ray.export.load import load
from fibec_ray.export.write import export_merged
from fibec_ray.runs.simulation import simulate

PAGE = Path(__file__).parents[2] / "docs" / "use-the-model.md"


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("where", ["page", pytest.param("README.md of the model", marks=pytest.mark.slow)])
def test_a_mean_pool_head_in_ten_lines(where: str, tmp_path: Path, monkeypatch: Any) -> None:
    run = simulate(check(make_tiny(rounds=1, num_devices=2, cohort_size=2), "test"), tmp_path / "run")
    merged = export_merged(run, tmp_path / "my-model")
    text = "Who wrote Dune?"
    if where == "page":
        (code,) = [block for block in python_blocks(PAGE.read_text(encoding="utf-8")) if "head.safetensors" in block]
        assert len(code.splitlines()) <= 12 and text in code
    else:
        (code,) = python_blocks((merged / "README.md").read_text())
        code = code.replace("PATH/TO/THIS/FOLDER", str(merged)).replace('["..."]', repr([text]))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    torch.testing.assert_close(names["logits"], load(run).scores([text]), rtol=0, atol=1e-5)
