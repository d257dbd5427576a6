"""The recipes of docs/recipes.md run as they stand, and say what a hand-made sweep says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from round_logs import metadata, rounds_row

from fibec_ray.reports import BatchScore, DeviceReport
from fibec_ray.roundlog.writer import RoundLog

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
RECIPES = re.findall(r"^## (.*?)\n.*?^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, pl.DataFrame]:
    a_sweep(tmp_path / "runs" / "sweep")
    monkeypatch.chdir(tmp_path)
    return {title: answer_of(code) for title, code in RECIPES}


def answer_of(code: str) -> pl.DataFrame:
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    answer = names["answer"]
    assert isinstance(answer, pl.DataFrame)
    return answer


def a_sweep(out: Path) -> None:
    """One variant, one seed. Shards of 10, 20 and 30 samples; accuracy .2, .4 and .9, each device's own.

    Device 2 is the slowest in both rounds, by 1 and by 2 s. Of its batches the harder has more loss and is shorter.
    """
    log = RoundLog(out / "one" / "seed-0", metadata())
    batches = (BatchScore(0, 8, 0.1, 0.5, 9.0, None), BatchScore(1, 8, 0.2, 1.5, 7.0, None))
    log.append(rounds_row(-1), [DeviceReport(-1, 0, num_samples=10, batches=batches)], [])
    for round_, slowest in ((0, 3.0), (1, 4.0)):
        times = (1.0, 2.0, slowest)
        devices = [DeviceReport(round_, d, num_samples=10 * (d + 1), sim_time_s=time) for d, time in enumerate(times)]
        scores = (0.2, 0.4, 0.9) if round_ else (0.0, 0.0, 0.0)
        same = {"round": round_, "num_samples": 10, "trained": True, "loss": 0.5}
        evaluations = [same | {"device": d, "accuracy": score} for d, score in enumerate(scores)]
        log.append(rounds_row(round_), devices, [], evaluations)
    (out / "one" / "seed-0" / "summary.json").write_text('{"status": "finished"}')
    variants = [{"name": "one", "group": "", "folder": "one"}]
    record = {"name": "s", "seeds": [0], "reference": "one", "variants": variants}
    (out / "sweep.yaml").write_text(yaml.safe_dump(record))


def test_there_are_three_and_they_answer(answers: dict[str, pl.DataFrame]) -> None:
    by_shard, slowest, difficulty = (frame.to_dicts() for frame in answers.values())
    assert by_shard == [
        {
            "variant": "one",
            "smaller_half": pytest.approx(0.3),
            "larger_half": pytest.approx(0.9),
            "rank_correlation": pytest.approx(1.0),
        }
    ]
    assert slowest == [{"variant": "one", "device": 2, "rounds": 2, "saved_s": pytest.approx(3.0)}]
    assert difficulty == [
        {
            "variant": "one",
            "batches": 2,
            "with_loss": pytest.approx(1.0),
            "with_length": pytest.approx(-1.0),
            "loss_in_easiest_fifth": 0.0,
        }
    ]
