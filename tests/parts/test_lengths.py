"""Curricula of lengths (E25): which length in which round, and what of a device-round it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fibec_ray.config.load import check
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.curriculum.lengths import LengthWarmup, ShortFirst
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.tensors import digest
from fibec_ray.types import Broadcast, RoundPlan


def lengths(curriculum: Curriculum, rounds: int, full: int) -> list[int | None]:
    return [curriculum.max_length(t, rounds, full) for t in range(rounds)]


def test_a_warmup_grows_linearly_in_multiples_of_8() -> None:
    """E25: 8 + 56 t / 6 = 8, 17.3, 26.7, 36, 45.3, 54.7, then all of the 64; T_c = 6 of 10 rounds."""
    assert lengths(LengthWarmup(full_at=0.6), 10, 64) == [8, 16, 24, 32, 40, 48, *[None] * 4]
    assert lengths(LengthWarmup(full_at=0.6, start=10, multiple_of=1), 10, 64) == [
        10, 19, 28, 37, 46, 55, *[None] * 4
    ]  # fmt: skip


def test_a_warmup_ends_at_its_round_though_the_full_length_is_no_multiple() -> None:
    """8 + 22 t / 4 = 8, 13.5, 19, 24.5, and then nothing is cut to 24."""
    assert lengths(LengthWarmup(full_at=0.8), 5, 30) == [8, 8, 16, 24, None]
    assert lengths(LengthWarmup(full_at=1.0), 4, 40) == [8, 16, 24, 32]


def test_two_stages_switch_at_their_round() -> None:
    """E25: a quarter of 48 for half of the rounds, of 7 the first four; .55 of 100 is 55 in spite of rounding."""
    assert lengths(ShortFirst(), 6, 48) == [12, 12, 12, None, None, None]
    assert lengths(ShortFirst(), 7, 48) == [*[12] * 4, *[None] * 3]
    assert lengths(ShortFirst(share=0.3, full_at=0.55), 100, 10) == [*[3] * 55, *[None] * 45]
    assert lengths(ShortFirst(share=0.1), 2, 4) == [1, None]


@pytest.mark.parametrize("kind", [LengthWarmup, ShortFirst])
def test_all_samples_are_seen_in_every_round(kind: type[Curriculum]) -> None:
    assert kind.visible is Curriculum.visible and kind.pick is Curriculum.pick
    assert not kind().needs_setup and not kind().sends and not kind().keeps


def test_a_start_that_rounding_takes_away_is_refused() -> None:
    with pytest.raises(ValidationError, match="start 4 would round down to 0"):
        LengthWarmup(start=4)


# --- on devices


def spec_of(method: Any, tiny_settings: Any, folder: Path, **settings: Any) -> WorkerSpec:
    experiment = check(tiny_settings(method, **settings), "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())


def warmed(**more: Any) -> dict[str, Any]:
    return {"curriculum": {"kind": "length_warmup", "start": 4, "multiple_of": 2, "full_at": 0.5}, **more}


def test_a_device_trains_on_samples_that_are_cut_and_then_on_whole_ones(tiny_settings: Any, tmp_path: Path) -> None:
    """Lengths, steps and operations of rounds 0 and 3 of 4: fewer tokens at first, later FedAvg's bits."""
    workers = {
        name: spec_of(method, tiny_settings, tmp_path / name, rounds=4).worker()
        for name, method in (("fedavg", "fedavg"), ("warmed", warmed()))
    }
    shard = workers["fedavg"].data.train_shard(2)
    rounds = [
        {
            name: worker.train(RoundPlan(round_, 4, (2,), 0.01), 2, Broadcast(round_, worker.initial))
            for name, worker in workers.items()
        }
        for round_ in (0, 3)
    ]
    for (update, report), (whole, full) in ((r["warmed"], r["fedavg"]) for r in rounds):
        assert report.num_samples_seen == full.num_samples_seen and report.num_steps == full.num_steps
        assert report.bytes_up == full.bytes_up and full.length_seen == pytest.approx(
            float(shard.lengths.double().mean())
        )
        assert (digest(update.delta) == digest(whole.delta)) == (report.round == 3)
    assert rounds[0]["warmed"][1].length_seen == 4
    assert rounds[0]["warmed"][1].flops < 0.6 * rounds[0]["fedavg"][1].flops
    assert rounds[1]["warmed"][1].flops == rounds[1]["fedavg"][1].flops


def test_scores_and_evaluation_see_whole_samples(tiny_settings: Any, tmp_path: Path) -> None:
    """FIPA's extras before training, and the predictions of the initial model, are those of FedAvg's curriculum."""
    fipa = {"aggregator": {"kind": "fipa", "warmup_rounds": 0, "rank": 2}}
    found = []
    for name, method in (("whole", fipa), ("cut", warmed(**fipa))):
        worker_spec = spec_of(method, tiny_settings, tmp_path / name)
        fleet, worker = LocalFleet(worker_spec), worker_spec.worker()
        fleet.setup()
        losses = fleet.evaluate(-1).shared.losses
        update, _ = worker.train(RoundPlan(0, 4, (1,), 0.01), 1, Broadcast(0, worker.initial))
        found.append((digest({"losses": losses}), digest(update.extras), digest(update.delta)))
    assert found[0][:2] == found[1][:2] and found[0][2] != found[1][2]


@pytest.mark.parametrize("head", ["masked_lm", "causal_lm"])
def test_a_prompt_keeps_its_answer_while_texts_grow(head: str, tiny_settings: Any, tmp_path: Path) -> None:
    """Two stages over a template that is longer than the first of them: each sample is down to one token of text."""
    settings = tiny_settings("shortformer", rounds=2, data={"max_length": 32}, backbone={"head": head})
    run = simulate(check(settings, "test"), tmp_path / "run")
    flops = [row["flops"] for row in run.rows[1:]]
    assert flops[0] < flops[1] and all(row["train_loss"] > 0 for row in run.rows[1:])
