"""An exception in a user's own part ends the command with one line that names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import make_digits

from fibec_ray.cli.main import main

LINES = {
    "return {}['nothing']": "KeyError: 'nothing'",
    "raise SystemExit(3)": "RuntimeError: exit(3) in a hook; raise an error instead",
    "assert False": "AssertionError: no message",
}
HOOKS = {
    "penalty": ("objective", "Objective"),
    "visible": ("curriculum", "Curriculum"),
    "refresh": ("mask", "Mask"),
    "select": ("sharing", "Sharing"),
    "solve": ("solver", "Solver"),
    "combine": ("aggregator", "Aggregator"),
    "fault": ("aggregator", "Aggregator"),
}

LAST_WORDS = (("penalty", "raise SystemExit(3)"), ("combine", "raise SystemExit(3)"), ("combine", "assert False"))


@pytest.mark.parametrize(("hook", "line"), [*((hook, "return {}['nothing']") for hook in HOOKS), *LAST_WORDS])
def test_a_part_that_fails_is_named_with_its_line(
    hook: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axis, base = HOOKS[hook]
    lines = (
        f"from fibec_ray.parts.{axis}.base import {base}",
        f"class Broken({base}):",
        f"    def {hook}(self, *arguments, **named):",
        f"        {line}",
    )
    (tmp_path / "broken.py").write_text("\n".join(lines))
    settings = make_digits(rounds=1, method={axis: "broken.py:Broken"})
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(settings))
    assert main(["run", str(tmp_path / "broken.yaml"), "--out", str(tmp_path / "run")]) in (1, 2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("fibec-ray: ") and "Traceback" not in said
    assert f"broken.py, line 4: {LINES[line]}" in said


def test_a_bug_of_the_package_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(make_digits(rounds=1)))
    monkeypatch.setattr("fibec_ray.learning.server.add", lambda *_: {}["nothing"])
    with pytest.raises(KeyError):
        main(["run", str(tmp_path / "digits.yaml"), "--out", str(tmp_path / "run")])
