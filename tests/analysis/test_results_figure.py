"""analysis/figures/results.py on small made-up sweeps, and with the panels of an earlier call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from round_logs import small_run

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis" / "figures"))

from results import main, read_points


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., str]:
    """sweep("trec", 0.8): the folder of a sweep with two variants, where the reference has this score at the end."""

    def made(task: str, last: float) -> str:
        out = tmp_path / task
        for variant, scores in {"ours": {0: 0.5, 2: last}, "fedavg": {0: 0.4, 2: 0.7}}.items():
            small_run(out / variant / "seed-0", scores, 0, variant, rounds=(-1, *scores), task={"name": task})
            facts = f'{{"status": "finished", "metric": "accuracy", "task": "{task}"}}'
            (out / variant / "seed-0" / "summary.json").write_text(facts)
        variants = [{"name": name, "group": "", "folder": name} for name in ("ours", "fedavg")]
        record = {"name": task, "seeds": [0], "reference": "ours", "variants": variants}
        (out / "sweep.yaml").write_text(yaml.safe_dump(record))
        return str(out)

    return made


def ends(path: Path) -> dict[str, list[tuple[str, float]]]:
    """The last score of each line, by task."""
    return {curve.stem: [(line.label, line.points[-1][1]) for line in curve.series] for curve in read_points(path)}


def test_panels_of_other_tasks_are_kept_and_those_of_the_same_task_are_replaced(
    sweep: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "images" / "results.svg"
    main([sweep("trec", 0.8), sweep("mr", 0.6), "--out", str(out)])
    assert {path.name for path in out.parent.iterdir()} == {
        "results.svg", "results-dark.svg", "results.png", "results.csv",
    }  # fmt: skip
    before = out.read_bytes()
    main([sweep("trec", 0.9), sweep("cola", 0.3), "--out", str(out), "--add"])
    assert ends(out.with_suffix(".csv")) == {
        "trec": [("ours", 0.9), ("fedavg", 0.7)],
        "mr": [("ours", 0.6), ("fedavg", 0.7)],
        "cola": [("ours", 0.3), ("fedavg", 0.7)],
    }
    assert out.read_bytes() != before
    main([sweep("mr", 0.6), "--out", str(out)])
    assert list(ends(out.with_suffix(".csv"))) == ["mr"]


def test_a_figure_drawn_from_its_points_is_the_same(sweep: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "results.svg"
    trec, mr = sweep("trec", 0.8), sweep("mr", 0.6)
    main([trec, mr, "--out", str(out)])
    direct = out.read_bytes()
    main([mr, "--out", str(out), "--add"])
    main([trec, mr, "--out", str(out), "--add"])
    assert out.read_bytes() == direct


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read"),
        ("a,b\n1,2\n", "its columns must be task, title"),
        ("", "its columns must be task, title"),
        ("task,title,score,variant,seconds,value\ntrec,TREC,accuracy,ours,1,high\n", "cannot be read"),
        ("task,title,score,variant,seconds,value\ntrec,TREC,accuracy,ours,1\n", "cannot be read"),
    ],
)
def test_points_that_cannot_be_read_are_named_and_nothing_is_written(
    content: str | None, what: str, sweep: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tmp_path / "results.csv"
    if content is not None:
        points.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main([sweep("trec", 0.8), "--out", str(tmp_path / "results.svg"), "--add"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "results.csv" in error and what in error and "leave out --add" in error
    assert not (tmp_path / "results.svg").exists()
    assert (points.read_text() if points.exists() else None) == content
