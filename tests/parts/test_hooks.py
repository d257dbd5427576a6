"""A user's own part against the contract of its axis: what is refused when it is made, and when its hooks return."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_regression
from pydantic import ValidationError

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError, RunError
from fibec_ray.method import Method
from fibec_ray.runs.simulation import simulate

IMPORTS = """
from typing import ClassVar
import torch
from torch import Tensor
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.mask.base import Mask
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.part import Part
from fibec_ray.parts.sharing.base import Selection, Sharing
from fibec_ray.parts.solver.base import Solver
from fibec_ray.tensors import weighted_mean
"""
COMBINE = "def combine(self, state, updates): d = weighted_mean((u.num_samples, u.delta) for u in updates); return "


def kind_of(folder: Path, base: str, *lines: str) -> str:
    """Of the class X in a new file, with these lines."""
    (folder / "m.py").write_text("\n    ".join([f"{IMPORTS}class X({base}):", "'A part.'", *lines]) + "\n")
    return f"{folder}/m.py:X"


@pytest.mark.parametrize(
    ("base", "line", "expected"),
    [
        ("Aggregator", "def combine(self, updates): ...", "takes (self, updates); write def combine(self, state, u"),
        ("Aggregator", "def combine(self, updates, state): ...", "write def combine(self, state, updates)"),
        ("Aggregator", "def combine(state, updates): ...", "write def combine(self, state, updates)"),
        ("Aggregator", "def passes(self, round_, num_classes): ...", "round_, answers); num_classes is now answers.n"),
        ("Sharing", "def passes(self, num_classes): ...", "def passes(self, answers); num_classes is now answ"),
        ("Aggregator", "def combin(self, state, updates): ...", "did you mean 'combine'? If not, rename it to _combin"),
        ("Aggregator", "combine: float = 1.0", "combine is the name of a hook; give the field another name"),
        ("Aggregator", "@property\n    def combine(self): ...", "is a method; write it as def combine(self, state"),
        ("Curriculum", "def needs_setup(self): ...", "needs_setup is a property; write @property above it"),
        ("Aggregator", "def __init__(self, rate=1.0): ...", "remove __init__; write hyper-parameters as fields"),
        ("Objective", "def feature_penalty(self, features, references): ...", "it must define teachers too"),
        ("Aggregator", "rate = 0.5", "`rate = 0.5`; write a hyper-parameter as NAME: TYPE = DEFAULT"),
        ("Aggregator", "weights: Tensor = torch.ones(2)", "torch.Tensor'>; write a hyper-parameter as NAME"),
        ("Aggregator", "kinds: 'Mapping[str, int]' = {}", "name 'Mapping' is not defined; write a hyper-parameter as"),
        ("Part", "rate: float = 1.0", "make it a subclass of fibec_ray.parts.aggregator.base.Aggregator"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_hook_or_a_field_is_refused_with_what_to_write(
    tmp_path: Path, base: str, line: str, expected: str
) -> None:
    axis = "aggregator" if base == "Part" else base.lower()
    with pytest.raises(ValidationError) as caught:
        Method.model_validate({axis: kind_of(tmp_path, base, line)})
    message = caught.value.errors()[0]["msg"]
    assert expected in message and "m.py" in message and "\n" not in message and "pydantic.dev" not in message


def test_helpers_under_names_of_their_own_are_none_of_the_contract_s_business(tmp_path: Path) -> None:
    lines = ("def _combin(self): return 1", "def norm(self): return 2", "def combine(self, *both): return {}, both[0]")
    found = Method.model_validate({"aggregator": kind_of(tmp_path, "Aggregator", *lines)}).aggregator
    assert found.norm() == 2 and found.combine({}, []) == ({}, {})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("None", "None"),
        ("state", "dict"),
        ("({}, state, 3)", "3 values"),
        ("({}, None)", "None"),
        ("({'w': 0.5}, state)", "float for 'w'"),
        ("({'w': torch.ones(1).numpy()}, state)", "numpy.ndarray for 'w'"),
        ("({}, {'m': {'w': torch.ones(1)}})", "dict for 'm'"),
    ],
)
def test_what_a_hook_returns_is_of_the_contract_s_type(tmp_path: Path, value: str, said: str) -> None:
    kind = kind_of(tmp_path, "Aggregator", f"def combine(self, state, updates): return {value}")
    part = Method.model_validate({"aggregator": kind}).aggregator
    with pytest.raises(ConfigError) as caught:
        part.combine({}, [])
    expected = "return tuple[dict[str, Tensor], dict[str, Tensor]]"
    assert str(caught.value) == f"m.py, line 15: X.combine returned {said}; {expected}"


def test_a_hook_may_return_anything_that_counts_as_the_type(tmp_path: Path) -> None:
    lines = (
        "def due(self, memory, round_): return torch.tensor(True)",
        "def visible(self, *_): return [torch.ones(1)]",
    )
    part = Method.model_validate({"curriculum": kind_of(tmp_path, "Curriculum", *lines)}).curriculum
    assert part.due({}, 0) and torch.equal(part.visible({}, [], 0, 1, torch.Generator())[0], torch.ones(1))


@pytest.mark.parametrize(
    ("base", "line", "expected"),
    [
        ("Aggregator", COMBINE + "{'x' + n: v for n, v in d.items()}, state", "but the model has no such tensor"),
        ("Aggregator", COMBINE + "{n: v.double() for n, v in d.items()}, state", "type torch.float32; return a step"),
        ("Aggregator", "def combine(self, state, updates): self.count = 1", "count on a part, and parts are frozen; "
        "keep"),
        ("Objective", "def penalty(self, params, anchor): return torch.ones(3)", "returned (3,) values; return one"),
        ("Curriculum", "def visible(self, *_): return []", "visible returned no batch; return at least one"),
        ("Sharing", "def select(self, *_): return Selection(frozenset({'w'}))", "'w', which is not a trainable tensor"),
        ("Mask", "def refresh(self, memory, scan, names, rng): return {f'kept/{n}': torch.ones(3) for n in names}",
         "values of type torch.bool"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_take_ends_the_run_in_one_line(
    tmp_path: Path, base: str, line: str, expected: str
) -> None:
    method = {base.lower(): kind_of(tmp_path, base, line)} | ({"sharing": "body"} if base == "Mask" else {})
    with pytest.raises((ConfigError, RunError)) as caught:
        simulate(check(make_regression(method=method), "here"), tmp_path / "run")
    assert expected in str(caught.value) and "m.py" in str(caught.value) and "\n" not in str(caught.value)
