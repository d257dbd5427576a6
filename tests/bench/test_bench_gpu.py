"""The benchmark on a GPU: its tables, and the smallest of its runs on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretend_gpu import pretend_gpu

from fibec_ray.bench.gpu import main
from fibec_ray.bench.gpu_cases import CASES, SHORT, SMALLEST, write
from fibec_ray.bench.gpu_table import Measured, Row, table, targets
from fibec_ray.bench.gpu_trials import bare, kernels
from fibec_ray.bench.lanes import Shape
from fibec_ray.config.load import load_experiment

LARGE, TINY = CASES["roberta-large"], SMALLEST["tiny"]


def test_operations_are_those_of_the_lanes_benchmark() -> None:
    assert LARGE.flops == Shape(1024, 24, 50265, 8, 128).flops


@pytest.mark.parametrize("name", [*CASES, "tiny"])
def test_every_case_is_an_experiment(name: str, tmp_path: Path) -> None:
    case = (CASES | SMALLEST)[name]
    chosen = load_experiment(write(replace(case, batch=1), 2, 3, tmp_path / name, {"kind": "local", "lanes": 2}))
    assert chosen.rounds == 3 and chosen.cohort_size == chosen.num_devices == 2


def rows() -> list[Row]:
    found = [("bare", 1, 5.0), ("kernels", 1, 8.0), ("engine", 1, 6.0), ("kernels", 32, 80.0), ("engine", 32, 60.0)]
    return [Row(LARGE, kind, lanes, Measured(rate, 8.0, 20.0)) for kind, lanes, rate in found]


def test_the_table_has_rates_shares_and_ratios() -> None:
    lines = table([*rows(), Row(LARGE, "engine", 64, "out of memory")], peak=1000).splitlines()
    share = 100 * 80 * 4 * LARGE.flops / 1e15
    start = f"| RoBERTa-large | kernels (bench.lanes) | 32 | 80.00 | {80 * 4 * 8 * 128:,} |"
    assert lines[5] == f"{start} {share:.1f} % | 0.250 | 20.0 | 16.00 |"
    assert "| 64 | out of memory |" in lines[-1]


def test_targets_are_beside_what_was_measured() -> None:
    lines = targets(rows(), peak=1000).splitlines()
    assert "| RoBERTa-large, engine with 1 lane / plain loop | 1 | 1.20 | met |" in lines
    assert "| RoBERTa-large, engine / kernels, 32 lanes | 0.85 | 0.75 | missed |" in lines
    assert not any("MiniLM" in line for line in lines)
    assert targets(rows()[:1], peak=None) == ""


def test_trials_run_on_a_cpu() -> None:
    assert bare(TINY, "cpu", 4, 0.0)["rate"] > 0
    assert kernels(TINY, "cpu", 2, 2)["rate"] > 0


def test_trials_run_on_a_gpu() -> None:
    with pretend_gpu() as gpu:
        assert bare(TINY, "cuda", 4, 0.0)["rate"] > 0
        assert kernels(TINY, "cuda", 2, 2)["rate"] > 0
    assert gpu.num_operations > 200


def test_the_short_table_has_the_rows_of_the_targets() -> None:
    assert {1, 32} <= set(SHORT["roberta-large"].lanes) and {1, 20} <= set(SHORT["minilm"].lanes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "--device cpu --smallest" in capsys.readouterr().err


@pytest.mark.slow
def test_the_smallest_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--device", "cpu", "--smallest", "--fleet", "local"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert len(lines) == 5 and not any("failed" in line for line in lines)
