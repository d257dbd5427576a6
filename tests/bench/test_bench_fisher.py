"""The benchmark of the initialisation phase runs, on a shard too small for its figures to mean anything."""

from __future__ import annotations

from pathlib import Path

from fibec_ray.bench.fisher import measure_peak, open_bench, time_table


def test_every_work_is_timed_against_a_training_epoch(tmp_path: Path) -> None:
    bench = open_bench(12, tmp_path, threads=1, max_length=12)
    assert bench.shard.num_samples == 12 and sorted(bench.rows.tolist()) == list(range(12))
    head, _, *rows = [line.strip("| ").split(" | ") for line in time_table(bench, repeats=1).splitlines()]
    assert head == ["12 samples", "seconds", "/ training epoch"]
    ratios = {name: float(ratio) for name, _, ratio in rows}
    assert ratios.pop("plain training epoch") == 1 and len(ratios) == 4
    assert all(ratio > 0 for ratio in ratios.values())
    assert all((bench.model.trainable[name] == value).all() for name, value in bench.initial.items())


def test_the_peak_is_that_of_scoring_alone(tmp_path: Path) -> None:
    bench = open_bench(4, tmp_path, threads=1, max_length=12)
    before, peak = measure_peak(bench)
    assert 50e6 < before <= peak < 3e9
