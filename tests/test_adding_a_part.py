"""A part is added to a copy of this checkout by its file, a line in the registry and a YAML: its tests take it up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PART = '''"""A mean of updates with a bound on their length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import DeviceUpdate


class ClippedMean(Aggregator):
    """The weighted mean of updates that are scaled down to a norm of `most`."""

    kind: Literal["clipped_mean"] = "clipped_mean"
    most: float = Field(1e3, gt=0, description="longest update")

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        return weighted_mean((update.num_samples, self._clipped(update.delta)) for update in updates), state

    def _clipped(self, delta: Tensors) -> Tensors:
        norm = sum(float(value.square().sum()) for value in delta.values()) ** 0.5
        return {name: value * min(1.0, self.most / max(norm, 1e-12)) for name, value in delta.items()}
'''
METHOD = """# fibec-ray run configs/quickstart.yaml method=clipped-mean
name: clipped-mean
reference: made up
aggregator: {kind: clipped_mean, most: 1.0}
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """This checkout with one part more."""
    for folder in ("fibec_ray", "tests", "configs"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=leave)
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    axis = tmp_path / "fibec_ray" / "parts" / "aggregator"
    (axis / "clipped_mean.py").write_text(PART, encoding="utf-8")
    registry = (axis / "__init__.py").read_text(encoding="utf-8")
    above, dict_, entries = registry.partition("\n\nAGGREGATORS: dict[str, type[Aggregator]] = {\n")
    imported = f"{above}\nfrom fibec_ray.parts.aggregator.clipped_mean import ClippedMean"
    added = entries.replace('    "mean": Mean,\n', '    "mean": Mean,\n    "clipped_mean": ClippedMean,\n', 1)
    (axis / "__init__.py").write_text(imported + dict_ + added, encoding="utf-8")
    (tmp_path / "configs" / "methods" / "clipped-mean.yaml").write_text(METHOD, encoding="utf-8")
    return tmp_path


def run_tests(copy: Path, *arguments: str) -> tuple[list[str], list[str]]:
    """The tests of the copy that passed, and the others, by file and name."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    passed = [name for word, name in (line for line in lines if len(line) == 2) if word == "PASSED"]
    failed = [name for word, name in (line for line in lines if len(line) == 2) if word in ("FAILED", "ERROR")]
    assert passed or failed, done.stdout + done.stderr
    return passed, failed


def test_a_part_in_the_package_is_a_file_a_line_and_a_yaml(copy: Path) -> None:
    files = ("tests/parts/test_every_part.py", "tests/parts/test_fits.py", "tests/test_methods.py")
    files += ("tests/config/test_load.py", "tests/test_layering.py")
    passed, failed = run_tests(copy, *files, "-k", "clipped and not decoder", "-m", "not slow")
    assert not failed
    for test in (
        "tests/parts/test_every_part.py::test_every_aggregator",
        "tests/parts/test_fits.py::test_what_a_part_names_is_there[aggregator-clipped_mean",
        "tests/test_methods.py::test_every_method_runs_and_keeps_to_its_word[clipped-mean-encoder]",
        "tests/config/test_load.py::test_every_file_opens_with_the_command",
        "tests/test_layering.py::test_imports_point_down[fibec_ray.parts.aggregator.clipped_mean]",
    ):
        assert any(name.startswith(test) for name in passed), test


@pytest.mark.slow
def test_all_checks_of_methods_and_parts_take_it_up(copy: Path) -> None:
    """Local equals Ray, killed and resumed, planned, lanes equal alone too."""
    folders = ("fleets", "learning", "preflight", "runs")
    passed, failed = run_tests(copy, *(f"tests/{folder}" for folder in folders), "-k", "clipped")
    assert not failed
    for folder in folders:
        assert any(name.startswith(f"tests/{folder}/") for name in passed), folder
