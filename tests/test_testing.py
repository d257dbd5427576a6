"""`python -m fibec_ray.testing FILE.py`: which faults of a part it finds, and what it says of them.

What it prints of a part without faults is in tests/test_adding_a_method.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rotation import in_turn

from fibec_ray.method import AXES
from fibec_ray.parts import own
from fibec_ray.testing import checks
from fibec_ray.testing.__main__ import main
from fibec_ray.testing.checks import verdicts

HEAD = """
from __future__ import annotations
import torch
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.solver.base import Solver

seen = []
"""


def part_of(text: str, folder: Path) -> Any:
    path = folder / "rules.py"
    path.write_text(HEAD + text)
    return own.load_file(path).Mine


def trial_of(text: str, folder: Path) -> checks.Trial:
    return checks.Trial(part_of(text, folder), {}, folder)


def found(text: str, folder: Path) -> dict[str, str]:
    """verdict and text of each check, in one process."""
    part = part_of(text, folder)
    return {name: f"{verdict}: {text}" for name, verdict, text in verdicts(part, {}, folder, ray=False)}


@pytest.mark.parametrize("declared", [True, False])
def test_passes_that_are_not_declared_are_missed_in_the_plan(declared: bool, tmp_path: Path) -> None:
    text = f"""
from fibec_ray.parts.part import Passes
class Mine(Aggregator):
    @torch.no_grad()
    def extras_before(self, model, shard, names, round_, rng):
        model.forward(shard.batch(torch.arange(shard.num_samples)))
        return {{}}
    def expected_extras(self, asked, update):
        return {{}}
    def passes(self, round_, answers):
        return [Passes()] * {declared}
"""
    trial = trial_of(text, tmp_path)
    trial.run("network")
    if declared:
        assert checks.planned(trial) == "bytes to the byte, operations within 0.0 %"
    else:
        with pytest.raises(checks.Broken, match="operations were planned, .* were counted; `passes` declares"):
            checks.planned(trial)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    pass", "it has no docstring"),
        ('    """."""\n    rate: float', "rate: give it a default"),
        ('    """."""\n    model_config = {"frozen": False}', "leave frozen and extra as Part sets them"),
    ],
)
def test_fields_that_a_yaml_could_not_name_or_keep(body: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(checks.Broken, match=said):
        checks.fields(trial_of(f"class Mine(Aggregator):\n{body}\n", tmp_path))


@pytest.mark.parametrize("draw", ["torch.rand(1)", "(seen.append(1), len(seen))[1]"], ids=["torch", "globals"])
def test_a_part_that_draws_from_elsewhere_is_found_by_a_second_run(draw: str, tmp_path: Path) -> None:
    text = f"""
class Mine(Aggregator):
    def combine(self, state, updates):
        step, state = super().combine(state, updates)
        return {{name: value * {draw} for name, value in step.items()}}, state
"""
    with pytest.raises(checks.Broken, match="two runs of one experiment differ; draw from the generator"):
        checks.works(trial_of(text, tmp_path), "network")


def test_a_memory_that_is_not_finite(tmp_path: Path) -> None:
    text = """
class Mine(Solver):
    def solve(self, session, memory):
        return super().solve(session, memory) | {"x": torch.tensor([float("nan")])}
"""
    with pytest.raises(Exception, match="not finite|remembers numbers"):
        checks.works(trial_of(text, tmp_path), "network")


def test_an_error_in_a_hook_names_its_line_and_ends_the_other_checks(tmp_path: Path) -> None:
    text = """
class Mine(Objective):
    "Raises."
    def penalty(self, params, anchor):
        return params["nothing"]
"""
    verdict = found(text, tmp_path)
    assert verdict["network"].startswith("FAILED: device ")
    assert verdict["network"].endswith("round 1, train: rules.py, line 13: KeyError: 'nothing'")
    assert verdict["plan"] == verdict["resume"] == "skipped: no small experiment with the part finished"


def test_a_hook_that_ends_the_process_does_not_end_the_checks(tmp_path: Path) -> None:
    text = """
class Mine(Objective):
    "Exits."
    def penalty(self, params, anchor):
        raise SystemExit(0)
