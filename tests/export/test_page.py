"""The code of docs/use-the-model.md and of model cards does what it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tagging, make_tiny
from kinds import make_mentions, make_similar

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


@pytest.mark.parametrize("make", [make_similar, make_mentions, make_tagging])
def test_the_readme_of_a_merged_model_prints_the_answers_of_its_kind(make: Any, tmp_path: Path, capsys: Any) -> None:
    run = simulate(check(make(rounds=1, num_devices=2, cohort_size=2), "test"), tmp_path / "run")
    merged = export_merged(run, tmp_path / "my-model")
    pair = ("Will it rain in Oslo tonight?", "Pay the rent tonight.")
    inputs = [pair if make is make_similar else pair[0]]
    (code,) = python_blocks((merged / "README.md").read_text())
    given = f"[{pair[0]!r}], [{pair[1]!r}]" if make is make_similar else repr(inputs)
    capsys.readouterr()
    exec(code.replace("PATH/TO/THIS/FOLDER", str(merged)).replace('["..."]', given), {})
    printed = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    (found,) = load(run).predict(inputs)
    if make is make_similar:
        assert printed == pytest.approx([found.value], abs=1e-4)
    elif make is make_mentions:
        assert printed == [list(found.labels)]
    else:
        assert printed[1] == found.labels[0]  # behind [CLS]
