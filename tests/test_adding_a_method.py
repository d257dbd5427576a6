"""The worked example of docs/adding-a-method.md, taken from the page and run: one file, one line, one YAML."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.parts.objective import OBJECTIVES
from fibec_ray.runs.simulation import simulate

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-method.md"
PATHS = [
    "fibec_ray/parts/objective/sparse.py",
    "fibec_ray/parts/objective/__init__.py",
    "configs/methods/fedsparse.yaml",
]


def snippets() -> dict[str, str]:
    """The code under each line that is a path."""
    found = re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return dict(found)


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of the page, imported from a file and entered into the registry by the page's own line."""
    file = tmp_path / "sparse.py"
    file.write_text(snippets()[PATHS[0]], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example_sparse", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "example_sparse", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(OBJECTIVES, "sparse", None)  # so that what the line sets is taken back afterwards
    exec(snippets()[PATHS[1]], {"OBJECTIVES": OBJECTIVES, "Sparse": module.Sparse})
    return OBJECTIVES["sparse"]


def test_the_page_has_one_file_one_line_and_one_yaml() -> None:
    found = snippets()
    assert list(found) == PATHS
    assert len(found[PATHS[1]].splitlines()) == 1


def test_its_penalty_by_hand(part: Any) -> None:
    """0.5 (|3 - 1| + |0 - 2|) = 2, and nothing where training starts."""
    params, anchor = {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([1.0, 2.0])}
    assert float(part(strength=0.5).penalty(params, anchor)) == 2
    assert float(part(strength=0.5).penalty(anchor, anchor)) == 0


def test_the_method_runs_and_without_its_price_is_fedavg(part: Any, tiny_settings: Any, tmp_path: Path) -> None:
    """Bit for bit at strength 0, and else not."""
    method = yaml.safe_load(snippets()[PATHS[2]])
    free = {**method, "objective": {"kind": "sparse", "strength": 0.0}}
    runs = {
        name: simulate(check(tiny_settings(settings, rounds=2), "test"), tmp_path / name)
        for name, settings in (("fedsparse", method), ("free", free), ("fedavg", "fedavg"))
    }
    assert runs["free"].adapter_digest == runs["fedavg"].adapter_digest != runs["fedsparse"].adapter_digest


def test_a_misspelt_setting_of_it_is_named(part: Any, tiny_settings: Any) -> None:
    with pytest.raises(ConfigError, match="method.objective.strenght: no such key; did you mean 'strength'"):
        check(tiny_settings({"name": "x", "objective": {"kind": "sparse", "strenght": 1}}), "test")