"""
    verdict = found(text, tmp_path)
    assert verdict["network"].endswith("rules.py, line 13: RuntimeError: exit(0) in a hook; raise an error instead")
    assert len(verdict) == 6


def test_a_part_that_no_experiment_could_try_has_not_passed(tmp_path: Path) -> None:
    text = """
from fibec_ray.errors import ModelError
from fibec_ray.parts.peft.lora import Lora
class Mine(Lora):
    "Refuses."
    def attach(self, module, head):
        raise ModelError("not this one")
"""
    verdict = found(text, tmp_path)
    assert verdict["fields"].startswith("ok") and verdict["encoder"] == verdict["decoder"] == "skipped: not this one"
    assert verdict["plan"] == "FAILED: no small experiment with the part finished"


def test_a_class_that_lacks_methods_fails_unless_others_are_built_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, base = tmp_path / "half.py", "from fibec_ray.parts.peft.base import Peft\nclass Half(Peft):\n    'Half.'\n"
    file.write_text(base)
    assert main([str(file), "--no-ray"]) == 1
    assert "FAILED  fields     a small experiment (encoder): method.peft: half.py:Half lacks" in capsys.readouterr().out
    file.write_text(f"{base}class Whole(Half):\n    'Whole.'\n    x: int\n    def attach(self, module, head): ...\n")
    assert main([str(file), "--no-ray"]) == 1
    printed = capsys.readouterr()
    assert "Half\n" not in printed.out and "FAILED  fields     x: give it a default" in printed.out
    assert printed.err == "fibec-ray: 1 check failed\n"


def test_a_part_that_fits_no_small_experiment_says_why(tmp_path: Path) -> None:
    part = part_of("class Mine(Objective):\n    needs = property(lambda self: ('lora',))\n", tmp_path)
    assert checks.Trial(part, {}, tmp_path).accepted().method.objective.kind == "rules.py:Mine"
    with pytest.raises(checks.Broken, match="works on LoRA's matrices.*; add the other parts that it needs, such as"):
        checks.Trial(part, {"peft": "full"}, tmp_path).accepted()


def test_partners_that_a_part_names_come_with_it(tmp_path: Path) -> None:
    method = checks.Trial(AXES["peft"]["moving_lora"], {}, tmp_path).accepted().method
    assert method.aggregator.kind == "flora"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.py"], "nowhere.py: no such file"),
        (["empty.py"], "empty.py: defines no part; derive a class from one in fibec_ray.parts.AXIS.base"),
        (["json"], "json: defines no part"),
        (["no_such_module"], "no module 'no_such_module' is installed"),
        (["broken.py"], "broken.py: line 1: SyntaxError"),
        (["rules.py", "shring=gal"], "'shring=gal': expected axis=value; the axes are peft, curriculum"),
        (["rules.py", "sharing"], "'sharing': expected key=value"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.py").write_text("")
    Path("broken.py").write_text("class")
    Path("rules.py").write_text(HEAD + "class Mine(Aggregator):\n    'A mean.'\n")
    assert main([*arguments, "--no-ray"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err and printed.err.count("\n") == 1


BUILT_IN = [(axis, kind) for axis, registry in AXES.items() for kind in registry]
PLANNED_AT_MOST = {
    ("peft", "sparse_lora"): "entries that are set back to their start are not sent down again",
    ("objective", "rank_pruning"): "devices prune ranks by their values, so later messages are smaller",
}
"""Parts whose messages depend on trained values, so that their plan is an upper bound."""


@pytest.mark.parametrize(("axis", "kind"), in_turn(BUILT_IN, 1, "parts of the package"))
def test_parts_of_the_package_pass_too(axis: str, kind: str, tmp_path: Path) -> None:
    verdict = {name: said for name, said, _ in verdicts(AXES[axis][kind], {}, tmp_path, ray=False)}
    assert verdict.pop("plan") == ("FAILED" if (axis, kind) in PLANNED_AT_MOST else "ok")
    assert verdict.pop("fields") == verdict.pop("resume") == "ok" and set(verdict.values()) <= {"ok", "skipped"}
